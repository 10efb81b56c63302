# SPDX-License-Identifier: BSD-3-Clause
"""In dom0: one fork of a parent of more vCPUs than the paging ring has slots. The parent is destroyed, a clone is destroyed while
it waits for a page, and memtap is killed until more of the other clone's vCPUs waited than the ring has slots, which is a matter of
luck, or six times; that clone claims free pages and balloons, too. Ends with status 0 if it goes on with its memory right."""
import os
import signal
import time

import xenfork

NB_VCPUS = 10  # two more than the paging ring has slots
MOST_KILLS = 6
FAULTS_FIRST = 200  # that clones have had of a memtap when it dies
SETTINGS = ("memory=192", f"vcpus={NB_VCPUS}", "extra=\"console=hvc0 panic=-1 SF_MIB=40 SF_CLAIM_MS=100 SF_REST_MS=0 "
            f"SF_LOOKERS={NB_VCPUS} SF_CPUS={NB_VCPUS} maxcpus=1\"")


def faults(clones):
    return [row["faults"] or 0 for row in clones.rows()]


def wait_for_faults(clones):
    xenfork.wait_for("faults", lambda: min(faults(clones)) > FAULTS_FIRST, xenfork.PATIENCE_S, clones.tap,
                     *(clone.keeper for clone in clones.clones))


def kill_memtap(clones):
    """While it stands the vCPUs run until they, too, wait for a page."""
    wait_for_faults(clones)
    os.kill(clones.tap.pid, signal.SIGSTOP)
    time.sleep(1)
    clones.tap.kill()


def take_overs(keeper):
    """Of each memtap that died: whether its ring was full."""
    return ["more vCPUs waited" in line for line in keeper.tail(lines=1000).splitlines() if "handed to the next memtap" in line]


def main():
    xenfork.make_folders()
    xenfork.make_network()
    parent = xenfork.Parent(*SETTINGS)
    xenfork.run("xl", "pause", xenfork.PARENT)  # it would take the clones' CPU
    clones = xenfork.Clones(["clone1", "clone2"])
    keepers = [clone.keeper for clone in clones.clones]
    wait_for_faults(clones)
    xenfork.run("xl", "destroy", xenfork.PARENT)
    kill_memtap(clones)
    xenfork.run("xl", "destroy", "clone2")
    xenfork.wait_for("end of clone2's keeper", lambda: keepers[1].status() is not None, xenfork.PATIENCE_S)
    if keepers[1].status() != 0:
        print(f"the keeper of a clone that was destroyed ended with {keepers[1].status()}\n{keepers[1].tail()}")
        return 1
    clones.clones.pop()
    clones.start_tap()
    for nb_kills in range(1, MOST_KILLS + 1):
        xenfork.wait_for("take-over", lambda: len(take_overs(keepers[0])) == nb_kills, xenfork.PATIENCE_S, clones.tap, keepers[0])
        print(f"memtap killed {nb_kills} times; its ring was full: {take_overs(keepers[0])}", flush=True)
        if take_overs(keepers[0])[-1] or nb_kills == MOST_KILLS:
            break
        kill_memtap(clones)
        clones.start_tap()
    xenfork.run("xl", "mem-set", "clone1", "176")
    clones.wait(2 * xenfork.PATIENCE_S, len(xenfork.ticks("clone1")) + xenfork.GOOD_TICKS)
    row = clones.rows()[0]
    print(row)
    complaints = xenfork.end([keepers[0], clones.tap, parent.server], ["clone1", "clone2"])
    print("\n".join(complaints))
    return 0 if row["checksum_ok"] and not complaints else 1


if __name__ == "__main__":
    xenfork.script(main)
