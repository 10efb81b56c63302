# SPDX-License-Identifier: BSD-3-Clause
"""In dom0: forks of a parent whose memory stays in place, copied page by page when the parent touches it: the first because dom0
lacks the room for a copy, the second because it is asked for. The parent gets it back from a memserver that ends, and from its guard
if memserver is killed, and a clone that lacks pages then is paused. usage: in_place.py NB-VCPUS
With more than eight the paging ring has too few slots for all. Ends with status 0 if all memories are right."""
import os
import pathlib
import re
import signal
import sys
import time

import xenfork

PARENT_MIB, ROOM_MIB = 192, 200  # a copy takes the parent's memory and 64 MiB
GIVE_UP_S = 10


def settings(nb_vcpus):
    return (f"memory={PARENT_MIB}", f"vcpus={nb_vcpus}",
            f"extra=\"console=hvc0 panic=-1 SF_MIB=16 SF_LOOKERS={nb_vcpus} SF_CPUS={nb_vcpus} maxcpus=1\"")


def checked(what, good):
    print(f"{what}: {'good' if good else 'BAD'}", flush=True)
    return good


def take_memory():
    """All of dom0's but for ROOM_MIB. @return the descriptor that holds it"""
    available_kib = re.search(r"MemAvailable: +(\d+) kB", pathlib.Path("/proc/meminfo").read_text())[1]
    taken = os.memfd_create("taken")
    os.posix_fallocate(taken, 0, ((int(available_kib) >> 10) - ROOM_MIB) << 20)
    return taken


def add_clone(clones):
    """One more, of the second fork, by a memtap that gives up soon. @return it, once it runs and lacks pages"""
    clones.clones, clones.give_up_s = [], GIVE_UP_S
    clones.start_tap()
    clones.add("clone2")
    clone = clones.clones[0]
    xenfork.wait_for("clone2 to fault", lambda: (clones.rows()[0]["faults"] or 0) > 0, xenfork.PATIENCE_S, clones.tap, clone.keeper)
    return clone


def is_paused_for_want_of_a_page(clones, clone, silent_since):
    """@param silent_since  when its memserver stood still, to be killed then"""
    xenfork.wait_for("pause of the clone", lambda: "p" in xenfork.run("xl", "list", clone.name).split()[-2], xenfork.PATIENCE_S,
                     clones.tap, clone.keeper)
    seconds = time.monotonic() - silent_since
    print(f"note: a clone is paused {seconds:.1f} s after its memserver fell silent, --give-up being {GIVE_UP_S} s", flush=True)
    counters = clones.counters()
    print(clones.tap.tail(), flush=True)
    return counters[0].get("failed_pages", 0) > 0 and counters[clone.keeper.pid].get("pauses", 0) > 0


def main():
    xenfork.make_folders()
    xenfork.make_network()
    taken = []
    parent = xenfork.Parent(*settings(int(sys.argv[1])), before=lambda: taken.append(take_memory()))
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
    good &= checked("end of all", not complaints)
    parent.ticks_then = len(xenfork.ticks(xenfork.PARENT))
    good &= checked("parent with its memory back", parent.row()["checksum_ok"])
    parent.freeze("--xen-ram", "in-place")
    clone = add_clone(clones)
    silent_since = time.monotonic()
    os.kill(parent.server.pid, signal.SIGSTOP)
    time.sleep(1)  # in which the vCPUs come to pages that they do not get
    parent.server.kill()
    parent.ticks_then, began = len(xenfork.ticks(xenfork.PARENT)), time.monotonic()
    xenfork.wait_for("tick", lambda: len(xenfork.ticks(xenfork.PARENT)) > parent.ticks_then, xenfork.PATIENCE_S)
    print(f"note: the parent is at work again after {time.monotonic() - began:.1f} s", flush=True)
    good &= checked("parent whose memserver was killed", parent.row()["checksum_ok"])
    good &= checked("clone whose memserver was killed", is_paused_for_want_of_a_page(clones, clone, silent_since))
    xenfork.run("xl", "destroy", clone.name)
    complaints += xenfork.end([*clones.processes()], [clone.name])
    print("\n".join(complaints))
    return 0 if good else 1


if __name__ == "__main__":
    xenfork.script(main)
