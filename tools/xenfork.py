# SPDX-License-Identifier: BSD-3-Clause
"""In dom0: forks a Xen guest by memserver and memtap, and says what became of the clones. A job of tools/xen-testbed:
reads /host/fork.json, writes /host/rows.json while it runs and /host/result.json at the end. Hosts that share a parent
share the folder /shared."""
import json
import pathlib
import re
import subprocess
import sys
import time

import fleetlib

HOST, SHARED, RUN = pathlib.Path("/host"), pathlib.Path("/shared"), pathlib.Path("/run/snowfabric")
LOGS = pathlib.Path("/var/log/xen")
PARENT, BRIDGE, MTU = "guest", "br0", 9000
DESCRIPTOR, FORKED, ENDED = SHARED / "vm.desc", SHARED / "forked.json", SHARED / "ended"
# Every CPU here is emulated, and Xen takes some 1,000 pages a second: what comes faster is lost.
SERVE = ["--push", "--rate-gbps", "0.02", "--max-rate-gbps", "0.1"]
GOOD_TICKS = 3  # that a clone must have had
PATIENCE_S = 300  # for what takes a quarter of it where nothing else runs
END_S = 60  # likewise, of a process that is told to end


class ForkError(Exception):
    """Says what failed, on what, and what to do."""


def script(main):
    """Runs it as a script of dom0, whose ForkError is a line and status 1."""
    began = time.monotonic()
    try:
        status = main()
    except ForkError as error:
        print(error)
        status = 1
    print(f"note: {time.monotonic() - began - Parent.booting_s:.0f} s beyond booting")
    sys.exit(status)


def run(*args):
    done = subprocess.run(args, capture_output=True, text=True)
    if done.returncode != 0:
        raise ForkError(f"`{' '.join(args)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def wait_for(what, look, seconds, *processes):
    """@return what `look` returned, once that is true"""
    deadline = time.monotonic() + seconds
    while True:
        if found := look():
            return found
        for process in processes:
            if process.status() is not None:
                raise ForkError(f"{process.name} ended with status {process.status()}; waited for {what}:\n{process.tail()}")
        if time.monotonic() > deadline:
            tails = "\n".join(process.tail() for process in processes)
            raise ForkError(f"no {what} after {seconds} s\n{tails}")
        time.sleep(0.05)


def link(name):
    """A port of the bridge, for one process."""
    run("ip", "link", "add", name, "mtu", str(MTU), "type", "veth", "peer", "name", f"{name}-br", "mtu", str(MTU))
    run("ip", "link", "set", f"{name}-br", "master", BRIDGE)
    for end in (name, f"{name}-br"):
        pathlib.Path(f"/proc/sys/net/ipv6/conf/{end}/disable_ipv6").write_text("1")
        run("ip", "link", "set", end, "up")


def make_network():
    run("ip", "link", "add", BRIDGE, "mtu", str(MTU), "type", "bridge", "mcast_snooping", "0")
    pathlib.Path(f"/proc/sys/net/ipv6/conf/{BRIDGE}/disable_ipv6").write_text("1")
    run("ip", "link", "set", BRIDGE, "up")
    if pathlib.Path("/sys/class/net/eth0").exists():  # to the other machine
        run("ip", "link", "set", "eth0", "mtu", str(MTU), "master", BRIDGE)
        run("ip", "link", "set", "eth0", "up")


def log_of(name):
    """What a guest has said on its console."""
    log = LOGS / f"guest-{name}.log"
    return log.read_text(errors="replace") if log.exists() else ""


def ticks(name):
    """[(number, pages, bad)] of a guest's log."""
    return [tuple(map(int, found)) for found in re.findall(r"guest: tick=(\d+) pages=(\d+) bad=(\d+)", log_of(name))]


def tick_times(name):
    """How long the guest looked at its memory in each tick, in us."""
    return [int(found) for found in re.findall(r"guest: tick=.* us=(\d+)\r?\n", log_of(name))]


def program(name, path, args):
    return fleetlib.Process(name, [HOST / path, *args], HOST / "logs" / f"{name}.log")


def port_args(device, name):
    return ["--profile", HOST / "net_af_packet.toml", "--device", device, "--", f"--file-prefix={name}"]


class Parent:
    """A running guest, and the memserver that has frozen it.
    @param settings  lines that override those of its configuration
    @param before       called when the guest runs, before it is frozen
    @param server_args  beside those that a fork needs"""
    booting_s = 0.0  # of all that there were

    def __init__(self, *settings, before=lambda: None, server_args=()):
        link("server0")
        began = time.monotonic()
        run("xl", "create", "-e", str(HOST / f"{PARENT}.cfg"), *settings)
        wait_for("tick of the parent", lambda: len(ticks(PARENT)) >= GOOD_TICKS, PATIENCE_S)
        Parent.booting_s += time.monotonic() - began
        before()
        self.freeze(*server_args)

    def freeze(self, *server_args):
        info = RUN / "server.json"
        info.unlink(missing_ok=True)
        self.server = program("memserver", "memserver-dpdk", [
            "--xen", PARENT, "--descriptor", DESCRIPTOR, "--info", info, *SERVE, "--stats", RUN / "server-stats.json",
            *server_args, *port_args("server0", "server")])
        wait_for("image", info.exists, PATIENCE_S, self.server)
        self.ticks_then = len(ticks(PARENT))
        self.forked = {"freeze": json.loads(info.read_text())["freeze"], "descriptor_bytes": DESCRIPTOR.stat().st_size}
        FORKED.write_text(json.dumps(self.forked))

    def row(self):
        wait_for("tick of the parent after the fork", lambda: len(ticks(PARENT)) >= self.ticks_then + GOOD_TICKS, PATIENCE_S)
        all_ticks = ticks(PARENT)
        return {"checksum_ok": all(bad == 0 for _, _, bad in all_ticks), "ticks": len(all_ticks)}


class Clone:
    """A clone, its keeper and what its guest says."""

    def __init__(self, name, memtap_socket, config):
        self.name, self.began = name, time.monotonic()
        self.info = RUN / f"{name}.json"
        self.first_run_ms = None
        self.keeper = program(name, "sf-xen-clone", [DESCRIPTOR, "--memtap", memtap_socket, "--name", name,
                                                     "--config", config, "--info", self.info])

    def nb_ticks(self):
        seen = ticks(self.name)
        if seen and self.first_run_ms is None:
            self.first_run_ms = round((time.monotonic() - self.began) * 1000)
        return len(seen)

    def row(self, guests):
        """@param guests  counters of memtap's guests, by the keeper's process"""
        seen, counters = ticks(self.name), guests.get(self.keeper.pid, {})
        info = json.loads(self.info.read_text()) if self.info.exists() else {}
        claimed = re.findall(r"sf-xen-agent: claimed pages=(\d+)", log_of(self.name))
        return {"clone": self.name, "domain": info.get("domain"), "checksum_ok": bool(seen) and all(bad == 0 for *_, bad in seen),
                "ticks": len(seen), "first_tick": seen[0][0] if seen else None, "pages": counters.get("installed_pages"),
                "zero_pages": counters.get("zero_pages"), "removed_pages": counters.get("removed_pages"),
                "claimed_pages": sum(map(int, claimed)), "faults": counters.get("faults"),
                "fault_us_p50": counters.get("fault_ns_p50", 0) / 1000, "evicted_ms": info.get("evicted_ms"),
                "running_ms": info.get("running_ms"), "first_run_ms": self.first_run_ms}


class Clones:
    """The clones of this host and their memtap."""

    def __init__(self, names, tap_args=(), give_up_s=30):
        link("tap0")
        self.socket, self.tap, self.tap_args, self.give_up_s = RUN / "memtap.sock", None, tap_args, give_up_s
        self.start_tap()
        self.config = RUN / "clone.cfg"
        self.config.write_text('cpus = "1"\n')  # dom0 has the other
        self.clones = []
        for name in names:
            self.add(name)

    def add(self, name):
        self.clones.append(Clone(name, self.socket, self.config))

    def start_tap(self):
        self.socket.unlink(missing_ok=True)
        self.tap = program("memtap", "memtap-dpdk", ["--descriptor", DESCRIPTOR, "--socket", self.socket, "--give-up",
                                                     str(self.give_up_s), *self.tap_args, "--stats", RUN / "memtap-stats.json",
                                                     *port_args("tap0", "tap")])
        wait_for("socket of memtap", self.socket.exists, PATIENCE_S, self.tap)

    def wait(self, seconds, nb_ticks=GOOD_TICKS):
        """Until each has shown by so many ticks that it works."""
        def all_work():
            working = [clone.nb_ticks() >= nb_ticks for clone in self.clones]
            (HOST / "rows.json.new").write_text(json.dumps(self.rows()))
            (HOST / "rows.json.new").rename(HOST / "rows.json")
            time.sleep(0.5)
            return all(working)
        try:
            wait_for("clones at work", all_work, seconds, self.tap, *(clone.keeper for clone in self.clones))
        except ForkError as error:
            raise ForkError(f"{error}\n{json.dumps(self.counters())}") from error

    def counters(self):
        """Memtap's, of each guest by its keeper's process and, at 0, its own."""
        pids = fleetlib.telemetry("tap", "/memtap/guests") or {}
        guests = {pid: fleetlib.telemetry("tap", f"/memtap/guest,{number}") or {} for number, pid in pids.items()}
        return {0: fleetlib.telemetry("tap", "/memtap/stats") or {}, **guests}

    def rows(self):
        counters = self.counters()
        return [clone.row(counters) for clone in self.clones]

    def processes(self):
        return [*(clone.keeper for clone in self.clones), self.tap]


def make_folders():
    for folder in (RUN, SHARED, HOST / "logs"):
        folder.mkdir(parents=True, exist_ok=True)


def end(processes, clone_names):
    """Stops them in this order. @return what was wrong with that, in words"""
    complaints = [complaint for complaint in (process.stop(END_S) for process in processes) if complaint]
    complaints += [f"{p.name} ended with status {p.status()}:\n{p.tail()}" for p in processes if p.status() != 0]
    left = [line.split()[0] for line in run("xl", "list").splitlines()[1:]]
    return complaints + [f"the domain of {name} is left" for name in clone_names if name in left]


def fork(options):
    make_folders()
    make_network()
    parent = Parent() if options["parent"] else None
    result = {"clones": []}
    if options["clones"]:
        wait_for("descriptor of the parent", FORKED.exists, options["seconds"])
        clones = Clones(options["clones"])
        clones.wait(options["seconds"])
        result["clones"] = clones.rows()
        ENDED.touch()
    if parent and options["waits"]:
        wait_for("end of the other host", ENDED.exists, 2 * options["seconds"], parent.server)  # it says why itself
    if parent:
        result.update(parent=parent.row(), **json.loads(FORKED.read_text()))
    processes = (clones.processes() if options["clones"] else []) + ([parent.server] if parent else [])
    return {**result, "complaints": end(processes, options["clones"])}


def main():
    options = json.loads((HOST / "fork.json").read_text())
    status = 0
    try:
        result = fork(options)
    except ForkError as error:
        run("xl", "debug-keys", "q")  # what each vCPU waits for, for the log of Xen
        result, status = {"error": f"{error}\n{run('xl', 'list')}"}, 1
    (HOST / "result.json").write_text(json.dumps(result, indent=2))
    return status


if __name__ == "__main__":
    sys.exit(main())
