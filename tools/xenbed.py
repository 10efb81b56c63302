# SPDX-License-Identifier: BSD-3-Clause
"""A real Xen with its dom0 inside QEMU, for one job: a script that runs in dom0."""
import pathlib
import re
import shutil
import tempfile
import time

import xenbuild
import xenmachine
from bootlib import VmError

NO_RESULT = 125
OWN_FILES = ("job", "job.seconds", "job.out", "job.status", "job.status.new", "logs")  # on /host, when the job runs
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


class Bed:
    """The machine's parts, and a folder that dom0 sees as /host. Use with `with`.
    @param net     arguments of QEMU for a network card, which dom0 sees as eth0
    @param shared  a folder that dom0 sees as /shared, as other machines do
    @param boots   or it starts from the snapshot of a machine that has booted; one with more devices or memory boots
    @param vm_mb   memory of its largest guest"""

    def __init__(self, net=(), shared=None, boots=False, vm_mb=0):
        self.extra = [*net, *self._shared_args(shared), *xenmachine.room_for(vm_mb)]
        self.machine, self.guest = None, xenbuild.guest()
        self.snapshot = None if boots or self.extra else xenmachine.snapshot()
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="run-", dir=xenbuild.cache()))
        self.host = self.dir / "host"
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

    @staticmethod
    def _shared_args(folder):
        if folder is None:
            return []
        return ["-fsdev", f"local,id=shared,path={folder},security_model=none",
                "-device", "virtio-9p-pci,fsdev=shared,mount_tag=shared"]

    def run(self, job, seconds):
        """Starts, runs the script in dom0 and powers off. @return its exit status, NO_RESULT if there is none"""
        self.start(job, seconds)
        while self.running():
            time.sleep(0.1)
        return self.stop()

    def start(self, job, seconds):
        """For running() and stop()."""
        shutil.copy2(job, self.host / "job")
        (self.host / "job.seconds").write_text(str(seconds))
        self.began, self.ready = time.monotonic(), False
        self.deadline = self.began + seconds + 120  # boot and end
        self.machine = xenmachine.Machine(self.dir, self.extra, self.snapshot)

    def running(self):
        """Whether the job has more to do."""
        if not self.machine.is_running():
            return False
        if not self.ready and self._is_ready():
            self.ready = True
            self.machine.start_job()
            xenbuild.say(f"dom0 is ready after {time.monotonic() - self.began:.0f} s")
        return time.monotonic() < self.deadline and not (self.host / "job.status").exists()

    def _is_ready(self):
        try:
            return self.machine.is_ready()
        except VmError as error:  # it died, of which running() tells
            xenbuild.say(f"{error}; if it is the snapshot that does not start: `xen-testbed clean`, or run --boot")
            return False

    def stop(self):
        """Powers off. @return the job's exit status, NO_RESULT if there is none"""
        if self.machine is not None:
            for line in self.machine.kill().splitlines():
                xenbuild.say(line)
        status = self.host / "job.status"
        return int(status.read_text()) if status.exists() else NO_RESULT

    def output(self):
        """What the job printed."""
        out = self.host / "job.out"
        return out.read_text(errors="replace") if out.exists() else ""

    def why_no_result(self):
        lines = re.sub(r"\x1b\[[0-9;]*m", "", self.machine.console_text().replace("\r", "")).splitlines()
        return "the job has no result; the machine's console ends with:\n" + "\n".join("  | " + l for l in lines[-20:])

    def save_logs(self, folder):
        """The machine's console, Xen's log and the guests' consoles."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for path in (self.machine.console, self.host / "job.out", *sorted((self.host / "logs").glob("*"))):
            if path.is_file():
                shutil.copy(path, folder / path.name)
