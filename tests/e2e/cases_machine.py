# SPDX-License-Identifier: BSD-3-Clause
"""Cases in which the machine fails its processes: their memory is used up, their clock jumps."""
import contextlib
import errno
import os
import pathlib
import time

from cases_failures import SLOWER_WIRE, recovery_s, standing_still
from fleetlib import PAGE
from lib import SLOW_WIRE, Skipped, case, check, check_complete, half_way, start_clones, wait_until

MIB = 1 << 20
GUEST_MIB, KEPT_MIB = 8, 4  # of an image of 32 MiB, a third of it zeros, which cost nothing
SHORTAGE_S = 1.0


class MemoryGroup:
    """A memory cgroup, of version 1 or 2, with one process in it. The kernel refuses it memory, and does not kill it."""

    def __init__(self, folder, limit_file, nb_bytes):
        self.folder = folder
        folder.mkdir()
        # Memory first: swap is counted with it in version 1, and may not be limited to less.
        self.limits = [(folder / limit_file, nb_bytes)]
        if (folder / "memory.memsw.limit_in_bytes").exists():
            self.limits.append((folder / "memory.memsw.limit_in_bytes", nb_bytes))
        if (folder / "memory.swap.max").exists():
            self.limits.append((folder / "memory.swap.max", 0))
        for path, limit in self.limits:
            path.write_text(str(limit))
        self.is_first = (folder / "memory.oom_control").exists()
        if self.is_first:
            (folder / "memory.oom_control").write_text("1")

    def take(self, process):
        if not self.is_first:
            try:
                pathlib.Path(f"/proc/{process.pid}/oom_score_adj").write_text("-1000")
            except PermissionError as error:
                raise Skipped(f"the kernel would kill who is refused memory, and may not be told not to: {error}") from error
        (self.folder / "cgroup.procs").write_text(str(process.pid))

    def is_short(self):
        """Somebody was refused memory: in version 1 a thread stands still for it, in version 2 it may try again and again."""
        if self.is_first:
            return "under_oom 1" in (self.folder / "memory.oom_control").read_text()
        events = dict(line.split() for line in (self.folder / "memory.events").read_text().splitlines())
        return int(events["oom"]) > 0

    def lift(self):
        for path, _ in reversed(self.limits):
            path.write_text("max" if path.name.endswith("max") else "-1")

    def remove(self):
        """When its process has ended, of which the kernel takes note a little later."""
        def gone():
            try:
                self.folder.rmdir()
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                return False
            return True
        self.lift()
        wait_until(gone, f"{self.folder} can be removed", 10.0)


def memory_controller():
    """@return the folder where memory cgroups are made, and the file that limits one"""
    for line in pathlib.Path("/proc/mounts").read_text().splitlines():
        folder, kind, options = line.split()[1:4]
        folder = pathlib.Path(folder)
        if kind == "cgroup" and "memory" in options.split(","):
            return folder, "memory.limit_in_bytes"
        if kind == "cgroup2" and "memory" in (folder / "cgroup.controllers").read_text().split():
            with contextlib.suppress(OSError):
                (folder / "cgroup.subtree_control").write_text("+memory")
                return folder, "memory.max"
    raise Skipped("no memory cgroup can be made here")


@contextlib.contextmanager
def memory_group(name, mib):
    folder, limit_file = memory_controller()
    try:
        group = MemoryGroup(folder / f"snowfabric-{os.getpid()}-{name}", limit_file, mib * MIB)
    except OSError as error:
        raise Skipped(f"no memory cgroup can be made here: {error}") from error
    try:
        yield group
    finally:
        group.remove()


@case(60)
def guest_short_of_memory_waits_alone(context):
    """Its pages cannot be installed for a while: it waits, the other guest of its host completes, then it does."""
    with memory_group("guest", GUEST_MIB) as group, context.world(nb_hosts=1, server_args=SLOW_WIRE) as fleet:
        short = fleet.start_guest(0, 1, "random")
        group.take(short)
        other = fleet.start_guest(1, 1, "sequential")
        wait_until(lambda: fleet.memtap_stats(1).get("no_memory", 0) > 0, "an install fails for want of memory")
        check_complete(context, fleet, [other])
        time.sleep(SHORTAGE_S)
        check(short.status() is None, f"the guest without memory ended with {short.status()}")
        before = fleet.memtap_stats(1)
        began = time.monotonic()
        group.lift()
        wait_until(lambda: fleet.memtap_stats(1).get("installed_pages", 0) > before["installed_pages"], "a page is installed")
        took_s = time.monotonic() - began
        check_complete(context, fleet, [short])
        return f"a page installed after {took_s:.2f} s, {before['no_memory']} installs put off"


@case(60)
def memtap_short_of_memory_goes_on_with_it(context):
    """It takes what it keeps of the image, until it touches memory that the kernel refuses it. With memory again all complete."""
    with memory_group("memtap", KEPT_MIB) as group, context.world(nb_hosts=1, server_args=SLOWER_WIRE) as fleet:
        group.take(fleet.memtaps[1])
        guests = start_clones(fleet, 2, ["sequential", "random"])
        wait_until(group.is_short, "the kernel refuses it memory")
        time.sleep(SHORTAGE_S)  # its telemetry is not asked, for that takes memory, too
        check(all(guest.status() is None for guest in guests), f"guests ended with {[g.status() for g in guests]}")
        asked, began = fleet.server_stats()["rx_requests"], time.monotonic()
        group.lift()
        wait_until(lambda: fleet.server_stats()["rx_requests"] > asked, "it asks for pages again")
        took_s = time.monotonic() - began
        check_complete(context, fleet, guests)
        check_complete(context, fleet, start_clones(fleet, 1, "random"))
        return f"asks again after {took_s:.2f} s"


def touch_all(process):
    """Has the kernel give a memtap that stands still all memory that it has set up, but for what it keeps of the image."""
    maps = pathlib.Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    with open(f"/proc/{process.pid}/mem", "r+b", buffering=0) as memory:
        for line in maps:
            where, rights, *_ = line.split()
            first, end = (int(address, 16) for address in where.split("-"))
            if not rights.startswith("rw") or "snowfabric-image" in line or "socket:" in line:
                continue
            for at in range(first, end, PAGE):
                memory.seek(at)
                byte = memory.read(1)
                memory.seek(at)
                memory.write(byte)


@case(60)
def memtap_short_of_memory_keeps_less(context):
    """What it works with is there, and there is none for what it would keep: all its guests complete meanwhile. Later
    it asks again for what it has not kept, when a guest needs it, and keeps that."""
    with memory_group("keeps", KEPT_MIB) as group, context.world(nb_hosts=1, server_args=SLOW_WIRE) as fleet:
        guests = start_clones(fleet, 2, ["sequential", "random"])
        half_way(context, fleet)
        with standing_still(fleet.memtaps[1]):
            touch_all(fleet.memtaps[1])
            group.take(fleet.memtaps[1])
        check_complete(context, fleet, guests, 20.0)
        group.lift()
        short = fleet.memtap_stats(1)
        check(short["keep_failed"] > 0 and short["kept_pages"] < context.nb_nonzero, f"it has kept all: {short}")
        check_complete(context, fleet, start_clones(fleet, 1, "random"))
        after = fleet.memtap_stats(1)
        check(after["kept_pages"] == context.nb_nonzero and after["keep_failed"] == short["keep_failed"],
              f"with memory again: {after}")
        fetched = after["rx_pages"] - short["rx_pages"]
        check(fetched >= context.nb_nonzero - short["kept_pages"], f"{fetched} pages fetched for the next guest")
        return f"{short['keep_failed']} pages not kept, {fetched} fetched again"


FAKETIME = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
JUMPS_H = (1, -22)  # against the real time: an hour forwards, then a day back but for an hour, which a time of day would not show
DAY_S = 86400


class WallClock:
    """The real-time clock of some processes, which may jump; the monotonic one goes on."""

    def __init__(self, path):
        if FAKETIME is None:
            raise Skipped("needs libfaketime")
        self.path = path
        self.set(0)

    def wrap(self):
        """The command that runs a process by this clock."""
        return ("env", f"LD_PRELOAD={FAKETIME}", f"FAKETIME_TIMESTAMP_FILE={self.path}", "FAKETIME_NO_CACHE=1",
                "FAKETIME_DONT_FAKE_MONOTONIC=1")

    def set(self, hours):
        """@param hours  ahead of the real time"""
        new = self.path.with_suffix(".new")
        new.write_text(f"{hours:+d}h\n")
        new.replace(self.path)  # they read it all the time
        self.hours = hours

    def check_logged(self, process, text, nb_lines):
        """The process dated its last of so many lines with this text by this clock, give or take a minute."""
        def stamps():
            return [line.split(".")[0] for line in process.log.read_text().splitlines() if text in line]
        wait_until(lambda: len(stamps()) >= nb_lines, f"{process.name} logs '{text}'", 10.0)
        stamp = stamps()[-1]
        hour, minute, second = map(int, stamp.split(":"))
        now = time.localtime()
        ahead_s = (hour - now.tm_hour - self.hours) * 3600 + (minute - now.tm_min) * 60 + second - now.tm_sec
        ahead_s = (ahead_s + DAY_S // 2) % DAY_S - DAY_S // 2
        check(abs(ahead_s) < 60, f"{process.name} logs at {stamp}, {ahead_s} s off")


@case(60)
def clock_jumps_while_guests_fetch(context):
    """Forwards and back. Nobody who waits takes note, and who joins after it does not either."""
    clock = WallClock(context.workdir / "clock")
    with context.world(nb_hosts=1 + len(JUMPS_H), memtaps=[1], server_args=SLOWER_WIRE, wrap=clock.wrap()) as fleet:
        guests, took = start_clones(fleet, 2, ["sequential", "random"]), []
        for host, hours in enumerate(JUMPS_H, 2):
            took.append(f"{recovery_s(fleet, list(fleet.memtaps), lambda: clock.set(hours)):.2f} s")
            fleet.start_memtap(host)
            guests += start_clones(fleet, 2, "random", hosts=[1, host])
            clock.check_logged(fleet.server, "client joined", host)
            clock.check_logged(fleet.memtaps[1], "attached", 1 + host)  # two at first, and one a host
            clock.check_logged(fleet.memtaps[host], "attached", 1)
        check_complete(context, fleet, guests)
        stats = [fleet.memtap_stats(host) for host in fleet.memtaps]
        gone = fleet.server_stats()["clients_timed_out"]
        check(not gone and not any(s["server_dead"] or s["failed_pages"] for s in stats), f"{gone} timed out; {stats}")
        return f"the next page after {', '.join(took)}"
