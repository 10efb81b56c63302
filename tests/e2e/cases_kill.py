# SPDX-License-Identifier: BSD-3-Clause
"""Forks in which somebody is killed at any moment: round after round, drawn from the seed."""
import collections
import contextlib
import os
import pathlib
import random
import signal
import sys
import threading
import time

import fleetlib
import forking
import vmlib
from lib import Failed, case, check

KINDS = ("memserver", "memtap", "clone", "parent", "guard")
CLONES = {1: (1, True), 2: (1, False), 3: (2, True), 4: (2, False)}  # by id: the host, and whether by postcopy
LATEST_S = 8.0  # after it began, or for the parent after the fork began: by then clones have read all they check
LATEST_OF_GUARD_S = 0.05  # it is there for the time of a freeze
MAX_ATTEMPTS = 6  # at one death, should who is to die be gone by then
GIVE_UP_S = 5
STEP_S = 2.0  # a clone that is silent for so long may need help
PATIENCE_S = 90.0
PAGE_FAILED = (-signal.SIGBUS, -signal.SIGKILL)  # the latter where the kernel cannot poison a page


class Ended(Exception):
    """A clone's QEMU is gone."""


class Starved(Exception):
    """A clone waits for a page that no memserver has."""


class Guard:
    """A memserver's sf-guard, as far as a process of the fleet is like it."""

    def __init__(self, pid):
        self.pid, self.began = pid, time.monotonic()

    def status(self):
        """None while it runs: it is memserver's child, and its own exit status is not for us."""
        with contextlib.suppress(OSError):
            state = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
            return "ended" if state in "ZX" else None
        return "gone"

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def guard_of(server):
    """@return None: it has none"""
    with contextlib.suppress(OSError):  # somebody has just gone
        for task in pathlib.Path(f"/proc/{server.pid}/task").iterdir() if server else ():
            for pid in (task / "children").read_text().split():
                if pathlib.Path(f"/proc/{pid}/comm").read_text() == "sf-guard\n":
                    return Guard(int(pid))
    return None


class Death(threading.Thread):
    """Kills one process of a kind, a random time after it began, unless it has ended by then."""

    def __init__(self, vms, kind, rng):
        super().__init__(daemon=True)
        self.vms, self.kind = vms, kind
        self.host, self.clone_id = rng.choice((1, 2)), rng.choice(list(CLONES))
        self.delay_s = rng.uniform(0, LATEST_OF_GUARD_S if kind == "guard" else LATEST_S)
        self.began, self.process, self.struck_at = time.monotonic(), None, None

    def _victim(self):
        if self.kind == "parent":
            return self.vms.parent.process
        if self.kind == "clone":
            found = (clone.vm.process for clone in self.vms.clones if clone.identity.id == self.clone_id)
            return next(found, None)
        if self.kind == "guard":
            return guard_of(self.vms.fleet.server)
        return self.vms.fleet.server if self.kind == "memserver" else self.vms.fleet.memtaps.get(self.host)

    def run(self):
        while not (victim := self._victim()):
            if self.kind == "guard" and self.vms.fleet.info:
                return  # it was too quick for us
            time.sleep(0.002)
        time.sleep(max(0.0, max(victim.began, self.began) + self.delay_s - time.monotonic()))
        if victim.status() is not None:
            return
        self.process, self.struck_at = victim, time.monotonic()
        victim.kill()

    def missed(self):
        return not self.is_alive() and self.process is None

    def struck(self, *kinds):
        return self.process is not None and self.kind in kinds

    def struck_memtap(self, host):
        return self.struck("memtap") and host == self.host

    def struck_clone(self, clone_id):
        return self.struck("clone") and clone_id == self.clone_id


class Round:
    """One fork, one death, and what must hold of all others."""

    def __init__(self, vms, kind, rng):
        self.vms, self.death = vms, Death(vms, kind, rng)
        self.outcome = collections.Counter()
        self.identified, self.recovered = set(), set()  # QEMU processes

    def play(self):
        self.vms.fleet.info = {}
        self.death.start()
        if self._fork() and not self.death.missed() and all([self._start_memtap(host) for host in (1, 2)]):
            clones = [self._begin(clone_id) for clone_id in CLONES]
            clones = [self._survive(self._settle, clone) for clone in clones if clone]
            clones = [clone for clone in clones if clone]
            clones = [clone for clone in clones if self._survive(self._read, clone)]
            self.death.join()
            for clone in clones:  # also those that were complete by then
                self.outcome["complete"] += self._survive(self._read, clone) is not None
        self.death.join()
        if not self.death.struck("parent"):
            forking.check_parent(self.vms)
            self.vms.parent.channel.ask(f"DIRTY {forking.NB_DIRTY_PAGES}", "DIRTYING")

    def _fork(self):
        """@return whether there is something to clone"""
        try:
            self.vms.fork(len(CLONES))
        except vmlib.VmError:
            if not self.death.struck("memserver", "parent", "guard"):  # without a guard nothing is frozen
                raise
        if not self.vms.fleet.info and not self.death.struck("memserver"):
            self._lose_server()
        return bool(self.vms.fleet.info)

    def _lose_server(self):
        """A parent that is gone, or has no guard, cannot be frozen: memserver, if it runs by then, says so and ends."""
        server, self.vms.fleet.server = self.vms.fleet.server, None
        if server and server.wait(30.0) != 1:
            raise Failed(f"memserver ended with status {server.status()}, and could not freeze its parent")
        self.outcome["died before it was frozen"] += 1

    def _start_memtap(self, host):
        for _ in range(2):
            try:
                return self.vms.fleet.start_memtap(host)
            except fleetlib.FleetError:
                if self.death.struck("memserver"):
                    self.outcome["memtap gave up"] += 1
                    del self.vms.fleet.memtaps[host]
                    return None
                if not self.death.struck_memtap(host):
                    raise
        raise Failed(f"memtap{host} did not begin, though it was killed once")

    def _begin(self, clone_id):
        """Starts a clone, again if its memtap died before it had its state. @return None if it cannot be"""
        for _ in range(3):
            try:
                return self.vms.spawn(clone_id, *CLONES[clone_id])
            except vmlib.VmError:
                clone = self.vms.clones[-1]
                if not self._may_end(clone):
                    raise
                self._drop(clone)
                if self.death.struck("memserver", "clone"):
                    return None
                self._heal(clone.host)
        raise Failed(f"clone {clone_id} did not begin")

    def _may_end(self, clone):
        """Whether what was killed is reason enough for the end of a clone, or for its not beginning."""
        if self.death.struck_clone(clone.identity.id):
            self.outcome["killed"] += 1
            return True
        process = clone.vm.process
        if self.death.struck("memserver") or self.death.struck_memtap(clone.host):
            if process not in self.identified:
                self.outcome["ended before it ran"] += 1
                return True
            # Its memtap went a second time, amid the recovery: docs/qemu-stream.md, Recovery.
            if self.death.struck("memserver") and process in self.recovered and process.status() == -11:
                self.outcome["QEMU crashed in the recovery"] += 1
                return True
            # docs/design.md, "A dead memserver": its page fails, where a clone by postcopy pauses.
            if self.death.struck("memserver") and not clone.postcopy and process.status() in PAGE_FAILED:
                self.outcome["ended on its page"] += 1
                return True
        return False

    def _drop(self, clone):
        self.vms.clones.remove(clone)
        clone.close()

    def _survive(self, step, clone):
        """Takes a step with a clone; one that may end, and was not to be killed, is started again and settled.
        @return the clone, None if it is gone or waits for ever"""
        for _ in range(3):
            try:
                step(clone)
                return clone
            except Starved:
                self.outcome["waits"] += 1
                return None
            except Ended as error:
                if not self._may_end(clone):
                    raise Failed(f"clone {clone.identity.id}: {error}") from error
            self._drop(clone)
            if self.death.struck("memserver", "clone"):
                return None
            clone = self._begin(clone.identity.id)
            step = step if step == self._settle else self._settle_and_read
        raise Failed(f"clone {clone.identity.id} ended again and again")

    def _settle_and_read(self, clone):
        self._settle(clone)
        self._read(clone)

    def _settle(self, clone):
        self._ask(clone, clone.identity.ret(), "IDENTIFIED")
        self.identified.add(clone.vm.process)
        self._patiently(clone, lambda: clone.vm.qmp("set_link", name=vmlib.NETDEV, up=True))
        self._ask(clone, "ANNOUNCE", "READY")
        clone.answer = self._patiently(clone, lambda: self.vms.ask_web(clone.identity, STEP_S))
        forking.check_answer(clone)

    def _read(self, clone):
        forking.check_verified(clone.vm, vmlib.fields(self._ask(clone, "VERIFY", "VERIFIED")))

    def _ask(self, clone, command, word):
        self._patiently(clone, lambda: clone.vm.channel.send(command))
        return self._patiently(clone, lambda: clone.vm.channel.expect(word, STEP_S))

    def _patiently(self, clone, step):
        """Until the step succeeds, whatever the death does to the clone meanwhile."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self._heal(clone.host)
            try:
                return step()
            except vmlib.VmError as error:
                now = time.monotonic()
                if not clone.vm.is_running():
                    raise Ended(str(clone.vm.failure(str(error)))) from error
                if self.death.struck("memserver") and now > self.death.struck_at + GIVE_UP_S + 2 * STEP_S:
                    raise Starved from error
                if now > deadline:
                    raise clone.vm.failure(f"not within {PATIENCE_S:.0f} s: {error}") from error
            time.sleep(0.02)

    def _heal(self, host):
        """Gives a host whose memtap was killed another, and that one the clones by postcopy. The others find it."""
        if not self.vms.fleet.memtaps[host].killed:
            return
        self.death.join()
        self.vms.fleet.start_memtap(host)
        for clone in self.vms.clones:
            if clone.host == host and clone.postcopy and clone.vm.is_running():
                try:
                    self._take_over(clone)
                except vmlib.VmError:
                    if clone.vm.is_running():
                        raise

    def _take_over(self, clone):
        clone.vm.wait_migration("postcopy-paused", "completed")
        if clone.vm.qmp.migration == "postcopy-paused":
            self.recovered.add(clone.vm.process)
            self.vms.recover(clone)
            self.outcome["recovered"] += 1

    def end(self):
        """All go but the parent, and they do so in good order."""
        self.vms.end_fork()
        fleet = self.vms.fleet
        fleet.memtaps.clear()
        fleet.server = None
        if self.death.struck("parent"):
            self.vms.parent.stop()
            (fleet.dir / f"shim{self.vms.number}.sock").unlink()  # docs/shim.md: a killed QEMU leaves it behind
            forking.boot(self.vms)


def play_until_struck(vms, kind, number, seed):
    """A round in which nobody was struck shows nothing: it is repeated, with another moment. @return the last one"""
    for attempt in range(MAX_ATTEMPTS):
        turn = Round(vms, kind, random.Random(f"{seed} {number} {attempt}"))
        death = turn.death
        who = {"memtap": f" on host {death.host}", "clone": f" {death.clone_id}"}.get(kind, "")
        print(f"    round {number}: {kind}{who} at {death.delay_s:.2f} s", file=sys.stderr, flush=True)
        turn.play()
        turn.end()
        if death.process:
            turn.outcome.update(rounds=1, missed=attempt)
            print(f"      {dict(+turn.outcome)}", file=sys.stderr, flush=True)
            return turn
        print("      it was gone by then", file=sys.stderr, flush=True)
    raise Failed(f"round {number}, seed {seed}: no {kind} was there to be killed, {MAX_ATTEMPTS} times")


@case(60 + 60 * len(KINDS), round_s=60)
def fork_survives_random_kills(context):
    """One random process of each fork is killed; of each kind one at least, however few the rounds. No clone has ever a
    wrong page, the parent lives on, and whoever does not need the dead one completes."""
    order_of = random.Random(context.seed)
    tally = {kind: collections.Counter() for kind in KINDS}
    with forking.family(context, memtap_args=("--give-up", GIVE_UP_S)) as vms:
        for number in range(max(context.rounds, len(KINDS))):
            if number % len(KINDS) == 0:
                order = order_of.sample(KINDS, len(KINDS))
            kind = order[number % len(KINDS)]
            tally[kind] += play_until_struck(vms, kind, number, context.seed).outcome
    check(all(counts["rounds"] for counts in tally.values()), f"not everybody was killed once: {tally}")
    return f"seed {context.seed}; " + "; ".join(f"{kind}: {dict(counts)}" for kind, counts in tally.items())
