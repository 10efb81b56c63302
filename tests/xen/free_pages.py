# SPDX-License-Identifier: BSD-3-Clause
"""In dom0: what the agent in a guest saves its clones, and that agent and memtap never lose a page between them.
Clones fill and check 32 MiB of memory that had been written to and was free at the fork. usage: free_pages.py NB-RACES
Ends with status 0 if the agent avoids 80 % of the fetches of that, and no clone of the races finds a bad page."""
import sys

import xenfork

FILL_MIB, PAGES_PER_MIB = 32, 256
RACE_FILL_MIB, RACE_TICKS = 8, 2  # of a clone that races: what is raced for is over with its first look at all of its memory
AVOIDED = 0.8
CLAIM_MS = 100  # of the races
QUIET_TICKS = 24  # of a parent; it must have been frozen by then


def settings(claim_ms, fill_from, fill_mib):
    """Of a guest that fills memory in its first tick and from another on; with an agent that claims every `claim_ms`, 0:
    never; None: without one."""
    agent = "" if claim_ms is None else f"SF_CLAIM_MS={claim_ms}"
    return "memory=160", f'extra="console=hvc0 panic=-1 SF_MIB=16 SF_FILL_MIB={fill_mib} SF_FILL_FROM={fill_from} {agent}"'


class Fork:
    """A parent with its memserver, and a memtap with one clone. Use with `with`."""

    def __init__(self, claim_ms, fill_from, fill_mib=FILL_MIB):
        self.parent = xenfork.Parent(*settings(claim_ms, fill_from, fill_mib))
        self.clones = xenfork.Clones(["clone0"])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        keepers = [clone.keeper for clone in self.clones.clones]
        complaints = xenfork.end([*keepers, self.clones.tap, self.parent.server], [])
        xenfork.run("xl", "destroy", xenfork.PARENT)
        for name in ("server0", "tap0"):
            xenfork.run("ip", "link", "del", name)
        for file in (xenfork.DESCRIPTOR, xenfork.RUN / "server.json"):
            file.unlink(missing_ok=True)
        for log in xenfork.LOGS.glob("guest-*.log"):
            log.unlink()
        if complaints:
            raise xenfork.ForkError("\n".join(complaints))

    def row(self, last_tick, nb_ticks=xenfork.GOOD_TICKS):
        """Of the clone, once it has come so far and worked for a while."""
        def ticks():
            return [tick for tick, *_ in xenfork.ticks(self.clones.clones[0].name)]
        self.clones.wait(xenfork.PATIENCE_S, nb_ticks)
        xenfork.wait_for(f"tick {last_tick} of a clone", lambda: ticks()[-1] >= last_tick, xenfork.PATIENCE_S, self.clones.tap)
        row = self.clones.rows()[0]
        print(row, flush=True)
        if not row["checksum_ok"]:
            raise xenfork.ForkError(f"{row['clone']} found bad pages:\n{xenfork.log_of(row['clone'])[-2000:]}")
        return row


def fetched(claim_ms):
    with Fork(claim_ms, QUIET_TICKS + 1) as fork:
        row = fork.row(QUIET_TICKS + 2)
        if row["first_tick"] > QUIET_TICKS:
            raise xenfork.ForkError(f"the parent was frozen in tick {row['first_tick']}, too late to say what was avoided")
        return row["pages"]


def race(nb_races):
    """Pages are pushed while the agent claims, and both flip bits of the same words. @return pages claimed in all"""
    nb_claimed = 0
    with Fork(CLAIM_MS, 1, RACE_FILL_MIB) as fork:
        for i in range(nb_races):
            nb_claimed += fork.row(0, RACE_TICKS)["claimed_pages"]
            clone = fork.clones.clones.pop()
            if complaint := clone.keeper.stop(xenfork.END_S):
                raise xenfork.ForkError(complaint)
            if i + 1 < nb_races:
                fork.clones.add(f"clone{i + 1}")
    return nb_claimed


def main():
    nb_races = int(sys.argv[1])
    xenfork.make_folders()
    xenfork.make_network()
    nb_claimed = race(nb_races) if nb_races > 0 else None
    print(f"note: {nb_races} clones right that raced, which claimed {nb_claimed} pages", flush=True)
    xenfork.SERVE.remove("--push")
    without, with_agent = fetched(None), fetched(0)
    avoided = (without - with_agent) / (FILL_MIB * PAGES_PER_MIB)
    print(f"note: fetched without an agent {without}, with one {with_agent}: avoided {avoided:.0%} of {FILL_MIB} MiB", flush=True)
    if nb_claimed == 0:
        print("no clone of the races claimed a page: they did not race")
        return 1
    return 0 if avoided >= AVOIDED else 1


if __name__ == "__main__":
    xenfork.script(main)
