# SPDX-License-Identifier: BSD-3-Clause
"""The machine that Xen runs on: QEMU's command line, and a snapshot of it in which dom0 waits for its job."""
import contextlib
import ctypes
import pathlib
import shlex
import signal
import subprocess
import tempfile
import time

import xenbuild
from bootlib import VmError, run
from vmchannel import LineSocket, Qmp
from vmlib import QEMU

VM_MB = 512  # of the largest guest that there is room for: twice, and once more in dom0


def dom0_mb(vm_mb):
    return vm_mb + 512


def qemu_mb(vm_mb):
    return dom0_mb(vm_mb) + 2 * vm_mb + 256


# Why these: docs/xen.md, What QEMU cannot do.
CPU = "EPYC,+svm,+npt,-smap,-monitor,-rdtscp,-xsave"
XEN_ARGS = ("console=com1 com1=115200,8n1 dom0_mem={mb}M,max:{mb}M dom0_max_vcpus=1 dom0_vcpus_pin cpuidle=0 bootscrub=0 "
            "loglvl=all guest_loglvl=all")
READY = "testbed: dom0 is ready"
BOOT_S = 300.0  # for what takes a tenth of it where nothing else runs

# Of QEMU, but for what differs from run to run. Nothing is written to the disk.
ARGUMENTS = [
    "-machine", "pc", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", CPU, "-smp", "2",
    "-m", str(qemu_mb(VM_MB)), "-display", "none", "-vga", "none", "-nodefaults", "-no-reboot",
    "-kernel", "xen.elf", "-append", XEN_ARGS.format(mb=dom0_mb(VM_MB)),
    "-initrd", "vmlinuz console=hvc0,initrd.img",
    "-drive", "file=disk.ext4,if=none,id=root,format=raw,readonly=on",
    "-device", "virtio-blk-pci,drive=root",
    "-serial", "file:console.log", "-serial", "unix:start.sock,server=on,wait=off",
    "-qmp", "unix:qmp.sock,server=on,wait=off",
    "-fsdev", "local,id=host,path=host,security_model=none",
    "-device", "virtio-9p-pci,fsdev=host,mount_tag=host",
]


def room_for(vm_mb):
    """Arguments beside those, for larger guests. Of two QEMU takes the last."""
    return [] if vm_mb <= VM_MB else ["-m", str(qemu_mb(vm_mb)), "-append", XEN_ARGS.format(mb=dom0_mb(vm_mb))]


def _die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def parts():
    """What the machine is made of, by the names that it has in a machine's folder."""
    dom0 = xenbuild.dom0()
    return {"xen.elf": xenbuild.hypervisor(), **{name: dom0 / name for name in ("vmlinuz", "initrd.img", "disk.ext4")}}


class Machine:
    """A QEMU in a folder of its own, which has the folder `host`.
    @param extra     arguments for devices that the snapshot knows nothing of
    @param snapshot  a file of its state to start from; None: it boots"""

    def __init__(self, folder, extra=(), snapshot=None):
        self.folder, self.console = pathlib.Path(folder), pathlib.Path(folder) / "console.log"
        self.from_snapshot, self.line = snapshot is not None, None
        for name, path in parts().items():
            (self.folder / name).symlink_to(path)
        incoming = ["-incoming", f"exec:cat {shlex.quote(str(snapshot))}"] if self.from_snapshot else []
        self.process = subprocess.Popen([QEMU, *ARGUMENTS, *extra, *incoming], cwd=self.folder, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
                                        preexec_fn=_die_with_parent)

    def is_running(self):
        return self.process.poll() is None

    def console_text(self):
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def wait_ready(self, seconds=BOOT_S):
        """Until dom0 waits for its job."""
        deadline = time.monotonic() + seconds
        while not self.is_ready():
            if not self.is_running() or time.monotonic() > deadline:
                raise VmError(f"dom0 does not come up: {self.kill() or self.console_text()[-1500:]}")
            time.sleep(0.05)

    def is_ready(self):
        if not self.from_snapshot:
            return READY in self.console_text()
        with contextlib.closing(self._qmp()) as qmp:
            return qmp("query-status")["status"] == "running"

    def start_job(self):
        """By a line with the time, which a machine from a snapshot cannot know."""
        self.line = LineSocket(self.folder / "start.sock", BOOT_S, self.is_running)  # what is not read goes with it
        self.line.send(str(int(time.time())))

    def _qmp(self):
        return Qmp(self.folder / "qmp.sock", BOOT_S, self.is_running)

    def save(self, path):
        """Its state into a file; it stands still then."""
        with contextlib.closing(self._qmp()) as qmp:
            qmp("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
            qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
            qmp("migrate", uri=f"exec:cat >{shlex.quote(str(path))}")
            if not qmp.wait_migration(("completed", "failed"), BOOT_S) or qmp.migration != "completed":
                raise VmError(f"QEMU does not save its state: it is {qmp.migration}")

    def kill(self):
        """@return what it said on stderr, the first time"""
        if self.process.stderr.closed:
            return ""
        if self.line:
            self.line.close()
        self.process.kill()
        said = self.process.communicate()[1].decode(errors="replace").splitlines()
        # Of an EPYC, and asked for by no one.
        return "\n".join(line for line in said if "TCG doesn't support requested feature" not in line)


def snapshot():
    """A file of the state in which dom0 waits for its job."""
    made = [f"{path.resolve()} {path.stat().st_mtime_ns}" for path in parts().values()]
    target = xenbuild.cache() / f"ready-{xenbuild.digest(*made, *ARGUMENTS, run([QEMU, '--version']))}"
    with xenbuild.made_once(target) as part:
        if part is not None:
            with xenbuild.step("boot dom0 for its snapshot"), tempfile.TemporaryDirectory(dir=xenbuild.cache(), prefix="boot-") as tmp:
                (pathlib.Path(tmp) / "host").mkdir()
                machine = Machine(tmp)
                try:
                    machine.wait_ready()
                    machine.save(part)
                finally:
                    machine.kill()
    return target
