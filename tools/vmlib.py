# SPDX-License-Identifier: BSD-3-Clause
"""VMs that fork, under QEMU: their command line, control socket, console, guest channel and network.

What a clone must have exactly as its parent is `machine_args`. All else is this VM's own: sockets, files, tap device, MAC,
and for a parent what it boots from. The descriptor has the parent's whole command line, of which clones here use nothing.
"""
import dataclasses
import pathlib
import secrets
import shutil
import time

import bootlib
import fleetlib
from bootlib import VmError
from vmchannel import Channel, LineSocket, Qmp, VmTimeout, ask_web, fields  # noqa: F401 (for those who use a VM)

QEMU = "qemu-system-x86_64"
PORT_NAME = "org.snowfabric.0"
FREE_PORT_NAME = "org.snowfabric.free.0"
PROTOCOL = "1"  # docs/guest-channel.md
MIN_MB = 128  # below: the kernel has no room
MAX_CLONES = 4096
MAX_FAMILIES = 64
HOST_IP = "10.64.255.254/10"  # free in the network of identity_of, for the host's end of a bridge
# What the machine's devices call their back ends.
CHANNEL, FREE, CONSOLE, NETDEV = "agent", "free", "console", "net0"


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who a VM of a family is. id 0: the parent."""
    id: int
    hostname: str
    mac: str
    ip: str  # address/prefix
    seed: str = dataclasses.field(repr=False)

    @property
    def address(self):
        return self.ip.split("/")[0]

    def ret(self, has_network=True):
        """The line that makes a clone this one."""
        network = f"mac={self.mac} ip={self.ip} " if has_network else ""
        return f"RET {self.id} hostname={self.hostname} {network}seed={self.seed}"


def identity_of(family, vm_id):
    """Identity of one VM of a family, a parent and its clones: the same each time but for the seed. All families
    share the network 10.64.0.0/10; the last addresses of each /16 are free for hosts."""
    if not 0 <= family < MAX_FAMILIES:
        raise VmError(f"family {family}: 0 to {MAX_FAMILIES - 1} are possible")
    if not 0 <= vm_id <= MAX_CLONES:
        raise VmError(f"clone {vm_id}: 0 to {MAX_CLONES} are possible")
    high, low = divmod(vm_id + 1, 256)
    return Identity(vm_id, f"sf{family}-{vm_id}", f"02:53:47:{family:02x}:{vm_id >> 8:02x}:{vm_id & 255:02x}",
                    f"10.{64 + family}.{high}.{low}/10", secrets.token_hex(64))


@dataclasses.dataclass(frozen=True)
class Nic:
    """How a VM's network card is connected: a tap device that the VM makes and removes, in a namespace (None: this
    one), in a bridge of that namespace (None: in none)."""
    tap: str
    mac: str
    netns: str | None = None
    bridge: str | None = None

    def _ip(self, *args):
        bootlib.run(["ip", *(["-n", self.netns] if self.netns else []), *args])

    def up(self):
        self._ip("tuntap", "add", "dev", self.tap, "mode", "tap")
        try:
            if self.bridge:
                self._ip("link", "set", self.tap, "master", self.bridge)
            self._ip("link", "set", self.tap, "up")
        except VmError:
            self.down()
            raise

    def down(self):
        try:
            self._ip("link", "delete", self.tap)
        except VmError:
            pass  # its namespace went first, and the device with it

    def exec_prefix(self):
        return ["ip", "netns", "exec", self.netns] if self.netns else []


def machine_args(mb=192, cpus=1, nic=True, shared=False, image=None, devices=()):
    """The machine, without a disk: what parent and clones have in common, to the letter.
    @param shared  its RAM is a memory file: a parent's, so that it can be frozen by write protection. To a clone the
                   machine is the same without.
    @param image  the RAM of a clone is this file of memtap's, mapped privately
    @param devices  more of them, as QEMU's -device takes them"""
    if mb < MIN_MB:
        raise VmError(f"{mb} MiB of memory: the guest needs {MIN_MB}")
    ram = (["-object", f"memory-backend-memfd,id=pc.ram,size={mb}M,share=on"] if shared else
           ["-object", f"memory-backend-file,id=pc.ram,size={mb}M,mem-path={image},share=off"] if image else [])
    args = [*ram, "-M", "pc,memory-backend=pc.ram" if ram else "pc", "-accel", "tcg", "-cpu", "qemu64",
            "-m", str(mb), "-smp", str(cpus),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-serial", f"chardev:{CONSOLE}",
            "-device", "virtio-serial-pci,addr=0x3",
            "-device", f"virtserialport,chardev={CHANNEL},name={PORT_NAME}",
            "-device", f"virtserialport,chardev={FREE},name={FREE_PORT_NAME}"]
    if nic:
        args += ["-device", f"virtio-net-pci,addr=0x4,netdev={NETDEV},romfile="]
    for device in devices:
        args += ["-device", device]
    return args


def has_nic(args):
    """Whether a machine has a network card."""
    return any(f"netdev={NETDEV}" in arg.split(",") for arg in args)


def boot_args(kernel, initramfs, identity=None, kernel_args=()):
    """What a parent boots; a clone boots nothing."""
    line = " ".join(("console=ttyS0 quiet panic=-1 ipv6.disable=1", *kernel_args))
    if identity:
        line += f" SF_HOSTNAME={identity.hostname} SF_IP={identity.ip}"
    return ["-kernel", str(bootlib.vmlinuz(kernel)), "-initrd", str(initramfs), "-append", line]


def instance_args(name, folder, nic=None, incoming=False, postcopy=True):
    """One VM's own part of the command line.
    @param incoming  a clone; postcopy: its memory comes the same way as its state"""
    args = ["-name", f"{name},debug-threads=on",
            "-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off",
            "-chardev", f"file,id={CONSOLE},path={folder}/console.log",
            "-chardev", f"socket,id={CHANNEL},path={folder}/agent.sock,server=on,wait=off",
            "-chardev", f"socket,id={FREE},path={folder}/free.sock,server=on,wait=off"]
    if nic:
        args += ["-netdev", f"tap,id={NETDEV},ifname={nic.tap},script=no,downscript=no,vhost=off",
                 # Not with the device: that line is the same for all.
                 "-global", f"virtio-net-device.mac={nic.mac}"]
    if incoming:
        args += [*(["-global", "migration.x-postcopy-ram=on"] if postcopy else []),
                 "-global", "migration.x-events=on", "-incoming", f"unix:{folder}/incoming.sock"]
    return args


def console_tail(path, lines=15):
    try:
        text = pathlib.Path(path).read_text(errors="replace").replace("\r", "")
    except FileNotFoundError:
        text = ""
    return "\n".join("  | " + line for line in text.splitlines()[-lines:]) or "  | (no console output)"


class Vm:
    """One VM: a parent that boots (`boot`), or a clone that waits for its state at `incoming`. Use with `with`.

    A clone's network card is cut off from the start until `become`, for it wakes with its parent's MAC.
    """

    def __init__(self, name, folder, machine, *, boot=None, nic=None, prefix=(), extra=(), postcopy=True):
        """@param folder  an existing folder; the VM's files go to one of its own in there
        @param machine  machine_args; boot: boot_args, None for a clone
        @param prefix   put before QEMU's command line, as ["env", "LD_PRELOAD=..."]; extra: behind it
        @param postcopy  a clone's memory comes by the migration, else by its preload library"""
        if has_nic(machine) != (nic is not None):
            raise VmError(f"VM {name}: the machine has {'a' if has_nic(machine) else 'no'} network card, "
                          f"so a Nic is {'needed' if has_nic(machine) else 'not possible'}")
        self.name, self.nic, self.is_clone = name, nic, boot is None
        self.dir = pathlib.Path(folder).absolute() / name
        self.console, self.incoming = self.dir / "console.log", self.dir / "incoming.sock"
        self.args = [*(nic.exec_prefix() if nic else []), *prefix, QEMU, *machine, *(boot or []),
                     *instance_args(name, self.dir, nic, self.is_clone, postcopy), *extra]
        self.process = self.qmp = self.channel = None
        self.has_tap, self.nb_recoveries = False, 0
        self.guest_asked = False  # for the last fork, by itself

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def start(self, timeout_s=20.0):
        """Starts QEMU. A clone then waits to be sent its state; send it only after this returned."""
        if shutil.which(QEMU) is None:
            raise VmError(f"{QEMU} is missing: run tools/setup")
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir()
        if self.nic:
            self.nic.up()
            self.has_tap = True
        try:
            self.process = fleetlib.Process(self.name, self.args, self.dir / "qemu.log")
            self._connect(timeout_s)
        except BaseException:
            self.stop()
            raise
        return self

    def _connect(self, timeout_s):
        try:
            self.qmp = Qmp(self.dir / "qmp.sock", timeout_s, self.is_running)
            if self.is_clone and self.nic:
                # By the netdev's name: the card's own switch is overwritten by the parent's state.
                self.qmp("set_link", name=NETDEV, up=False)
            self.channel = Channel(self.dir / "agent.sock", timeout_s, self.is_running)
        except VmError as error:
            raise self.failure(str(error)) from error

    def is_running(self):
        return self.process is not None and self.process.status() is None

    def failure(self, what):
        """An error that also says what QEMU and the guest said last."""
        ended = "" if self.is_running() or not self.process else f" (QEMU ended, status {self.process.status()})"
        log = self.process.tail() if self.process else ""
        return VmError(f"VM {self.name}: {what}{ended}\n{log}\n{console_tail(self.console)}")

    def wait_ready(self, timeout_s=120.0):
        """Blocks until the agent of a booting VM has reported."""
        try:
            version = self.channel.expect("HELLO", timeout_s)
        except VmError as error:
            raise self.failure(str(error)) from error
        if version != PROTOCOL:
            raise VmError(f"VM {self.name}: its agent speaks protocol {version}, we speak {PROTOCOL}")

    def wait_console(self, text, timeout_s):
        """Blocks until the console has shown `text`."""
        deadline = time.monotonic() + timeout_s
        while text not in (self.console.read_text(errors="replace") if self.console.exists() else ""):
            if not self.is_running() or time.monotonic() > deadline:
                raise self.failure(f"{text!r} did not come on the console within {timeout_s:.0f} s")
            time.sleep(0.002)

    def wait_migration(self, *statuses, timeout_s=20.0):
        """Blocks until a clone's migration is in one of these states, as QEMU calls them: "postcopy-active" while its
        memory comes, "postcopy-paused" when its memtap is gone. Asks nothing of QEMU's main loop, which may itself
        wait for a page."""
        if not self.qmp.wait_migration(statuses, timeout_s):
            raise self.failure(f"its migration is {self.qmp.migration} after {timeout_s:.0f} s, not {statuses[0]}")

    def resume(self, timeout_s=20.0):
        """Lets a clone run that got its state by precopy: it is stopped then, as its parent was."""
        self.wait_migration("completed", timeout_s=timeout_s)
        self.qmp("cont")

    def reopen_incoming(self, timeout_s=20.0):
        """Has a clone that lost its memtap, and pauses for that, wait for another at `incoming`, a new socket."""
        self.wait_migration("postcopy-paused", timeout_s=timeout_s)
        self.nb_recoveries += 1
        path = self.dir / f"recover{self.nb_recoveries}.sock"
        self.qmp("migrate-recover", ahead=True, uri=f"unix:{path}")
        self.incoming = path

    def ask_fork(self, nb_clones, timeout_s=30.0):
        """Has the guest ask for clones: from here on it waits for `go_on`, its clones for `become`."""
        asked = self.channel.ask(f"FORK {nb_clones}", "CLONE", timeout_s)
        if asked != str(nb_clones):
            raise VmError(f"VM {self.name}: asked to fork to {nb_clones} it says CLONE {asked}")
        self.guest_asked = False

    def wait_clone_call(self, timeout_s=30.0):
        """Blocks until a program in the guest has called sf_clone: how many clones it wants. From here on as after
        `ask_fork`. The host must ask nothing of the guest meanwhile."""
        asked = self.channel.expect("CLONE", timeout_s)
        if not (asked.isdecimal() and 1 <= int(asked) <= MAX_CLONES):
            raise VmError(f"VM {self.name}: the guest says CLONE {asked}; 1 to {MAX_CLONES} are possible")
        self.guest_asked = True
        return int(asked)

    def go_on(self, timeout_s=30.0):
        """Tells the parent of a fork that it is the parent."""
        if self.channel.ask("RET 0", "READY", timeout_s) != "0":
            raise VmError(f"VM {self.name} does not know that it is the parent")

    def cancel_fork(self, why, timeout_s=30.0):
        """Ends a fork for which there is no descriptor: the parent runs on as if it had not asked."""
        self.channel.send(f"FAIL {why}")
        if not self.guest_asked:
            self.channel.line(timeout_s)  # the agent's ERROR about its FORK

    def become(self, identity, timeout_s=60.0):
        """Makes a clone somebody of its own and connects its network card."""
        if self.channel.ask(identity.ret(self.nic is not None), "IDENTIFIED", timeout_s) != str(identity.id):
            raise VmError(f"VM {self.name} did not become clone {identity.id}")
        if self.nic:
            self.qmp("set_link", name=NETDEV, up=True)
        if self.channel.ask("ANNOUNCE", "READY", timeout_s) != str(identity.id):
            raise VmError(f"VM {self.name} did not become clone {identity.id}")

    def stop(self, timeout_s=5.0):
        """Ends QEMU, politely if it listens, and removes tap device and sockets; logs stay in `dir`. Idempotent."""
        if self.qmp and self.is_running():
            try:
                self.qmp.timeout_s = timeout_s
                self.qmp("quit")
            except VmError:
                pass
        self.kill(timeout_s)

    def kill(self, timeout_s=0.0):
        """As stop, without asking QEMU first; it gets `timeout_s` to end by itself."""
        if self.process and self.process.wait(timeout_s) is None:
            self.process.kill()
        for end in (self.qmp, self.channel):
            if end:
                end.close()
        self.process = self.qmp = self.channel = None
        for path in self.dir.glob("*.sock"):
            path.unlink()
        if self.has_tap:
            self.nic.down()
            self.has_tap = False
