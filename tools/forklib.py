# SPDX-License-Identifier: BSD-3-Clause
"""A parent VM and the clones forked from it, on a lab's virtual hosts."""
import contextlib
import json
import pathlib
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import bootlib
import fleetlib
import lablib
import vmlib
from vmlib import VmError

AGENT = "tools/sf-agent"
SHIM = "memserver-dpdk/shim/libsf-shim.so"
CLONE_SHIM = "memtap-dpdk/shim/libsf-clone.so"
DESCRIPTOR = "descriptor/sf-descriptor"
POSTCOPY, PRECOPY = "qemu-postcopy", "qemu-precopy"


def show(build, descriptor):
    """What is in a descriptor, as a dict."""
    done = subprocess.run([build / DESCRIPTOR, "show", descriptor, "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        raise VmError(f"{DESCRIPTOR}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def image_of(build, descriptor):
    """The name of the image that a descriptor is of, as memtap knows it."""
    shown = show(build, descriptor)
    return f"{shown['image_id']}-{shown['epoch']}"


def hand_over(clone, memtap_socket, image, adapter=POSTCOPY, recover=False):
    """Gives memtap the channel on which a clone waits for its state, with PRECOPY without its RAM; to `recover`: for the
    rest of its memory. The connection returned is open while memtap serves the clone.
    @param image  image_of the clone's descriptor: memtap refuses a clone of any other"""
    message = json.dumps([{"adapter": adapter, "image": image, **({"recover": True} if recover else {})}])
    tap = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            tap.connect(str(memtap_socket))
            # Not before memtap is there: a channel that breaks before the resume kills a paused QEMU.
            channel.connect(str(clone.incoming))
            socket.send_fds(tap, [message.encode()], [channel.fileno()])
    except OSError as error:
        tap.close()
        raise VmError(f"VM {clone.name}: its memory could not be handed to {memtap_socket}: {error.strerror}") from error
    return tap


class Clone:
    """A clone with what was measured of it."""

    def __init__(self, vm, identity, host, image):
        self.vm, self.identity, self.host, self.image = vm, identity, host, image
        self.spawned, self.tap, self.times_ms, self.answer = None, None, {}, {}
        self.postcopy, self.freezer = True, None
        self.starting = threading.Lock()  # held while QEMU is started: what has half begun cannot be stopped

    def mark(self, what):
        """Notes how long after the start of QEMU this was."""
        self.times_ms[what] = round((time.monotonic() - self.spawned) * 1000, 1)

    def close(self):
        with self.starting:
            if self.tap:
                self.tap.close()
            self.vm.stop()


class Family:
    """Use with `with`, inside a lab that is up and a fleet without an image. All VMs' network cards meet in a bridge of
    their own, in which this machine has an address."""

    def __init__(self, lab, fleet, *, number=0, mb=192, cpus=1, kernel=None, shim=True, devices=(),
                 spare_modules=(), kernel_args=()):
        """@param shim  start the parent with the preload library, to freeze it by write protection
        @param devices  that each VM has beside the usual ones
        @param spare_modules  of the kernel, that lie ready in the VM; kernel_args: of its command line"""
        self.lab, self.fleet, self.number, self.shim = lab, fleet, number, shim
        self.kernel = kernel or bootlib.fetch_kernel()
        self.mb, self.cpus, self.devices = mb, cpus, devices
        self.spare_modules, self.kernel_args = spare_modules, kernel_args
        self.machine = vmlib.machine_args(mb, cpus, devices=devices)
        self.parent_machine = vmlib.machine_args(mb, cpus, shared=shim, devices=devices)
        self.descriptor = fleet.dir / f"family{number}.descriptor"
        self.parent, self.clones, self.image = None, [], None
        self.freezer = self.memtap = None  # sockets: the parent's monitor for memserver, the memtap of one that is a clone
        self.pool = ThreadPoolExecutor()
        self.ending, self.requests = False, set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ending = True  # clones that have not begun do not begin
        for clone in self.clones:
            clone.close()
        for request in list(self.requests):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)  # nobody is left to answer
        if self.parent:
            self.parent.stop()
        # Not before: a VM dies with the thread that started it.
        self.pool.shutdown()

    def identity(self, vm_id):
        return vmlib.identity_of(self.number, vm_id)

    def _nic(self, vm_id):
        return vmlib.Nic(f"vm{self.number}-{vm_id}", self.identity(vm_id).mac, self.lab.vm_ns, "br0")

    def boot(self):
        """Boots the parent; returns when its agent is there."""
        initramfs = bootlib.make_agent_initramfs(self.kernel, self.fleet.opt.build / AGENT,
                                                 self.fleet.dir / "agent-initramfs.gz", self.spare_modules)
        self.freezer = self.fleet.dir / f"freezer{self.number}.sock"
        preload = ["env", f"LD_PRELOAD={(self.fleet.opt.build / SHIM).absolute()}",
                   f"SF_SHIM_SOCKET={self.fleet.dir / f'shim{self.number}.sock'}"] if self.shim else []
        self.parent = vmlib.Vm(f"parent{self.number}", self.fleet.dir, self.parent_machine,
                               boot=vmlib.boot_args(self.kernel, initramfs, self.identity(0), self.kernel_args), nic=self._nic(0),
                               prefix=preload, extra=["-qmp", f"unix:{self.freezer},server=on,wait=off"])
        self.parent.start()
        self.parent.wait_ready()
        return self.parent

    def fork(self, nb_clones, timeout_s=120.0):
        """Freezes the parent and returns when its descriptor is there: the parent runs on, memtaps may be started, and
        wait until the memserver has scanned the memory (fleet.wait_server)."""
        self.parent.ask_fork(nb_clones)
        self._freeze(timeout_s)

    def fork_for_guest(self, timeout_s=120.0):
        """As `fork`, when a program in the parent calls sf_clone. @return the number of clones that it wants"""
        nb_clones = self.parent.wait_clone_call(timeout_s)
        self._freeze(timeout_s)
        return nb_clones

    def _freeze(self, timeout_s):
        self.descriptor.unlink(missing_ok=True)
        # Only write protection knows what the guest writes after it said what is free.
        more = ("--free-pages", self.parent.dir / "free.sock") if self.shim else ()
        try:
            server = self.launch_server(more)
            self.fleet.wait_for(server, self.descriptor.exists, "frozen", timeout_s, host=0)
        except fleetlib.FleetError as error:
            with contextlib.suppress(VmError):  # of a parent that is gone the memserver says more
                self.parent.cancel_fork("the memory could not be frozen")
            raise VmError(str(error)) from error
        self.fleet.info = {"descriptor": str(self.descriptor)}  # all that memtaps need
        self.parent.go_on()
        self.image = image_of(self.fleet.opt.build, self.descriptor)

    def launch_server(self, extra=()):
        """Starts the memserver that freezes the parent."""
        memtap = ("--memtap", self.memtap) if self.memtap else ()
        return self.fleet.launch_server(("--qemu", self.freezer, "--descriptor", self.descriptor, *memtap, *extra))

    def spawn(self, clone_id, host, postcopy=True, forkable=False):
        """Starts one clone on a host whose memtap runs; returns at once.
        @param forkable  it has a monitor for a memserver, that it can be a parent itself
        @param postcopy  its memory comes by migration; else it maps memtap's image, shared with the other such clones
                         of the host, and faults by userfaultfd"""
        memtap, name = self.fleet.socket_path(host).absolute(), f"clone{self.number}-{clone_id}"
        freezer = self.fleet.dir / f"freezer-{name}.sock" if forkable else None
        extra = ["-qmp", f"unix:{freezer},server=on,wait=off"] if forkable else []
        if postcopy:
            vm = vmlib.Vm(name, self.fleet.dir, self.machine, nic=self._nic(clone_id), extra=extra)
        else:
            preload = ["env", f"LD_PRELOAD={(self.fleet.opt.build / CLONE_SHIM).absolute()}", f"SF_CLONE_SOCKET={memtap}"]
            vm = vmlib.Vm(name, self.fleet.dir, vmlib.machine_args(self.mb, self.cpus, image=f"{memtap}.image",
                                                                       devices=self.devices),
                          nic=self._nic(clone_id), prefix=preload, postcopy=False, extra=extra)
        clone = Clone(vm, self.identity(clone_id), host, self.image)
        clone.postcopy, clone.freezer = postcopy, freezer
        self.clones.append(clone)
        clone.spawned = time.monotonic()
        with clone.starting:
            self._check_not_ending()
            vm.start()
        clone.tap = hand_over(vm, memtap, self.image, POSTCOPY if postcopy else PRECOPY)
        clone.mark("handed_over")
        if not postcopy:
            vm.resume()
        return clone

    def end_clones(self):
        for clone in self.clones:
            clone.close()
        self.clones.clear()

    def end_fork(self):
        """Clones, memtaps and memserver end, and the parent can be forked again. Raises if one that was not killed
        does not end well."""
        self.end_clones()
        for process in [*self.fleet.memtaps.values(), self.fleet.server]:
            if process is None or process.killed:
                continue
            complaint = process.stop()
            if complaint or process.status() != 0:
                raise VmError(complaint or f"{process.name} ended with status {process.status()}, not 0")

    def record_first_clone(self, record, postcopy=True):
        """Has a clone answer, alone, and ends it and its memtap: `record` says then which pages it had.
        @return  its faults until it answered"""
        written = self.fleet.dir / "memtap-record"  # root's: in the sandbox no other folder will do
        self.fleet.start_memtap(1, extra=("--record", written))
        self.fleet.wait_server()
        first = self.settle(self.spawn(1, 1, postcopy))
        faults = self.guest_counters(first).get("faults")
        self.end_clones()
        if complaint := self.fleet.memtaps[1].stop():  # it writes the rest of the record
            raise VmError(complaint)
        shutil.copyfile(written, record)
        return faults

    def add_working_set(self, record):
        """Puts a record into the descriptor of the fork: before memtaps start."""
        bootlib.run([self.fleet.opt.build / DESCRIPTOR, "add-working-set", self.descriptor, record])

    def recover(self, clone, timeout_s=20.0):
        """Has a clone whose memtap ended taken over by the one that runs on its host now; the clone goes on when it
        has said what it has."""
        clone.vm.reopen_incoming(timeout_s)
        clone.tap.close()
        clone.tap = hand_over(clone.vm, self.fleet.socket_path(clone.host), clone.image, recover=True)
        clone.vm.wait_migration("postcopy-active", "completed", timeout_s=timeout_s)

    def settle(self, clone, timeout_s=60.0):
        """Makes the clone somebody of its own and asks its web server who it is."""
        clone.vm.become(clone.identity, timeout_s)
        clone.mark("ready")
        clone.answer = self.ask_web(clone.identity, timeout_s)
        clone.mark("first_answer")
        return clone

    def _check_not_ending(self):
        if self.ending:
            raise VmError("given up: the family ends")

    def ask_web(self, identity, timeout_s=30.0):
        """What the web server of a VM says, as a dict."""
        url = f"http://{identity.address}/"
        deadline = time.monotonic() + timeout_s
        request = lablib.socket_in(self.lab.vm_ns)
        self.requests.add(request)
        try:
            self._check_not_ending()
            request.settimeout(timeout_s)
            request.connect((identity.address, 80))
            return vmlib.ask_web(request, identity.address, max(deadline - time.monotonic(), 0.001))
        except (OSError, ValueError) as error:
            raise VmError(f"no answer from {url}: {error}") from error
        finally:
            self.requests.discard(request)
            request.close()

    def guest_counters(self, clone):
        """Memtap's counters of this clone; {} before its QEMU is started and once it is gone."""
        process = clone.vm.process
        if process is None:
            return {}
        prefix = self.fleet.prefix(clone.host)
        guests = fleetlib.telemetry(prefix, "/memtap/guests") or {}
        ids = [guest for guest, pid in guests.items() if pid == process.pid]
        return (fleetlib.telemetry(prefix, f"/memtap/guest,{ids[0]}") or {}) if ids else {}


def verify(vm, timeout_s=300.0):
    """Has the guest check its pattern memory: {"bad": 0, "pages": ...}."""
    return vmlib.fields(vm.channel.ask("VERIFY", "VERIFIED", timeout_s))


def settled_ram_pss_kib(clones):
    """Of all of them, once memtap has given up its own part of shared pages, which it does every second."""
    time.sleep(2.5)
    return sum(ram_pss_kib(clone) for clone in clones)


def ram_pss_kib(clone):
    """Of the RAM of a clone that maps memtap's image: what it has alone, and its part of what it shares."""
    mapping, total = "", 0
    for line in pathlib.Path(f"/proc/{clone.vm.process.pid}/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            mapping = line
        elif line.startswith("Pss:") and "snowfabric-image" in mapping:
            total += int(line.split()[1])
    return total


def descriptor_bytes(path):
    return pathlib.Path(path).stat().st_size
