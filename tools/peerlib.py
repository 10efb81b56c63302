# SPDX-License-Identifier: BSD-3-Clause
"""One file to many hosts, by the fabric and by what else does that: each ends with the bytes in a file in memory on every host."""
import contextlib
import filecmp
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import time

import benchlib
import fleetlib
import lablib

RMEM_MAX = pathlib.Path("/proc/sys/net/core/rmem_max")
BUFFER_BYTES = 8 << 20  # of each receiver's socket
START_S, TRANSFER_S, END_S = 60.0, 180.0, 20.0
LISTEN = "0A"  # in /proc/net/tcp


class PeerError(Exception):
    """Says what failed, on what, and what to do."""


class Job:
    """A process on a host, with the CPU time that it took."""

    def __init__(self, bed, host, args, gate=False):
        self.name = f"{pathlib.Path(str(args[0])).name} on host {host}"
        self.log = bed.folder / f"{len(bed.jobs)}.log"
        self.cpu_s, self.status = 0.0, None
        with open(self.log, "wb") as log:
            self.popen = subprocess.Popen(bed.lab.exec_args(host, args), stdin=subprocess.PIPE if gate else subprocess.DEVNULL,
                                          stdout=subprocess.PIPE if gate else log, stderr=log, start_new_session=True,
                                          preexec_fn=benchlib.first_in_line)
        bed.jobs.append(self)

    def wait_ready(self):
        """bench-node at its gate."""
        if not select.select([self.popen.stdout], [], [], START_S)[0] or self.popen.stdout.readline() != b"READY\n":
            raise self.failed("did not start")

    def go(self):
        try:
            self.popen.stdin.write(b"\n")
            self.popen.stdin.flush()
        except BrokenPipeError:
            raise self.failed("has ended before it began") from None

    def end(self, timeout_s):
        """Waits for it. @return whether it came to its end"""
        if self.status is None:
            pidfd = os.pidfd_open(self.popen.pid)
            try:
                if not select.select([pidfd], [], [], timeout_s)[0]:
                    return False
            finally:
                os.close(pidfd)
            _, self.status, usage = os.wait4(self.popen.pid, 0)
            self.popen.returncode = os.waitstatus_to_exitcode(self.status)
            self.cpu_s = usage.ru_utime + usage.ru_stime
        return True

    def check_end(self):
        """@pre it has ended"""
        if self.popen.returncode != 0:
            raise self.failed(f"ended with status {self.popen.returncode}")

    def listens(self, protocol):
        """Whether its host has a socket that somebody can send to."""
        lines = [line for name in (protocol, protocol + "6")
                 for line in pathlib.Path(f"/proc/{self.popen.pid}/net/{name}").read_text().splitlines()[1:]]
        return any(protocol == "udp" or line.split()[3] == LISTEN for line in lines)

    def stop(self):
        for signum in (signal.SIGTERM, signal.SIGKILL):
            if self.status is None:
                os.kill(self.popen.pid, signum)  # Popen.terminate() would take in its status, and its CPU time with it
                self.end(END_S)

    def failed(self, what):
        said = self.log.read_text(errors="replace")[-1500:].strip()
        return PeerError(f"{self.name} {what}: {said or 'no message'}")


class Bed:
    """Hosts with addresses, a file, and where it is to come to. Host 0 has it."""

    def __init__(self, args, lab, folder, image):
        self.args, self.lab, self.folder, self.image, self.jobs = args, lab, folder, image, []
        for host in range(lab.nb_hosts + 1):
            ip = ["ip", "-n", lab.ns(host)]
            # udpcast finds nobody without a broadcast address; multicast needs a route.
            lablib.run([*ip, "address", "add", f"{self.address(host)}/24", "brd", "+", "dev", lablib.PORT])
            lablib.run([*ip, "route", "add", "224.0.0.0/4", "dev", lablib.PORT])

    def address(self, host):
        return f"10.66.0.{host + 1}"

    def hosts(self):
        return range(1, self.lab.nb_hosts + 1)

    def out(self, host):
        """The folder of a host's copy."""
        return self.folder / f"out{host}"

    def copy(self, host):
        return self.out(host) / self.image.name

    def job(self, host, *args, gate=False):
        return Job(self, host, args, gate)

    def measure(self, peer):
        """One transfer by one peer."""
        for host in self.hosts():
            shutil.rmtree(self.out(host), ignore_errors=True)
            self.out(host).mkdir()
        self.jobs = []
        before = self._wire_bytes()
        try:
            seconds = peer.transfer(self)
        finally:
            for job in self.jobs:
                job.stop()
        wire = self._wire_bytes() - before
        if peer.stores:
            for host in self.hosts():
                if not filecmp.cmp(self.copy(host), self.image, shallow=False):
                    raise PeerError(f"{peer.name}: the copy of host {host} is not the file")
        return {"seconds": seconds, "cpu_s": sum(job.cpu_s for job in self.jobs), "wire_bytes": wire}

    def _wire_bytes(self):
        """What all hosts have sent."""
        links = json.loads(lablib.run(["ip", "-n", self.lab.bridge_ns, "-s", "-j", "link"]))
        return sum(link["stats64"]["rx"]["bytes"] for link in links if link["ifname"].startswith("h"))


def wait_until(ready, what):
    deadline = time.monotonic() + START_S
    while not ready():
        if time.monotonic() > deadline:
            raise PeerError(f"{what}: not after {START_S:.0f} s")
        time.sleep(0.01)


def wait_listening(jobs, protocol):
    for job in jobs:
        wait_until(lambda job=job: job.end(0) or job.listens(protocol), f"{job.name} listens")


def timed(begin):
    """From `begin`, which returns the jobs to wait for, until the last has ended. One that fails says so at once."""
    began = time.monotonic()
    left = begin()
    while left:
        ended = [job for job in left if job.end(0)]
        for job in ended:
            job.check_end()
        left = [job for job in left if job not in ended]
        if left and time.monotonic() - began > TRANSFER_S:
            raise left[0].failed(f"was not done after {TRANSFER_S:.0f} s")
        if left:
            left[0].end(0.005)  # the others are looked at every 5 ms
    return time.monotonic() - began


# --- who carries it -----------------------------------------------------------------------------------------------------

class Peer:
    name, tools, stores = "", (), True

    def missing(self):
        return [tool for tool in self.tools if shutil.which(tool) is None]


class Fabric(Peer):
    """memserver, and memtap's engine, host and worker on each host."""

    def __init__(self, *options):
        self.options = options
        self.name = " ".join(("snowfabric", *options))

    def transfer(self, bed):
        node, port = benchlib.program(bed.args, benchlib.NODE), ["--profile", "net_af_packet", "--device", lablib.PORT]
        info = bed.folder / "server.json"
        info.unlink(missing_ok=True)
        server = bed.job(0, benchlib.program(bed.args, "memserver-dpdk/memserver-dpdk"), *port, "--mtu", bed.args.mtu,
                         "--info", info, *self.options, bed.image)
        wait_until(lambda: info.exists() or server.end(0), "memserver")
        if server.end(0):
            raise server.failed("did not start")
        said = json.loads(info.read_text())
        what = ["--server", said["server_mac"], "--image-id", said["images"][0]["image_id"],
                "--pages", bed.image.stat().st_size // fleetlib.PAGE, "--mode", "push" if "--push" in self.options else "list"]
        clients = [bed.job(host, node, "receive-file", *port, "--mtu", bed.args.mtu, *what, "--out", bed.copy(host), "--gate",
                           gate=True) for host in bed.hosts()]
        for client in clients:
            client.wait_ready()

        def begin():
            for client in clients:
                client.go()
            return clients
        return timed(begin)


class Library(Peer):
    """The example pair over the C API."""

    def __init__(self, carrier, *server_options):
        self.carrier, self.name, self.server_options = carrier, f"libsnowfabric, {carrier}", server_options

    def args(self, bed, host, program):
        how = ("-k", self.carrier, "-i", lablib.PORT, "-a", f"10.66.1.{host + 1}")
        return benchlib.program(bed.args, f"library/{program}"), *how

    def transfer(self, bed):
        image_id = "5f"
        clients = [bed.job(host, *self.args(bed, host, "sf-fetch"), image_id, bed.copy(host)) for host in bed.hosts()]
        for client in clients:
            wait_until(lambda client=client: client.end(0) or b"image_id" in client.log.read_bytes(), f"{client.name} listens")

        def begin():
            bed.job(0, *self.args(bed, 0, "sf-serve"), *self.server_options, "-n", image_id, bed.image)
            return clients
        return timed(begin)


class Udpcast(Peer):
    name, tools = "udpcast", ("udp-sender", "udp-receiver")

    def transfer(self, bed):
        common = ("--nokbd", "--no-progress", "--interface", lablib.PORT, "--file")
        receivers = [bed.job(host, "udp-receiver", "--rcvbuf", BUFFER_BYTES, *common, bed.copy(host)) for host in bed.hosts()]
        wait_listening(receivers, "udp")
        return timed(lambda: [bed.job(0, "udp-sender", *common, bed.image, "--min-receivers", bed.lab.nb_hosts, "--full-duplex",
                                      "--blocksize", (bed.args.mtu - 44) // 4 * 4), *receivers])


class Uftp(Peer):
    name, tools = "uftp", ("uftp", "uftpd")

    def transfer(self, bed):
        ids = [f"0x{0x1000 + host:08X}" for host in bed.hosts()]
        common = ("-I", lablib.PORT, "-B", BUFFER_BYTES)
        daemons = [bed.job(host, "uftpd", "-d", *common, "-D", bed.out(host), "-U", uid) for host, uid in zip(bed.hosts(), ids)]
        wait_listening(daemons, "udp")
        return timed(lambda: [bed.job(0, "uftp", *common, "-R", "-1", "-b", bed.args.mtu - 200, "-H", ",".join(ids), bed.image)])


class Nbd(Peer):
    name, tools = "nbdkit, nbdcopy", ("nbdkit", "nbdcopy")

    def transfer(self, bed):
        server = bed.job(0, "nbdkit", "-f", "-t", 8, "-i", bed.address(0), "file", bed.image)
        wait_listening([server], "tcp")
        return timed(lambda: [bed.job(host, "nbdcopy", f"nbd://{bed.address(0)}", bed.copy(host)) for host in bed.hosts()])


class Iperf(Peer):
    """TCP to each, of which nothing is kept."""
    name, tools, stores = "iperf3 (stores nothing)", ("iperf3",), False

    def transfer(self, bed):
        servers = [bed.job(host, "iperf3", "--server", "--one-off") for host in bed.hosts()]
        wait_listening(servers, "tcp")
        nb_bytes = bed.image.stat().st_size
        return timed(lambda: [*servers, *(bed.job(0, "iperf3", "--client", bed.address(host), "--bytes", nb_bytes)
                                          for host in bed.hosts())])


PEERS = (Fabric(), Fabric("--push"), *(Library(carrier) for carrier in ("udp", "ethernet", "dpdk-udp")),
         Udpcast(), Uftp(), Nbd(), Iperf())


@contextlib.contextmanager
def large_sockets():
    """Receivers may have as much buffer as they ask for."""
    before = RMEM_MAX.read_text()
    RMEM_MAX.write_text(str(max(int(before), 2 * BUFFER_BYTES)))
    try:
        yield
    finally:
        RMEM_MAX.write_text(before)
