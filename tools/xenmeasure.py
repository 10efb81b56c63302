# SPDX-License-Identifier: BSD-3-Clause
"""In dom0: what a freeze and page faults cost, beside what Xen itself takes. A job of tools/xen-testbed bench: reads
/host/bench.json, writes /host/result.json."""
import json
import pathlib
import time

import xenfork
from xenfork import HOST, RUN

PATTERN_PAGES = 64 * 256  # that a clone looks at, one behind the other, as soon as it runs
TICKS = 3
QUIET_S = 10  # after which a push is over


def freezes(rounds):
    """Of the running parent, before it is forked."""
    return json.loads(xenfork.run(str(HOST / "xen-bench"), "freeze", xenfork.PARENT, "--rounds", str(rounds)))


def frozen_image(server):
    """memserver's copy of the parent."""
    process = pathlib.Path(f"/proc/{server.pid}")
    for line in (process / "maps").read_text().splitlines():
        if "/memfd:frozen domain" in line:
            return process / "map_files" / line.split()[0]
    raise xenfork.ForkError("memserver holds no frozen domain")


def faults_per_second(name):
    """A clone wakes in the middle of a tick, so its first two have all the faults; the third has none."""
    times = xenfork.tick_times(name)
    return PATTERN_PAGES * 1e6 / max(1, times[0] + times[1] - 2 * times[2])


def measure_clone(name, socket, config, *others):
    clone = xenfork.Clone(name, socket, config)
    xenfork.wait_for(f"{TICKS} ticks of {name}", lambda: len(xenfork.tick_times(name)) >= TICKS, xenfork.PATIENCE_S, clone.keeper,
                     *others)
    if any(bad for *_, bad in xenfork.ticks(name)):
        raise xenfork.ForkError(f"{name} found bad pages")
    rate = faults_per_second(name)
    stop(clone.keeper)
    print(f"{name}: {rate:.0f} faults/s", flush=True)
    return rate


def stop(process):
    if complaint := process.stop(xenfork.END_S):
        raise xenfork.ForkError(complaint)


def bare_rate(number, server, config):
    socket = RUN / "pager.sock"
    pager = xenfork.program("pager", "xen-bench", ["pager", socket, xenfork.DESCRIPTOR, frozen_image(server)])
    xenfork.wait_for("socket of the pager", socket.exists, 60, pager)
    rate = measure_clone(f"bare{number}", socket, config, pager)
    stop(pager)
    return rate


def wait_for_push(clones):
    """Until it is over. @return how many pages it brought"""
    def kept():
        return clones.counters()[0].get("kept_pages", 0)
    xenfork.wait_for("page of the push", kept, xenfork.PATIENCE_S, clones.tap)
    nb_pages = 0
    while kept() != nb_pages:
        nb_pages = kept()
        time.sleep(QUIET_S)
    return nb_pages


def measure_pushed(rounds, parent, clones):
    """A freeze each: what the push did not bring, a clone fetches, and the next would have it. @return the rates, and of each
    push how many pages it brought and how many it should have"""
    rates, pushes = [], []
    for i in range(rounds):
        parent.freeze("--push")
        image = json.loads((RUN / "server.json").read_text())["images"][0]
        clones.start_tap()
        pushes.append((wait_for_push(clones), image["pages"] - image["zero_pages"]))
        rates.append(measure_clone(f"pushed{i}", clones.socket, clones.config, clones.tap))
        stop(clones.tap)
        stop(parent.server)
    return rates, pushes


def measure_faults(rounds, server, clones):
    rates = {"bare": [], "fabric": [], "kept": []}
    for i in range(rounds):
        rates["bare"].append(bare_rate(i, server, clones.config))
        for kind in ("fabric", "kept"):  # what the first has fetched, memtap has for the second
            rates[kind].append(measure_clone(f"{kind}{i}", clones.socket, clones.config, clones.tap))
        stop(clones.tap)
        if i + 1 < rounds:
            clones.start_tap()
    return rates


def main():
    options = json.loads((HOST / "bench.json").read_text())
    rounds = options["rounds"]
    xenfork.SERVE.remove("--push")  # every page is a fault
    xenfork.make_folders()
    xenfork.make_network()
    measured = {}
    # No agent: what is free is copied too, as the bare loop does, and no clone looks for it.
    settings = f"memory={options['vm_mb']}", 'extra="console=hvc0 panic=-1 SF_MIB=64"'
    parent = xenfork.Parent(*settings, before=lambda: measured.update(freezes=freezes(rounds)))
    measured["descriptor_bytes"] = xenfork.DESCRIPTOR.stat().st_size
    clones = xenfork.Clones([], tap_args=["--prefetch", "0"])  # as the bare pager: one page a fault
    measured["faults"] = measure_faults(rounds, parent.server, clones)
    stop(parent.server)
    measured["faults"]["pushed"], measured["pushed_pages"] = measure_pushed(rounds, parent, clones)
    (HOST / "result.json").write_text(json.dumps(measured))
    return 0


if __name__ == "__main__":
    xenfork.script(main)
