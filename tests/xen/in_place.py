# SPDX-License-Identifier: BSD-3-Clause
"""In dom0: a fork of a parent whose memory stays in place, copied page by page when the parent touches it.
usage: in_place.py ended | killed
ended: dom0 lacks the room for a copy. The parent gets its memory back from a memserver that is told to end.
killed: the user asks for it. The parent gets it back from the guard of a memserver that is killed, and a clone that lacks pages
is paused.
Ends with status 0 if all memories are right."""
import os
import pathlib
import re
import signal
import sys
import time

import xenfork

PARENT_MIB, ROOM_MIB = 192, 200  # a copy takes the parent's memory and 64 MiB
SETTINGS = (f"memory={PARENT_MIB}", "vcpus=2", 'extra="console=hvc0 panic=-1 SF_MIB=16 SF_LOOKERS=2 SF_CPUS=2 maxcpus=1"')
GIVE_UP_S = 10


def checked(what, good):
    print(f"{what}: {'good' if good else 'BAD'}", flush=True)
    return good


def take_memory():
    """All of dom0's but for ROOM_MIB. @return the descriptor that holds it"""
    available_kib = re.search(r"MemAvailable: +(\d+) kB", pathlib.Path("/proc/meminfo").read_text())[1]
    taken = os.memfd_create("taken")
    os.posix_fallocate(taken, 0, ((int(available_kib) >> 10) - ROOM_MIB) << 20)
    return taken


def is_paused_for_want_of_a_page(clones, clone, silent_since):
    """@param silent_since  when its memserver stood still, to be killed then"""
    xenfork.wait_for("pause of the clone", lambda: "p" in xenfork.run("xl", "list", clone.name).split()[-2], xenfork.PATIENCE_S,
                     clones.tap, clone.keeper)
    seconds = time.monotonic() - silent_since
    print(f"note: a clone is paused {seconds:.1f} s after its memserver fell silent, --give-up being {GIVE_UP_S} s", flush=True)
    counters = clones.counters()
    print(clones.tap.tail(), flush=True)
    return counters[0].get("failed_pages", 0) > 0 and counters[clone.keeper.pid].get("pauses", 0) > 0


def got_back_from_one_that_ends():
    taken = []
    parent = xenfork.Parent(*SETTINGS, before=lambda: taken.append(take_memory()))
    os.close(taken.pop())
    print(parent.forked, flush=True)
    good = checked("its memory stayed in place", parent.forked["freeze"]["in_place"] == 1)
    good &= checked("parent while it is served", parent.row()["checksum_ok"])
    clones = xenfork.Clones(["clone1"])
    clones.wait(xenfork.PATIENCE_S)
    row = clones.rows()[0]
    print(row, flush=True)
    good &= checked("clone", row["checksum_ok"])
    complaints = xenfork.end([*clones.processes(), parent.server], ["clone1"])
    print("\n".join(complaints))
    parent.ticks_then = len(xenfork.ticks(xenfork.PARENT))
    return checked("parent with its memory back", parent.row()["checksum_ok"]) and good and not complaints


def got_back_from_one_that_is_killed():
    parent = xenfork.Parent(*SETTINGS, server_args=("--xen-ram", "in-place"))
    clones = xenfork.Clones(["clone1"], give_up_s=GIVE_UP_S)
    clone = clones.clones[0]
    xenfork.wait_for("clone1 to fault", lambda: (clones.rows()[0]["faults"] or 0) > 0, xenfork.PATIENCE_S, clones.tap, clone.keeper)
    silent_since = time.monotonic()
    os.kill(parent.server.pid, signal.SIGSTOP)
    time.sleep(1)  # in which the vCPUs come to pages that they do not get
    parent.server.kill()
    parent.ticks_then, began = len(xenfork.ticks(xenfork.PARENT)), time.monotonic()
    xenfork.wait_for("tick", lambda: len(xenfork.ticks(xenfork.PARENT)) > parent.ticks_then, xenfork.PATIENCE_S)
    print(f"note: the parent is at work again after {time.monotonic() - began:.1f} s", flush=True)
    good = checked("parent whose memserver was killed", parent.row()["checksum_ok"])
    good &= checked("clone whose memserver was killed", is_paused_for_want_of_a_page(clones, clone, silent_since))
    xenfork.run("xl", "destroy", clone.name)
    complaints = xenfork.end([*clones.processes()], [clone.name])
    print("\n".join(complaints))
    return good  # of the ends only that they are told: a paused clone's keeper has failed


def main():
    xenfork.make_folders()
    xenfork.make_network()
    good = {"ended": got_back_from_one_that_ends, "killed": got_back_from_one_that_is_killed}[sys.argv[1]]()
    return 0 if good else 1


if __name__ == "__main__":
    xenfork.script(main)
