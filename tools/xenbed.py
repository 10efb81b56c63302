# SPDX-License-Identifier: BSD-3-Clause
"""A real Xen with its dom0 inside QEMU, for one job: a script that runs in dom0."""
import ctypes
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time

import xenbuild
from bootlib import VmError
from vmlib import QEMU

QEMU_MB, DOM0_MB = 2304, 1024
# Why these: docs/xen.md, What QEMU cannot do.
CPU = "EPYC,+svm,+npt,-smap,-monitor,-rdtscp,-xsave"
XEN_ARGS = ("console=com1 com1=115200,8n1 dom0_mem={mb}M,max:{mb}M dom0_max_vcpus=1 dom0_vcpus_pin cpuidle=0 bootscrub=0 "
            "loglvl=all guest_loglvl=all")
NO_RESULT = 125
OWN_FILES = ("job", "job.seconds", "job.out", "job.status", "job.status.new", "logs")  # on /host, when the job runs
READY = "testbed: dom0 is ready"
GUEST_CONFIG = """name = "{name}"
type = "pvh"
kernel = "/host/vmlinux"
ramdisk = "/host/initrd.img"
memory = {mb}
vcpus = 1
cpus = "1"
extra = "console=hvc0 panic=-1 SF_MIB={pattern_mb} SF_CLAIM_MS=5000"
on_crash = "preserve"
on_reboot = "destroy"
"""


def _die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Bed:
    """The machine's parts, and a folder that dom0 sees as /host. Use with `with`.
    @param net     arguments of QEMU for a network card, which dom0 sees as eth0
    @param shared  a folder that dom0 sees as /shared, as other machines do"""

    def __init__(self, net=(), shared=None):
        self.net, self.shared, self.qemu = net, shared, None
        self.hypervisor, self.dom0, self.guest = xenbuild.hypervisor(), xenbuild.dom0(), xenbuild.guest()
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="run-", dir=xenbuild.cache()))
        self.host, self.console = self.dir / "host", self.dir / "console.log"
        self.host.mkdir()
        for name in ("vmlinux", "initrd.img"):
            shutil.copy2(self.guest / name, self.host / name)  # no link: dom0 may write to it
        self.add_guest("guest")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def add_guest(self, name, mb=256, pattern_mb=64):
        """A PVH guest that a job may create from /host/NAME.cfg: each second it checks its memory and says so in its
        log, /var/log/xen/guest-NAME.log."""
        (self.host / f"{name}.cfg").write_text(GUEST_CONFIG.format(name=name, mb=mb, pattern_mb=pattern_mb))

    def add_file(self, path):
        path = pathlib.Path(path)
        if path.name in OWN_FILES or (self.host / path.name).exists():
            raise VmError(f"{path}: on /host there is a {path.name} already: rename it")
        try:
            shutil.copy2(path, self.host / path.name)
        except OSError as error:
            raise VmError(f"{path}: {error.strerror}") from error

    def _qemu(self):
        for name, target in (("xen.elf", self.hypervisor), ("vmlinuz", self.dom0 / "vmlinuz"),
                             ("initrd.img", self.dom0 / "initrd.img"), ("disk.ext4", self.dom0 / "disk.ext4")):
            (self.dir / name).symlink_to(target)
        return [QEMU, "-machine", "pc", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", CPU, "-smp", "2",
                "-m", str(QEMU_MB), "-display", "none", "-vga", "none", "-nodefaults", "-no-reboot",
                "-serial", f"file:{self.console.name}", "-monitor", "none",
                "-kernel", "xen.elf", "-append", XEN_ARGS.format(mb=DOM0_MB),
                "-initrd", "vmlinuz console=hvc0,initrd.img",
                "-drive", "file=disk.ext4,if=none,id=root,format=raw,cache=unsafe,snapshot=on",
                "-device", "virtio-blk-pci,drive=root",
                "-fsdev", "local,id=host,path=host,security_model=none",
                "-device", "virtio-9p-pci,fsdev=host,mount_tag=host", *self.net, *self._shared_args()]

    def _shared_args(self):
        if self.shared is None:
            return []
        return ["-fsdev", f"local,id=shared,path={self.shared},security_model=none",
                "-device", "virtio-9p-pci,fsdev=shared,mount_tag=shared"]

    def run(self, job, seconds):
        """Boots, runs the script in dom0 and powers off. @return its exit status, NO_RESULT if there is none"""
        self.start(job, seconds)
        while self.running():
            time.sleep(0.1)
        return self.stop()

    def start(self, job, seconds):
        """Boots, for running() and stop()."""
        shutil.copy2(job, self.host / "job")
        (self.host / "job.seconds").write_text(str(seconds))
        self.began, self.ready = time.monotonic(), False
        self.deadline = self.began + seconds + 120  # boot and end
        self.qemu = subprocess.Popen(self._qemu(), cwd=self.dir, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                     stderr=subprocess.PIPE, start_new_session=True, preexec_fn=_die_with_parent)

    def running(self):
        """Whether the job has more to do."""
        if not self.ready and READY in self.console_text():
            self.ready = True
            xenbuild.say(f"dom0 is ready after {time.monotonic() - self.began:.0f} s")
        return (self.qemu.poll() is None and time.monotonic() < self.deadline
                and not (self.host / "job.status").exists())

    def stop(self):
        """Powers off. @return the job's exit status, NO_RESULT if there is none"""
        if self.qemu is not None:
            self.qemu.kill()
            for line in self.qemu.communicate()[1].decode(errors="replace").splitlines():
                if "TCG doesn't support requested feature" not in line:  # of an EPYC, and asked for by no one
                    xenbuild.say(line)
            self.qemu = None
        status = self.host / "job.status"
        return int(status.read_text()) if status.exists() else NO_RESULT

    def console_text(self):
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def output(self):
        """What the job printed."""
        out = self.host / "job.out"
        return out.read_text(errors="replace") if out.exists() else ""

    def why_no_result(self):
        lines = re.sub(r"\x1b\[[0-9;]*m", "", self.console_text().replace("\r", "")).splitlines()
        return "the job has no result; the machine's console ends with:\n" + "\n".join("  | " + l for l in lines[-20:])

    def save_logs(self, folder):
        """The machine's console, Xen's log and the guests' consoles."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for path in (self.console, self.host / "job.out", *sorted((self.host / "logs").glob("*"))):
            if path.is_file():
                shutil.copy(path, folder / path.name)
