# SPDX-License-Identifier: BSD-3-Clause
"""What the end-to-end cases share: images, a world to run in, checks, and the search for leftovers."""
import contextlib
import json
import os
import pathlib
import random
import re
import secrets
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]
import fleetlib  # noqa: E402 (behind the path where it is)
import lablib  # noqa: E402 (behind the path where it is)

CASES = {}
SLOW_WIRE = ("--rate-gbps", "0.1", "--max-rate-gbps", "0.1")  # leaves time to interfere mid-way


class Failed(Exception):
    """A case's expectation did not hold."""


class Skipped(Exception):
    """The case cannot run here, and why."""


class TimedOut(Exception):
    """The case ran longer than it may."""


def case(timeout_s, round_s=0):
    """Registers a case: a function of a Context. @param round_s  more time for each of the context's rounds"""
    def register(function):
        CASES[function.__name__] = (function, timeout_s, round_s)
        return function
    return register


def check(holds, text):
    if not holds:
        raise Failed(text)


def seconds_since(began):
    return f"{time.monotonic() - began:.2f} s"


def wait_until(holds, what, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise Failed(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.01)


@contextlib.contextmanager
def time_limit(seconds):
    def expired(_signum, _frame):
        raise TimedOut(f"still running after {seconds} s")
    signal.signal(signal.SIGALRM, expired)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def make_image(path, mb, seed):
    """A memory image of mixed pages: runs of zeros, random, patterned and sparse ones; also repeated contents."""
    rng = random.Random(seed)
    repeated = rng.randbytes(fleetlib.PAGE)
    kinds = {
        "zero": lambda: bytes(fleetlib.PAGE),
        "random": lambda: rng.randbytes(fleetlib.PAGE),
        "pattern": lambda: rng.randbytes(16) * (fleetlib.PAGE // 16),
        "repeated": lambda: repeated,
        # Looks zero until its last byte.
        "sparse": lambda: bytes(fleetlib.PAGE - 1) + bytes([rng.randrange(1, 256)]),
    }
    names, weights = list(kinds), [30, 40, 20, 5, 5]
    left = mb * 256
    with open(path, "wb") as out:
        while left > 0:
            run = min(left, rng.randrange(1, 65))
            kind = kinds[rng.choices(names, weights)[0]]
            out.write(b"".join(kind() for _ in range(run)))
            left -= run
    return path


def key_file(context, name="key"):
    """A new key for a group."""
    path = context.workdir / name
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    return path


def lab_name():
    return f"sf-e2e-{os.getpid()}"


class Context:
    """What a case gets: programs, image, seed and rounds of this run."""

    def __init__(self, build, image, seed, workdir, rounds):
        self.build, self.image, self.seed, self.workdir, self.rounds = build, image, seed, workdir, rounds
        self.nb_pages, self.nb_nonzero = fleetlib.count_pages(image)

    def unique_bytes(self, mtu):
        return self.nb_nonzero * fleetlib.page_wire_bytes(mtu)

    @contextlib.contextmanager
    def world(self, mtu=9000, nb_hosts=4, loss=0.0, server_args=(), memtap_args=(), memtaps=None, wrap=()):
        """Lab, memserver and memtaps; at the end, that everything stopped as asked and left nothing."""
        lab = lablib.Lab(lab_name(), nb_hosts, mtu)
        options = fleetlib.Options(self.build, self.image, loss=loss, seed=self.seed, server_args=server_args,
                                   memtap_args=memtap_args, wrap=wrap)
        with lab, fleetlib.Fleet(lab, options) as fleet:
            try:
                fleet.start_server()
                fleet.start_memtaps(range(1, nb_hosts + 1) if memtaps is None else memtaps)
                yield fleet
                complaints = fleet.stop()
                check(not complaints, "; ".join(complaints))
            except Exception:
                for process in fleet.processes():
                    print(process.tail(), file=sys.stderr)
                raise
        check_no_leftovers(lab, fleet)


def run_tool(context, tool, *options):
    """Runs one of tools/ as a user does; it must leave no namespace of a lab of its own. @return what it wrote into --json"""
    path = context.workdir / f"{tool}.json"
    path.unlink(missing_ok=True)
    process = subprocess.Popen([ROOT / "tools" / tool, *options, "--build-dir", context.build, "--json", path],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = process.communicate()[0]
    finally:
        process.terminate()  # it cleans up then
        process.wait()
    check(process.returncode == 0 and path.exists(), f"{tool} ended with {process.returncode}: {said[-2000:]}")
    left = [name for name in lablib.namespaces() if re.fullmatch(rf"sf-\w+-{process.pid}-\w+", name)]
    check(not left, f"{tool} has left {left}")
    return json.loads(path.read_text())


def check_no_leftovers(lab, fleet):
    check(not lab.existing(), f"namespaces left: {lab.existing()}")
    check(not fleet.dir.exists(), f"{fleet.dir} left")
    marker = str(fleet.dir).encode()
    for cmdline in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            check(marker not in cmdline.read_bytes(), f"process {cmdline.parent.name} left")


def start_clones(fleet, nb_clones, order, hosts=None, extra=()):
    """Clone i on the i-th host in turn; `order` may be one or a list taken in turn."""
    hosts = hosts or sorted(fleet.memtaps)
    orders = [order] if isinstance(order, str) else order
    first = len(fleet.guests)
    with fleet.at_once():
        return [fleet.start_guest(first + i, hosts[i % len(hosts)], orders[i % len(orders)],
                                  extra)
                for i in range(nb_clones)]


def check_complete(context, fleet, guests, timeout_s=120.0):
    """Every one of these guests ended well and verified every page."""
    check(fleet.wait_guests(timeout_s, guests),
          f"guests not complete after {timeout_s:.0f} s: {[g.id for g in guests if g.status() is None]}")
    for guest in guests:
        report = fleet.report(guest)
        check(guest.status() == 0 and report, f"guest {guest.id} on host {guest.host}: status {guest.status()}")
        check(report["verified"] is True and report["pages"] == context.nb_pages and report["mismatches"] == 0,
              f"guest {guest.id}: {report}")


def check_told(fleet, host, by):
    """Guests of this host have failed pages, were told in one of these ways alone (counters), and memtap says so.
    @return pages failed"""
    ways = ("pauses", "poisoned_pages", "kills")
    log = fleet.memtaps[host].log
    wait_until(lambda: "pages failed so far" in log.read_text(), "memtap says that pages failed", 5.0)
    stats = fleet.memtap_stats(host)
    seen = {name: stats[name] for name in ("failed_pages", *ways)}
    check(stats["failed_pages"] > 0 and any(stats[way] for way in by), f"memtap {host} counts {seen}")
    check(not any(stats[way] for way in ways if way not in by), f"memtap {host} counts {seen}")
    return stats["failed_pages"]


def check_wire_ratio(context, fleet, mtu, limit):
    """All bytes the memserver sent, against every non-zero page once."""
    sent = fleet.server_stats()["tx_bytes"]
    ratio = sent / context.unique_bytes(mtu)
    check(ratio <= limit, f"wire ratio {ratio:.3f} > {limit} ({sent} bytes)")
    return f"wire ratio {ratio:.3f}"


def half_way(context, fleet):
    """Waits until half of the pages went out: the moment to interfere."""
    wait_until(lambda: fleet.server_stats().get("pages_sent_once", 0) >= context.nb_nonzero // 2,
               "half of the pages on the wire", 60.0)
    running = [g for g in fleet.guests if g.status() is None]
    check(running, "every guest was complete before the test could interfere: slow the wire down")
