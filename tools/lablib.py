# SPDX-License-Identifier: BSD-3-Clause
"""Virtual hosts on one machine: network namespaces, veth pairs and one bridge.

Host 0 is the server's. In every host namespace the port is `eth0`; in the bridge's namespace the other
end of host k is `h<k>`. With `tap` each host also has a kernel tap device `tap0`, bridged to its eth0.
"""
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

MIN_MTU, MAX_MTU = 1280, 9500
MAX_HOSTS = 250
BRIDGE = "br0"
PORT = "eth0"
TAP = "tap0"


class LabError(Exception):
    """Says what failed, on what, and what to do."""


def run(args, check=True):
    """Runs a command; its error output becomes the exception's text."""
    done = subprocess.run(args, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise LabError(f"`{' '.join(args)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def exit_on_signals():
    """The first SIGINT, SIGTERM or SIGHUP ends the tool through its `finally`s; later ones do not disturb them."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(signum, _frame):
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + signum)

    for each in signals:
        signal.signal(each, end)


def require_root():
    if os.geteuid() != 0:
        raise LabError("needs root: it makes network namespaces and raw sockets (try sudo)")
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            raise LabError(f"`{tool}` is missing: run tools/setup")


def namespaces():
    """Names of all network namespaces."""
    return [line.split()[0] for line in run(["ip", "netns", "list"]).splitlines() if line.strip()]


def host_mac(host):
    """MAC of a host's port: fixed and locally administered."""
    return f"02:53:46:00:00:{host:02x}"


class Lab:
    """One bridge and `nb_hosts` + 1 hosts. `with Lab(...)` makes it and removes it."""

    def __init__(self, name="sf", nb_hosts=4, mtu=9000, tap=False):
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,31}", name):
            raise LabError(f"lab name {name!r}: letters, digits and '-' only, at most 32")
        if not 1 <= nb_hosts <= MAX_HOSTS:
            raise LabError(f"{nb_hosts} hosts: 1 to {MAX_HOSTS} are possible")
        if not MIN_MTU <= mtu <= MAX_MTU:
            raise LabError(f"MTU {mtu}: {MIN_MTU} to {MAX_MTU} are possible")
        self.name, self.nb_hosts, self.mtu, self.tap = name, nb_hosts, mtu, tap

    @property
    def bridge_ns(self):
        return f"{self.name}-br"

    @property
    def vm_ns(self):
        """Where VMs have their own network, apart from the fabric's."""
        return f"{self.name}-vm"

    def ns(self, host):
        return f"{self.name}-h{host}"

    def existing(self):
        """This lab's namespaces as they are now, whatever number of hosts it was made with."""
        ours = re.compile(re.escape(self.name) + r"-(br|vm|h\d+)")
        return sorted(ns for ns in namespaces() if ours.fullmatch(ns))

    def up(self):
        require_root()
        if self.existing():
            raise LabError(f"lab '{self.name}' exists already; remove it with: "
                           f"tools/lab down --name {self.name}")
        try:
            self._make_bridge()
            for host in range(self.nb_hosts + 1):
                self._make_host(host)
            self._wait_forwarding()
        except BaseException:
            self.down()
            raise
        return self

    def down(self):
        """Removes every namespace of this lab and what runs inside. Idempotent."""
        require_root()
        for ns in self.existing():
            stop_processes(ns)
            run(["ip", "netns", "delete", ns])

    def exec_args(self, host, args):
        """The command line that runs `args` on a host."""
        return ["ip", "netns", "exec", self.ns(host), *map(str, args)]

    def tc(self, *args):
        """Runs tc in the bridge's namespace: `tc("qdisc", "add", "dev", "h3", ...)`."""
        run(["tc", "-n", self.bridge_ns, *map(str, args)])

    def add_vm_net(self, address):
        """A bridge for VMs' tap devices, with the address by which this machine talks to them. After up()."""
        self._add_ns(self.vm_ns)
        self._make_bridge(self.vm_ns, "02:53:46:04:00:00")
        run(["ip", "-n", self.vm_ns, "address", "add", address, "dev", BRIDGE])

    def __enter__(self):
        return self.up()

    def __exit__(self, *_):
        self.down()

    def _add_ns(self, ns):
        run(["ip", "netns", "add", ns])
        # No router solicitations and the like: the wire carries our frames and nothing else.
        for scope in ("all", "default"):
            run(["ip", "netns", "exec", ns, "sysctl", "-qw",
                 f"net.ipv6.conf.{scope}.disable_ipv6=1"], check=False)
        run(["ip", "-n", ns, "link", "set", "lo", "up"])

    def _make_bridge(self, ns=None, mac="02:53:46:02:00:00"):
        if ns is None:
            ns = self.bridge_ns
            self._add_ns(ns)
        run(["ip", "-n", ns, "link", "add", BRIDGE, "address", mac, "mtu", str(self.mtu),
             "type", "bridge", "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0"])
        run(["ip", "-n", ns, "link", "set", BRIDGE, "up"])

    def _make_host(self, host):
        ns, port, br = self.ns(host), f"h{host}", self.bridge_ns
        self._add_ns(ns)
        one_queue = ["numtxqueues", "1", "numrxqueues", "1"]
        run(["ip", "-n", br, "link", "add", port, "address", f"02:53:46:01:00:{host:02x}",
             "mtu", str(self.mtu), *one_queue, "type", "veth",
             "peer", "name", PORT, "netns", ns, "address", host_mac(host),
             "mtu", str(self.mtu), *one_queue])
        run(["ip", "-n", br, "link", "set", port, "master", BRIDGE, "up"])
        run(["ip", "-n", ns, "link", "set", PORT, "up"])
        if self.tap:
            self._make_tap(host)

    def _make_tap(self, host):
        """A kernel tap device bridged to eth0; the DPDK process opens it by name."""
        ns = self.ns(host)
        self._make_bridge(ns, f"02:53:46:03:00:{host:02x}")
        run(["ip", "-n", ns, "tuntap", "add", "dev", TAP, "mode", "tap", "multi_queue"])
        run(["ip", "-n", ns, "link", "set", TAP, "mtu", str(self.mtu), "master", BRIDGE, "up"])
        run(["ip", "-n", ns, "link", "set", PORT, "master", BRIDGE])

    def release_tap(self, host):
        """Call while a DPDK process starts: it gives the tap device its own MAC, and a bridge keeps to itself what is
        sent to a port's MAC. Forgetting that entry makes it hand those frames to the process."""
        shown = run(["bridge", "-n", self.ns(host), "fdb", "show", "dev", TAP])
        for mac in re.findall(rf"^(\S+) master {BRIDGE} permanent", shown, re.MULTILINE):
            run(["bridge", "-n", self.ns(host), "fdb", "del", mac, "dev", TAP, "master"], check=False)

    def _wait_forwarding(self, timeout_s=10.0):
        """A port that is not forwarding yet drops frames: the first HELLO would be lost."""
        deadline = time.monotonic() + timeout_s
        want = self.nb_hosts + 1
        while time.monotonic() < deadline:
            state = run(["bridge", "-n", self.bridge_ns, "link", "show"])
            if state.count("state forwarding") == want:
                return
            time.sleep(0.02)
        raise LabError(f"bridge ports of lab '{self.name}' not forwarding after {timeout_s:.0f} s:\n{state}")


def socket_in(ns):
    """A TCP socket inside a namespace, for this process outside."""
    made = []

    def make():  # a thread has a network namespace of its own
        with open(f"/run/netns/{ns}", "rb") as file:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(file.fileno(), 0x40000000) != 0:  # CLONE_NEWNET
                made.append(LabError(f"setns {ns}: {os.strerror(ctypes.get_errno())}"))
                return
        made.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not made:
        raise LabError(f"there is no namespace {ns}")
    if isinstance(made[0], LabError):
        raise made[0]
    return made[0]


def pids_in(ns):
    return [int(pid) for pid in run(["ip", "netns", "pids", ns], check=False).split()]


def stop_processes(ns, grace_s=2.0):
    """SIGTERM, then SIGKILL, to what still runs inside a lab's namespace."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids_in(ns):
            try:
                os.kill(pid, sig)
            except ProcessLookupError:
                pass
        deadline = time.monotonic() + grace_s
        while pids_in(ns):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return
