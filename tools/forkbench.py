# SPDX-License-Identifier: BSD-3-Clause
"""Benchmarks of forking a VM: how soon clones run, how long the parent pauses, what clones cost."""
import contextlib
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

import benchlib
import fleetlib
import forklib
import lablib
import vmlib
from vmlib import VmError

# A line every 20 ms, by a shell that starts no process for it.
TICKER = "RUN mkfifo /tmp/t; exec 9<>/tmp/t; while :; do read -t 0.02 -u 9 x; echo tick; done >/dev/console"
START_S = 60.0


@contextlib.contextmanager
def booted(args, mb, nb_hosts=1, dirty_pages=0, populated=False):
    """A family whose parent has a pattern in its memory.
    @param dirty_pages  it rewrites so many of them, as fast as it can
    @param populated    the host has given it every page of its RAM"""
    lab = lablib.Lab(f"sf-bench-{os.getpid()}", nb_hosts, args.mtu)
    with lab, fleetlib.Fleet(lab, fleetlib.Options(args.build_dir, None)) as fleet:
        lab.add_vm_net(vmlib.HOST_IP)
        with forklib.Family(lab, fleet, mb=mb) as family:
            if populated:
                family.parent_machine = [arg.replace("share=on", "share=on,prealloc=on") for arg in family.parent_machine]
            parent = family.boot()
            family.ask_web(family.identity(0))
            parent.channel.ask(f"FILL {args.fill_mb}", "FILLED", 120.0)
            if dirty_pages:
                parent.channel.ask(f"DIRTY {dirty_pages}", "DIRTYING")
            yield family


def rounds(args):
    """Numbers of the runs, said as they begin."""
    for number in range(1, args.runs + 1):
        benchlib.say_round(number, args.runs)
        yield number


def forked(family, nb_clones, nb_hosts):
    """A fork whose memtaps run."""
    family.fork(nb_clones)
    family.fleet.start_memtaps(range(1, nb_hosts + 1))
    family.fleet.wait_server()


def verified(clone):
    if forklib.verify(clone.vm)["bad"]:
        raise VmError(f"VM {clone.vm.name}: its memory is not the parent's")


# --- how soon clones run ------------------------------------------------------------------------------------------

class LocalImage:
    """What QEMU does alone: the parent's RAM in a local file, mapped privately by each clone, its state in another."""

    def __init__(self, parent, folder):
        self.ram, self.state = folder / "ram", folder / "state"
        self._mode(parent, True)
        try:
            parent.qmp("migrate", uri=f"exec:cat >{self.state}")
            while (status := parent.qmp("query-migrate").get("status")) != "completed":
                if status in ("failed", "cancelled"):
                    raise parent.failure(f"its state could not be saved: {status}")
                time.sleep(0.01)
            fds = pathlib.Path(f"/proc/{parent.process.pid}/fd")
            ram = next(fd for fd in fds.iterdir() if "memory-backend-memfd" in os.readlink(fd))
            subprocess.run(["cp", "--sparse=always", ram, self.ram], check=True)
        finally:
            self._mode(parent, False)
        parent.qmp("cont")

    @staticmethod
    def _mode(vm, on):
        vm.qmp("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": on}])

    def start(self, family, clone_id):
        """A clone that runs as soon as it can, cut off from every network: it is its parent still."""
        nic = vmlib.Nic(f"local{clone_id}", family.identity(clone_id).mac, family.lab.vm_ns)
        vm = vmlib.Vm(f"local{clone_id}", family.fleet.dir, vmlib.machine_args(family.mb, family.cpus, image=self.ram),
                      nic=nic, postcopy=False, extra=["-incoming", "defer"])
        clone = forklib.Clone(vm, family.identity(clone_id), host=None, image=None)
        family.clones.append(clone)
        vm.start()
        self._mode(vm, True)
        vm.qmp("migrate-incoming", uri=f"exec:cat {self.state}")
        return clone


class StartBench:
    """Clones started from the fabric and from a local file, by turns."""

    def __init__(self, args, family, folder):
        self.args, self.family, self.fleet = args, family, family.fleet
        self.local = LocalImage(family.parent, folder)
        self.record = folder / "working-set"
        family.fork(args.clones)
        self.fleet.wait_server()

    def run(self, nb_clones, how):
        """One round of clones that start at once.
        @param how  "local", "fabric", or "working set": the fabric with the pages the recorded clone touched"""
        hosts = min(nb_clones, self.args.hosts)
        if how != "local":
            self.fleet.opt.memtap_args = ("--working-set", self.record) if how == "working set" else ()
            self.fleet.start_memtaps(range(1, hosts + 1))
        try:
            jobs = [self.family.pool.submit(self._start, i, 1 + (i - 1) % hosts, how) for i in range(1, nb_clones + 1)]
            found = [job.result() for job in jobs]
            return {"clones": nb_clones, "how": how, "first_line_ms": statistics.mean(f["first_line_ms"] for f in found),
                    "last_ms": max(f["first_line_ms"] for f in found), "each": found}
        finally:
            self.end_clones()

    def _start(self, clone_id, host, how):
        local = how == "local"
        clone = self.local.start(self.family, clone_id) if local else \
            self.family.spawn(clone_id, host, self.args.clone_memory == "postcopy")
        clone.vm.wait_console("tick", START_S)
        found = {"first_line_ms": (time.monotonic() - clone.vm.process.began) * 1000}
        if not local:
            found["pages_at_first_line"] = self.family.guest_counters(clone).get("installed_pages")
            self.family.settle(clone)
            found["faults_before_answer"] = self.family.guest_counters(clone).get("faults")
        return found

    def record_working_set(self):
        """As the first clone of all touches it, from its start to the answer of its web server."""
        self.fleet.start_memtap(1, extra=("--record", self.record))
        self._start(1, 1, "fabric")
        self.end_clones()  # with its end memtap has written all

    def end_clones(self):
        self.family.end_clones()
        for memtap in self.fleet.memtaps.values():
            memtap.stop()  # the next round fetches all anew


def start(args):
    """First serial line of clones, fabric against local image."""
    kinds = [(n, how) for n in dict.fromkeys((1, args.clones)) for how in ("local", "fabric", "working set")]
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="snowfabric-bench-", dir=memory) as folder, \
            booted(args, args.vm_mb, args.hosts) as family:
        family.parent.channel.ask(TICKER, "RUNNING")
        family.parent.wait_console("tick\ntick", START_S)
        bench = StartBench(args, family, pathlib.Path(folder))
        bench.record_working_set()
        runs = [[bench.run(*kind) for kind in kinds] for _ in rounds(args)]
        family.end_fork()
    return {"benchmark": "fork-start", "clone_memory": args.clone_memory, "hosts": args.hosts, "vm_mb": args.vm_mb,
            "mtu": args.mtu, "rows": start_rows(args, kinds, runs), "runs": runs}


def start_rows(args, kinds, all_runs):
    rows, ram_pages = [], args.vm_mb << 8
    for i, (clones, how) in enumerate(kinds):
        runs = [found[i] for found in all_runs]
        limit = [found[kinds.index((clones, "local"))]["first_line_ms"] for found in all_runs]
        row = {"clones": clones, "how": how, "first_line_ms": statistics.median(r["first_line_ms"] for r in runs),
               "last_ms": statistics.median(r["last_ms"] for r in runs),
               "ratio": statistics.median(r["first_line_ms"] / other for r, other in zip(runs, limit))}
        if how != "local":
            each = [found for run in runs for found in run["each"]]
            row["ram_percent_at_first_line"] = 100 * max(f["pages_at_first_line"] for f in each) / ram_pages
            row["faults_before_answer"] = statistics.median(f["faults_before_answer"] for f in each)
        rows.append(row)
    return rows


def show_start(result):
    print(f"spawn of QEMU to the first serial line: {result['vm_mb']} MiB, clones by {result['clone_memory']} on up to "
          f"{result['hosts']} hosts, {len(result['runs'])} rounds, medians")
    print(f"{'clones':>6}  {'from':12}{'first line ms':>14}{'last clone ms':>14}{'x local':>9}{'% of RAM then':>15}"
          f"{'faults to answer':>18}")
    for row in result["rows"]:
        percent, faults = row.get("ram_percent_at_first_line"), row.get("faults_before_answer")
        print(f"{row['clones']:>6}  {row['how']:12}{row['first_line_ms']:>14.0f}{row['last_ms']:>14.0f}{row['ratio']:>9.2f}"
              f"{'-' if percent is None else format(percent, '.2f'):>15}"
              f"{'-' if faults is None else format(faults, '.0f'):>18}")


# --- how long the parent pauses -----------------------------------------------------------------------------------

def pause(args):
    """A parent of which the host has every page, and which writes as fast as it can, is frozen again and again."""
    with booted(args, args.vm_mb, dirty_pages=args.fill_mb << 8, populated=True) as family:
        runs = []
        for _ in rounds(args):
            forked(family, 1, nb_hosts=0)
            runs.append({**family.fleet.info["freeze"], "descriptor_bytes": forklib.descriptor_bytes(family.descriptor)})
            family.end_fork()
        if forklib.verify(family.parent)["bad"]:
            raise VmError("the parent's memory is not what it wrote")
    pauses, descriptors = ([run[key] for run in runs] for key in ("pause_us", "descriptor_ms"))
    return {"benchmark": "fork-pause", "vm_mb": args.vm_mb, "pause_ms": statistics.median(pauses) / 1000,
            "pause_ms_max": max(pauses) / 1000, "descriptor_ms": statistics.median(descriptors),
            "descriptor_ms_max": max(descriptors), "descriptor_bytes": max(run["descriptor_bytes"] for run in runs),
            "complete_ms": statistics.median(run["total_ms"] for run in runs), "runs": runs}


def show_pause(result):
    print(f"parent of {result['vm_mb']} MiB, all populated, writing {len(result['runs'])} times frozen: paused for "
          f"{result['pause_ms']:.1f} ms (median; most {result['pause_ms_max']:.1f}), descriptor after "
          f"{result['descriptor_ms']:.0f} ms (most {result['descriptor_ms_max']}), {result['descriptor_bytes']} bytes, "
          f"image complete after {result['complete_ms']:.0f} ms")


# --- what clones cost ---------------------------------------------------------------------------------------------

def wire(args):
    """Bytes on the wire, requests among them, until each clone of a fork has answered and checked the same memory: one
    clone, then many."""
    def cost(family, nb_clones):
        hosts = min(nb_clones, args.hosts)
        forked(family, nb_clones, hosts)

        def sent():
            return family.fleet.server_stats()["tx_bytes"] + \
                sum(family.fleet.memtap_stats(host)["tx_bytes"] for host in range(1, hosts + 1))

        jobs = [family.pool.submit(family.spawn, i, 1 + (i - 1) % hosts, args.clone_memory == "postcopy")
                for i in range(1, nb_clones + 1)]
        clones = [job.result() for job in jobs]
        for job in [family.pool.submit(family.settle, clone) for clone in clones]:
            job.result()
        at_answer = sent()
        for job in [family.pool.submit(verified, clone) for clone in clones]:
            job.result()
        found = {"to_answer": at_answer, "to_verified": sent()}
        family.end_fork()
        return found

    with booted(args, args.vm_mb, args.hosts) as family:
        runs = [{"one": cost(family, 1), "many": cost(family, args.clones)} for _ in rounds(args)]
    ratios = {what: statistics.median(run["many"][what] / run["one"][what] for run in runs)
              for what in ("to_answer", "to_verified")}
    return {"benchmark": "fork-wire", "clones": args.clones, "hosts": args.hosts, "vm_mb": args.vm_mb,
            "fill_mb": args.fill_mb, "clone_memory": args.clone_memory, "ratio": ratios, "runs": runs}


def show_wire(result):
    print(f"bytes on the wire, fork of {result['clones']} on {result['hosts']} hosts against fork of 1, "
          f"{len(result['runs'])} rounds:")
    for what, text in (("to_answer", "until all have answered"), ("to_verified", "and have read the same memory")):
        one, many = (statistics.median(run[side][what] for run in result["runs"]) / 1e6 for side in ("one", "many"))
        print(f"  {text:32}{one:8.1f} MB for one {many:8.1f} MB for all, ratio {result['ratio'][what]:.3f}")


def memory(args):
    """Memory of clones on one host that map memtap's image, after each has answered and read the same."""
    with booted(args, args.vm_mb) as family:
        runs = []
        for _ in rounds(args):
            forked(family, args.clones, nb_hosts=1)
            pss = []
            for i in range(1, args.clones + 1):
                clone = family.settle(family.spawn(i, 1, postcopy=False))
                verified(clone)
                if i in (1, args.clones):
                    pss.append(forklib.settled_ram_pss_kib(family.clones))
            runs.append({"one_kib": pss[0], "all_kib": pss[-1], "ratio": pss[-1] / pss[0]})
            family.end_fork()
    return {"benchmark": "fork-memory", "clones": args.clones, "vm_mb": args.vm_mb, "fill_mb": args.fill_mb,
            "ratio": statistics.median(run["ratio"] for run in runs), "runs": runs}


def show_memory(result):
    one, many = (statistics.median(run[key] for run in result["runs"]) for key in ("one_kib", "all_kib"))
    print(f"Pss of the RAM of {result['clones']} clones on one host, after each has read {result['fill_mb']} MiB: "
          f"{many / 1024:.1f} MiB, of one {one / 1024:.1f} MiB, ratio {result['ratio']:.2f}")


# --- command line -------------------------------------------------------------------------------------------------

COMMANDS = {
    "fork-start": (start, show_start, "spawn of QEMU to the first serial line, against clones of a local file"),
    "fork-pause": (pause, show_pause, "how long a parent stands still, how soon there is a descriptor"),
    "fork-wire": (wire, show_wire, "bytes of a fork of many against a fork of one"),
    "fork-memory": (memory, show_memory, "memory of many clones on a host against one"),
}


def add_commands(commands, common):
    for name, (_, _, text) in COMMANDS.items():
        add = commands.add_parser(name, parents=[common], help=text).add_argument
        add("--vm-mb", type=int, default=192, metavar="N", help="memory of the VM (192)")
        add("--fill-mb", type=int, default=64, metavar="N", help="of it with a pattern that VMs check (64)")
        add("--runs", type=int, default=5, metavar="N", help="rounds; medians are shown (5)")
        add("--mtu", type=int, default=9000, metavar="N", help="of the virtual wire (9000)")
        if name != "fork-pause":
            add("--clones", type=int, default=8, metavar="N", help="(8)")
        if name in ("fork-start", "fork-wire"):
            add("--hosts", type=int, default=4, metavar="N", help="on which they run (4)")
            add("--clone-memory", choices=["postcopy", "uffd"], default="postcopy",
                help="how their memory comes (postcopy)")


def run(args):
    """@return (result, a function that prints it)"""
    lablib.require_root()
    measure, show, _ = COMMANDS[args.what]
    return measure(args), show
