# SPDX-License-Identifier: BSD-3-Clause
"""A memserver, its memtaps and guests on the hosts of a lab: started, watched, asked, and cleaned up."""
import contextlib
import ctypes
import dataclasses
import fcntl
import json
import mmap
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

PAGE = 4096
# fabric/wire.hpp: Ethernet header, common header and page header of every PAGE frame.
PAGE_HEADER_BYTES = 58
ETHERNET_HEADER_BYTES = 14
DPDK_RUN = pathlib.Path("/var/run/dpdk")
SERVER = "memserver-dpdk/memserver-dpdk"
MEMTAP = "memtap-dpdk/memtap-dpdk"
GUEST = "tools/sf-guest"


class FleetError(Exception):
    """Says what failed, on what, and what to do."""


def fragments(mtu):
    """Frames a page takes at this MTU (docs/wire-format.md, the stride rule)."""
    for n in range(1, 9):
        stride = ((PAGE + n - 1) // n + 7) // 8 * 8
        if stride + PAGE_HEADER_BYTES - ETHERNET_HEADER_BYTES <= mtu:
            return n
    raise FleetError(f"MTU {mtu} is too small for a page in 8 frames")


def page_wire_bytes(mtu):
    return fragments(mtu) * PAGE_HEADER_BYTES + PAGE


def count_pages(image):
    """(pages, non-zero pages) of an image file, counted here and not asked of the server."""
    size = os.path.getsize(image)
    if size == 0 or size % PAGE != 0:
        raise FleetError(f"{image}: {size} bytes; an image is a whole number of {PAGE}-byte pages")
    zero = bytes(PAGE)
    with open(image, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as data:
        nb_zero = sum(data[at:at + PAGE] == zero for at in range(0, size, PAGE))
    return size // PAGE, size // PAGE - nb_zero


def telemetry(prefix, command, timeout_s=5.0):
    """Asks a DPDK process; None if it is not there."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(timeout_s)
            sock.connect(str(DPDK_RUN / prefix / "dpdk_telemetry.v2"))
            limit = json.loads(sock.recv(1024))["max_output_len"]
            sock.send(command.encode())
            return json.loads(sock.recv(limit))[command.split(",")[0]]
    except (OSError, ValueError, KeyError):
        return None


def _die_with_parent():
    # If this tool is killed outright, what it started goes with it.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Process:
    """A child with its own log file."""

    def __init__(self, name, args, log):
        self.name, self.args, self.log = name, [str(a) for a in args], pathlib.Path(log)
        self.killed = False
        self.began = time.monotonic()
        with open(self.log, "ab") as out:
            self.popen = subprocess.Popen(self.args, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                          start_new_session=True, preexec_fn=_die_with_parent)

    @property
    def pid(self):
        return self.popen.pid

    def status(self):
        """Exit status, None while it runs."""
        return self.popen.poll()

    def wait(self, timeout_s):
        """Exit status, None after the time-out."""
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self):
        """SIGKILL, as a crash would."""
        self.killed = True
        self.popen.kill()
        self.popen.wait()

    def stop(self, timeout_s=10.0):
        """SIGTERM; SIGKILL if it does not end in time. Returns what was wrong with the end, or None."""
        if self.status() is None:
            self.popen.terminate()
        if self.wait(timeout_s) is None:
            self.kill()
            return f"{self.name} (pid {self.pid}) ignored SIGTERM for {timeout_s:.0f} s"
        return None

    def tail(self, lines=12):
        text = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join(f"  {self.name} | {line}" for line in text) or f"  {self.name} | (no output)"


@dataclasses.dataclass
class Options:
    """How a fleet runs."""
    build: pathlib.Path
    image: pathlib.Path | None  # None: the server freezes a parent
    profile: str = "net_af_packet"
    device: str = "eth0"
    loss: float = 0.0
    seed: int = 1
    server_args: tuple = ()
    memtap_args: tuple = ()
    name: str = ""  # tells fleets on one lab apart
    wrap: tuple = ()  # the command that runs memserver and memtaps


class Fleet:
    """Processes on a lab's hosts: server on host 0, one memtap each on the others. Use with `with`. Fleets of different
    names may share a lab whose ports are kernel interfaces: what comes to a host all its processes hear."""

    def __init__(self, lab, options):
        self.lab, self.opt = lab, options
        run_root = "/run" if os.access("/run", os.W_OK) else None
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="snowfabric-", dir=run_root))
        self.server, self.memtaps, self.guests, self.ended, self.others = None, {}, [], [], []
        self.info, self.info_path, self.gate = {}, self.dir / "server.json", None
        for program in (SERVER, MEMTAP, GUEST):
            if not os.access(options.build / program, os.X_OK):
                shutil.rmtree(self.dir)
                raise FleetError(f"{options.build / program} is not there: build first (ninja -C {options.build})")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def prefix(self, host):
        return f"{self.lab.name}{self.opt.name and '-' + self.opt.name}-h{host}"

    def start_server(self, timeout_s=60.0, extra=()):
        self.launch_server(extra)
        return self.wait_server(timeout_s)

    def launch_server(self, extra=()):
        """Returns at once: wait_server() waits until it answers and reads its report."""
        self.info_path.unlink(missing_ok=True)
        self.info = {}
        args = [*self.opt.wrap, self.opt.build / SERVER, *self._port_args(), "--info", self.info_path, *self._loss_args(0),
                "--stats", self.dir / "server-stats.json", *self.opt.server_args, *extra,
                *([self.opt.image] if self.opt.image else []), "--", f"--file-prefix={self.prefix(0)}"]
        self.server = self._start("memserver", 0, args)
        return self.server

    def wait_server(self, timeout_s=60.0):
        self.wait_for(self.server, self.info_path.exists, "ready", timeout_s, host=0)
        self.info = json.loads(self.info_path.read_text())
        return self.server

    def start_memtap(self, host, timeout_s=30.0, extra=(), image_index=0):
        self.launch_memtap(host, extra, image_index)
        self._wait_memtap(host, timeout_s)
        return self.memtaps[host]

    def start_memtaps(self, hosts, timeout_s=30.0):
        """At once, so that they share the transmission of a working set."""
        for host in hosts:
            self.launch_memtap(host)
        for host in hosts:
            self._wait_memtap(host, timeout_s)

    def _wait_memtap(self, host, timeout_s):
        self.wait_for(self.memtaps[host], self.socket_path(host).exists, "listening", timeout_s, host)

    def launch_memtap(self, host, extra=(), image_index=0):
        """Returns at once, before it has joined."""
        path = self.socket_path(host)
        path.unlink(missing_ok=True)
        presence = self.dir / f"presence-{host}"
        presence.mkdir(exist_ok=True)
        if "descriptor" in self.info:
            what = ["--descriptor", self.info["descriptor"]]
        else:
            image = self.info["images"][image_index]
            what = ["--image-id", image["image_id"], "--epoch", image["epoch"], "--server", self.info["server_mac"]]
            what += ["--hash-root", image["hash_root"]] if "hash_root" in image else []
        args = [*self.opt.wrap, self.opt.build / MEMTAP, *self._port_args(), *what, "--socket", path,
                "--presence-dir", presence, "--stats", self.dir / f"memtap{host}-stats.json",
                *self._loss_args(host), *self.opt.memtap_args, *extra,
                "--", f"--file-prefix={self.prefix(host)}"]
        self.memtaps[host] = self._start(f"memtap{host}", host, args)

    def start_guest(self, guest_id, host, order, extra=(), image=None):
        report = self.dir / f"guest{guest_id}.json"
        args = [self.opt.build / GUEST, "--socket", self.socket_path(host), "--image",
                image or self.opt.image, "--order", order, "--seed", self.opt.seed * 1000 + guest_id,
                "--shared-seed", self.opt.seed, "--id", guest_id, "--json", report, *extra]
        if self.gate:
            args += ["--gate", self.gate]
        # No namespace: all a guest needs is memtap's socket, and the start is quicker.
        guest = self._start(f"guest{guest_id}", None, args)
        guest.id, guest.host, guest.order, guest.report_path = guest_id, host, order, report
        self.guests.append(guest)
        return guest

    @contextlib.contextmanager
    def at_once(self):
        """Guests started inside touch their first page together, as the clones of one fork do: a host whose guests
        attach late would ask again for what went by before."""
        before = {host: self._attached(host) for host in self.memtaps}
        self.gate = self.dir / "gate"
        with open(self.gate, "w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            first = len(self.guests)
            yield
            for host, attached in before.items():
                mine = [guest for guest in self.guests[first:] if guest.host == host]
                for guest in mine:
                    self.wait_for(guest, lambda: self._attached(host) >= attached + len(mine), "attached", 60.0)
            self.gate = None

    def _attached(self, host):
        return self.memtap_stats(host).get("guests_attached", 0)

    def start_other(self, name, args, host=None):
        """Any further process that must not outlive the fleet."""
        self.others.append(self._start(name, host, args))
        return self.others[-1]

    def report(self, guest):
        """A guest's JSON, None if it left none."""
        try:
            return json.loads(guest.report_path.read_text())
        except (OSError, ValueError):
            return None

    def server_stats(self):
        return telemetry(self.prefix(0), "/memserver/stats") or {}

    def memtap_stats(self, host):
        return telemetry(self.prefix(host), "/memtap/stats") or {}

    def socket_path(self, host):
        return self.dir / f"memtap{host}.sock"

    def processes(self):
        servers = [self.server] if self.server else []
        return [*self.guests, *self.memtaps.values(), *servers, *self.others, *self.ended]

    def wait_guests(self, timeout_s, guests=None, each=None):
        """True once all have ended. `each(running)` is called about twice a second."""
        deadline = time.monotonic() + timeout_s
        guests = self.guests if guests is None else guests
        while running := [g for g in guests if g.status() is None]:
            if time.monotonic() > deadline:
                return False
            if each:
                each(running)
            running[0].wait(0.5)
        return True

    def stop(self):
        """Orderly end: guests, memtaps, server. Returns complaints: who needed force, crashed or left what."""
        complaints = []
        for process in [*self.guests, *self.others, *self.memtaps.values(), self.server]:
            if process is None or process.killed:
                continue
            running = process.status() is None
            complaints.append(process.stop())
            # Before our SIGTERM a guest may have ended as it liked; memserver and memtap must say 0.
            if (process is self.server or process in self.memtaps.values()) and process.status() != 0:
                complaints.append(f"{process.name} {'ended' if running else 'had ended'} with status "
                                  f"{process.status()}, not 0")
        complaints += [f"{process.name}: {line}" for process in self.processes()
                       for line in process.log.read_text(errors="replace").splitlines() if "the sandbox forbids" in line]
        return [c for c in complaints if c] + self._leftovers()

    def close(self):
        """Whatever state it is in: nothing of this fleet is left."""
        for process in self.processes():
            if process.status() is None:
                process.kill()
        for host in range(self.lab.nb_hosts + 1):
            shutil.rmtree(DPDK_RUN / self.prefix(host), ignore_errors=True)
        shutil.rmtree(self.dir, ignore_errors=True)

    def _leftovers(self):
        """Sockets and presence files of memtaps that were not killed."""
        orderly = [host for host, process in self.memtaps.items() if not process.killed]
        paths = [self.socket_path(host) for host in orderly]
        for host in orderly:
            paths += (self.dir / f"presence-{host}").glob("*")
        return [f"left behind: {path}" for path in paths if path.exists()]

    def _port_args(self):
        return ["--profile", self.opt.profile, "--device", self.opt.device, "--mtu", self.lab.mtu]

    def _loss_args(self, host):
        if self.opt.loss <= 0:
            return []
        return ["--rx-loss", self.opt.loss, "--seed", self.opt.seed * 1000 + host]

    def _start(self, name, host, args):
        old = {"memserver": self.server}.get(name) or next(
            (m for m in self.memtaps.values() if m.name == name), None)
        if old:
            self.ended.append(old)
        if host is not None:
            args = self.lab.exec_args(host, args)
        return Process(name, args, self.dir / f"{name}.log")

    def wait_for(self, process, ready, what, timeout_s, host=None):
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self.lab.tap and host is not None:
                self.lab.release_tap(host)
            if process.status() is not None:
                raise FleetError(f"{process.name} ended with status {process.status()} before it was {what}:\n"
                                 f"{process.tail()}")
            if time.monotonic() > deadline:
                raise FleetError(f"{process.name} was not {what} after {timeout_s:.0f} s:\n{process.tail()}")
            time.sleep(0.05)
