# SPDX-License-Identifier: BSD-3-Clause
"""What memserver and memtap have given up once they run, seen from outside, and who may connect."""
import contextlib
import pathlib
import re

from lib import SLOW_WIRE, case, check, check_complete, half_way, key_file, start_clones, wait_until
from strangers import is_turned_away

CAP_KILL, CAP_IPC_LOCK = 1 << 5, 1 << 14
NOBODY = 65534


def threads(process):
    """Of each thread, what the kernel says of it."""
    for status in pathlib.Path(f"/proc/{process.pid}/task").glob("*/status"):
        yield dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)


def check_sandboxed(process, capabilities):
    for thread in threads(process):
        name = f"{process.name}, thread {thread['Name']}"
        check(thread["NoNewPrivs"] == "1" and thread["Seccomp"] == "2", f"{name} is not in the sandbox: {thread}")
        check(all(int(thread[sets], 16) == capabilities for sets in ("CapEff", "CapPrm")),
              f"{name} has capabilities {thread['CapEff']} of {thread['CapPrm']}")
        check(int(thread["CapInh"], 16) == int(thread["CapAmb"], 16) == 0, f"{name} has more to give on: {thread}")
    limits = pathlib.Path(f"/proc/{process.pid}/limits").read_text()
    check(re.search(r"Max core file size +[01] +[01] ", limits), f"{process.name} may leave a core: {limits}")


def check_open(process):
    check(all(thread["NoNewPrivs"] == "0" and thread["Seccomp"] == "0" for thread in threads(process)),
          f"{process.name} is in the sandbox")


@case(120)
def sandbox_holds_while_clones_fetch(context):
    """Every thread of both is in it, and they do without what they gave up. Until their end: Fleet.stop() looks for that."""
    with context.world(nb_hosts=2, server_args=SLOW_WIRE) as fleet:
        guests = start_clones(fleet, 4, "random")
        half_way(context, fleet)
        check_sandboxed(fleet.server, CAP_IPC_LOCK)
        for memtap in fleet.memtaps.values():
            check_sandboxed(memtap, CAP_KILL | CAP_IPC_LOCK)
        check_complete(context, fleet, guests)
        for stats in (fleet.server_stats(), fleet.memtap_stats(1), fleet.memtap_stats(2)):
            check(stats["sandboxed"] == 1 and stats["forbidden_calls"] == 0, f"{stats}")


@case(120)
def no_sandbox_keeps_everything(context):
    """As a debugger wants it."""
    with context.world(nb_hosts=2, server_args=("--no-sandbox",), memtap_args=("--no-sandbox",)) as fleet:
        for process in (fleet.server, *fleet.memtaps.values()):
            check_open(process)
            check("no sandbox" in process.log.read_text(), f"{process.name} does not say so")
        check(fleet.server_stats()["sandboxed"] == fleet.memtap_stats(1)["sandboxed"] == 0, "telemetry says another thing")
        check_complete(context, fleet, start_clones(fleet, 2, "random"))


@case(60)
def other_users_do_not_reach_a_memtap(context):
    """Though a careless operator has opened socket and folder to all."""
    with context.world(nb_hosts=2, memtaps=[1]) as fleet:
        path = fleet.socket_path(1)
        fleet.dir.chmod(0o711)
        path.chmod(0o666)
        check(is_turned_away(path, NOBODY), "it was not turned away")
        wait_until(lambda: fleet.memtap_stats(1)["guests_of_others"] == 1, "it is counted")
        check(f"of user {NOBODY} may not connect" in fleet.memtaps[1].log.read_text(), "it has no log line")
        check_complete(context, fleet, start_clones(fleet, 2, "random"))


def memory_of(process):
    """All that it could write."""
    with open(f"/proc/{process.pid}/mem", "rb") as memory:
        for line in pathlib.Path(f"/proc/{process.pid}/maps").read_text().splitlines():
            places, rights, *_ = line.split()
            begin, end = (int(place, 16) for place in places.split("-"))
            if not rights.startswith("rw"):
                continue
            memory.seek(begin)
            with contextlib.suppress(OSError):  # a device's
                yield memory.read(end - begin)


def copies_in(process, secret):
    return sum(piece.count(secret) for piece in memory_of(process))


@case(60)
def keys_lie_nowhere_but_where_they_are_needed(context):
    """Neither the file's text nor what passed through buffers: the options' copy, and the one frames are sealed by."""
    key = key_file(context)
    text = key.read_text().strip()
    with context.world(nb_hosts=2, memtaps=[1], server_args=("--key", key), memtap_args=("--key", key)) as fleet:
        check_complete(context, fleet, start_clones(fleet, 2, "random"))
        for process in (fleet.server, fleet.memtaps[1]):
            check(copies_in(process, text.encode()) == 0, f"{process.name} has the text of the key file in its memory")
            found = copies_in(process, bytes.fromhex(text))
            check(found == 2, f"{process.name} has the key {found} times in its memory")
