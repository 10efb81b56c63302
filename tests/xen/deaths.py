# SPDX-License-Identifier: BSD-3-Clause
"""In dom0: one fork in which memtap, the parent and a clone die while pages are on their way, and the other clone balloons.
Ends with status 0 if that clone goes on with its memory right."""
import xenfork

FAULTS_FIRST = 300  # that both clones have had when it begins


def faults(clones):
    return [row["faults"] or 0 for row in clones.rows()]


def main():
    xenfork.make_folders()
    xenfork.make_network()
    parent = xenfork.Parent("memory=160", "vcpus=2", 'extra="console=hvc0 panic=-1 SF_MIB=16 SF_LOOKERS=2 SF_CLAIM_MS=1000"')
    clones = xenfork.Clones(["clone1", "clone2"])
    keepers = [clone.keeper for clone in clones.clones]
    xenfork.wait_for("faults", lambda: min(faults(clones)) > FAULTS_FIRST, xenfork.PATIENCE_S, clones.tap, *keepers)
    print("memtap is killed, and with it gone the parent and a clone that waits for a page", flush=True)
    clones.tap.kill()
    xenfork.run("xl", "destroy", xenfork.PARENT)
    xenfork.run("xl", "destroy", "clone2")
    xenfork.wait_for("end of clone2's keeper", lambda: keepers[1].status() is not None, xenfork.PATIENCE_S)
    if keepers[1].status() != 0:
        print(f"the keeper of a clone that was destroyed ended with {keepers[1].status()}\n{keepers[1].tail()}")
        return 1
    ticks_then = len(xenfork.ticks("clone1"))
    clones.start_tap()
    clones.clones.pop()
    xenfork.run("xl", "mem-set", "clone1", "140")
    clones.wait(xenfork.PATIENCE_S, ticks_then + xenfork.GOOD_TICKS)
    row = clones.rows()[0]
    print(row)
    complaints = xenfork.end([keepers[0], clones.tap, parent.server], ["clone1", "clone2"])
    print("\n".join(complaints))
    return 0 if row["checksum_ok"] and not complaints else 1


if __name__ == "__main__":
    xenfork.script(main)
