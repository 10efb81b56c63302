# SPDX-License-Identifier: BSD-3-Clause
"""A memserver fills hosts in network namespaces with an image, against a bare sender and bare receivers; on 1 to N hosts; and these
bare ones alone, at the highest pace at which next to nothing is lost."""
import contextlib
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile

import benchlib
import benchreport
import fleetlib
import lablib
import profilelib

SERVER = "memserver-dpdk/memserver-dpdk"
READY_S, RUN_S = 60.0, 180.0
UNIT = "pages/s per receiver"
PRECISION = 0.02  # of a pace that is looked for
MOST_PACES = 10  # looked at: down to a 500th of the first


class Node:
    """A bench-node on a virtual host that waits at its gate; the last line it prints is its result."""

    def __init__(self, lab, host, command):
        self.host, self.log = host, tempfile.TemporaryFile("w+")
        self.popen = subprocess.Popen(lab.exec_args(host, [*command, "--gate"]), stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, stderr=self.log, text=True, start_new_session=True,
                                      preexec_fn=benchlib.first_in_line)

    def failed(self, what):
        self.log.seek(0)
        return benchlib.BenchError(f"bench-node on host {self.host} {what}: {self.log.read()[-2000:].strip() or 'no message'}")

    def wait_ready(self):
        if self.popen.stdout.readline().strip() != "READY":
            raise self.failed("did not start")

    def go(self):
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()

    def result(self):
        try:
            out, _ = self.popen.communicate(timeout=RUN_S)
            return json.loads(out)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            raise self.failed(f"took longer than {RUN_S:.0f} s") from None
        except ValueError:
            raise self.failed("ended without a result") from None


class Bed:
    """The hosts, the image, and the runs over them."""

    def __init__(self, args, lab, folder):
        self.args, self.lab, self.folder = args, lab, folder
        self.image = folder / "image"
        self.port = ["--profile", args.profile, "--device", lablib.PORT, "--mtu", str(args.mtu)]
        if args.idle:
            self.port += ["--idle", args.idle]
        subprocess.run([benchlib.program(args, benchlib.NODE), "image", self.image, "--pages", str(args.pages),
                        "--seed", str(args.seed)], check=True)

    def node(self, host, role, *options):
        return Node(self.lab, host, [benchlib.program(self.args, benchlib.NODE), role, *self.port, "--image", self.image, *options])

    def hosts(self):
        return range(1, self.args.hosts + 1)

    @contextlib.contextmanager
    def fleet(self, *memtap_args):
        """A memserver and a memtap on each host, in front of the machine's other work. They must end well."""
        idle = ("--idle", self.args.idle) if self.args.idle else ()
        options = fleetlib.Options(self.args.build_dir, self.image, self.args.profile, seed=self.args.seed, server_args=idle,
                                   memtap_args=(*memtap_args, *idle))
        with fleetlib.Fleet(self.lab, options) as fleet:
            benchlib.raise_to_front(fleet.start_server())
            fleet.start_memtaps(self.hosts())
            for memtap in fleet.memtaps.values():
                benchlib.raise_to_front(memtap)
            yield fleet
            if complaints := fleet.stop():
                raise benchlib.BenchError("; ".join(complaints))

    def run_bare(self, pace):
        """@param pace  pages a second; 0: as fast as the port takes them"""
        receivers = [self.node(host, "receive") for host in self.hosts()]
        sent, got = run_nodes(self.node(0, "send", "--pages-per-s", str(pace)), receivers)
        return {**delivery(sent, got), "kernel_drops": sum(r["kernel_drops"] for r in got)}

    def run_fabric(self):
        with self.memserver() as info:
            clients = [self.node(host, "client", "--server", info["server_mac"], "--mode", self.args.mode)
                       for host in self.hosts()]
            for node in clients:
                node.wait_ready()
            for node in clients:
                node.go()
            got = [client.result() for client in clients]
        if not all(r["verified"] for r in got):
            raise benchlib.BenchError(f"clients did not get the whole image right: {[r['pages'] for r in got]} "
                             f"of {self.args.pages} pages")
        server = json.loads((self.folder / "server-stats.json").read_text())
        return {"rate": statistics.mean(rate(r) for r in got), "slowest": min(rate(r) for r in got),
                "sends_per_page": (server["tx_pages_multicast"] + server["tx_pages_unicast"]) / self.args.pages,
                "flow_gbps": server["rate_bytes_per_s"] * 8 / 1e9,
                "pairs": server.get("tx_pairs", 0), "wants": server["wants"], "lockstep_hits": server["lockstep_hits"],
                "retries": sum(r["counters"]["retries"] for r in got),
                "lost": sum(r["counters"]["rx_lost"] for r in got),
                "duplicates": sum(r["counters"]["rx_duplicates"] for r in got)}

    @contextlib.contextmanager
    def memserver(self):
        info, log = self.folder / "server.json", self.folder / "server.log"
        info.unlink(missing_ok=True)
        push = ["--push"] if self.args.mode == "push" else []
        command = [benchlib.program(self.args, SERVER), *self.port, "--info", info, "--stats", self.folder / "server-stats.json",
                   *push, self.image]
        with open(log, "w") as out:
            popen = subprocess.Popen(self.lab.exec_args(0, command), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                     start_new_session=True, preexec_fn=benchlib.first_in_line)
        try:
            wait_for(info.exists, popen)
            yield json.loads(info.read_text())
        except benchlib.BenchError as error:
            raise benchlib.BenchError(f"{error}; the memserver said:\n{log.read_text()[-2000:]}") from None
        finally:
            popen.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(10)
            popen.kill()  # nothing, if it has ended


def run_nodes(sender, receivers):
    """@return what the sender said, and what each receiver did"""
    for node in [*receivers, sender]:
        node.wait_ready()
    for node in [*receivers, sender]:  # receivers first: they are looking before the first frame
        node.go()
    sent = sender.result()
    got = [receiver.result() for receiver in receivers]
    if any(r["bad_crc"] or r["foreign"] for r in got):
        raise benchlib.BenchError(f"a bare receiver got wrong or foreign frames: {got}")
    return sent, got


def delivery(sent, got):
    """What there is to say of them."""
    return {"rate": statistics.mean(rate(r) for r in got), "slowest": min(rate(r) for r in got),
            "sent_per_s": sent["pages"] / sent["seconds"],
            "delivered": sum(r["pages"] for r in got) / (sent["pages"] * len(got)),
            "delivered_least": min(r["pages"] for r in got) / sent["pages"]}


def wait_for(ready, popen):
    """Looks 100 times a second whether a file is there, while its maker lives."""
    for _ in range(int(READY_S * 100)):
        if ready():
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            popen.wait(0.01)
            break
    raise benchlib.BenchError("the memserver did not start")


def run_pair(bed, number, nb_runs):
    benchlib.say_round(number, nb_runs)
    bare, fabric = bed.run_bare(bed.args.bare_rate), bed.run_fabric()
    return {"limit": bare["rate"], "rate": fabric["rate"], "bare": bare, "fabric": fabric}


def rate(result):
    """Pages a second of one receiver; 0 if nothing came."""
    return result["pages"] / result["seconds"] if result["seconds"] > 0 else 0.0


def options(args):
    """What every result here says of how it came about."""
    return {"hosts": args.hosts, "mtu": args.mtu, "pages": args.pages, "profile": args.profile,
            "idle": args.idle or "the profile's", "seed": args.seed, "verified": True}


def fill_result(args, pairs):
    return {"benchmark": "fill", "unit": UNIT, **benchreport.medians(pairs), "bare_pace": args.bare_rate or "unpaced",
            "mode": args.mode, **options(args)}


def show_fill(result):
    runs = result["runs"]
    print(f"fill 1 -> {result['hosts']}: {result['pages']} pages, MTU {result['mtu']}, mode {result['mode']}, "
          f"{len(runs)} runs; bare {result['bare_pace']}")
    print(f"{'pages/s per receiver':22}{'bare':>10}{'delivered':>11}{'fabric':>10}{'slowest':>10}{'sends/page':>12}"
          f"{'lost':>8}{'ratio':>8}")
    for number, run in enumerate(runs, 1):
        bare, fabric = run["bare"], run["fabric"]
        print(f"{'run ' + str(number):22}{bare['rate']:>10.0f}{bare['delivered']:>11.1%}{fabric['rate']:>10.0f}"
              f"{fabric['slowest']:>10.0f}{fabric['sends_per_page']:>12.3f}{fabric['lost']:>8}"
              f"{fabric['rate'] / bare['rate']:>8.3f}")
    print(f"{'median':22}{result['limit']:>10.0f}{'':11}{result['rate']:>10.0f}{'':30}{result['ratio']:>8.3f}")


def bare_profile(args):
    """@return the profile, if a bare loop runs on it"""
    profile = profilelib.load(args.profile)
    if profile.tap:
        raise benchlib.BenchError(f"profile {args.profile}: the bare loop runs on net_af_packet and net_af_xdp")
    return profile


@contextlib.contextmanager
def bed_of(args, tap=False):
    """With hosts of its own, and an image in memory."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="snowfabric-bench-", dir=memory) as folder, \
            lablib.Lab(f"sf-bench-{os.getpid()}", args.hosts, args.mtu, tap=tap) as lab:
        yield Bed(args, lab, pathlib.Path(folder))


def pairs_of(args):
    with bed_of(args) as bed:
        if args.no_drop:
            _, best = lossless(bed, args.loss)
            args.bare_rate = best["sent_per_s"]
        return [run_pair(bed, number, args.runs) for number in range(1, args.runs + 1)]


def fill(args):
    return fill_result(args, pairs_of(args))


# --- 1 to N hosts -----------------------------------------------------------------------------------------------------

def scale(args):
    most, cases = args.hosts, []
    counts = [1 << n for n in range(most.bit_length()) if 1 << n < most] + [most]
    for args.hosts in counts:
        print(f"fabric-bench: {args.hosts} of {most} hosts", file=sys.stderr, flush=True)
        cases.append({"case": f"{args.hosts} host{'s'[:args.hosts > 1]}", **benchreport.medians(pairs_of(args))})
    return {"benchmark": "scale", "unit": UNIT, **{key: cases[-1][key] for key in ("rate", "limit", "ratio")}, "cases": cases,
            "mode": args.mode, **options(args)}


def show_scale(result):
    print(f"scale 1 -> {result['hosts']}: {result['pages']} pages, MTU {result['mtu']}; medians, pages/s per receiver")
    print(f"{'':12}{'bare':>10}{'fabric':>10}{'ratio':>8}{'sends/page':>12}{'retries':>9}")
    for case in result["cases"]:
        sends, retries = (statistics.median(run["fabric"][key] for run in case["runs"]) for key in ("sends_per_page", "retries"))
        print(f"{case['case']:12}{case['limit']:>10.0f}{case['rate']:>10.0f}{case['ratio']:>8.3f}{sends:>12.3f}{retries:>9.0f}")


# --- the bare device --------------------------------------------------------------------------------------------------

def lossless(bed, loss):
    """Halves the interval in which the highest pace lies at which no receiver lacks more than this share (RFC 2544, section
    26.1). @return the run as fast as the port takes frames, and that of the highest pace"""
    unpaced = bed.run_bare(0)
    best, low, high, pace = None, 0.0, unpaced["sent_per_s"], 0.0
    for _ in range(MOST_PACES):
        run = bed.run_bare(pace) if pace else unpaced
        print(f"fabric-bench: {run['sent_per_s']:.0f} pages/s: {run['delivered_least']:.3%} came", file=sys.stderr, flush=True)
        if 1 - run["delivered_least"] <= loss:
            low = max(low, run["sent_per_s"])
            if best is None or run["sent_per_s"] > best["sent_per_s"]:  # a pace too high is not reached: such a run is no better
                best = run
        else:
            high = min(high, run["sent_per_s"])
        if high - low <= high * PRECISION:
            break
        pace = (low + high) / 2
    if best is None:
        raise benchlib.BenchError(f"no pace down to {high:.0f} pages/s lost no more than {loss:.2%}: this machine is too busy")
    return unpaced, best


def wire_run(bed, number):
    benchlib.say_round(number, bed.args.runs)
    unpaced, best = lossless(bed, bed.args.loss)
    return {"limit": unpaced["sent_per_s"], "rate": best["sent_per_s"], "unpaced": unpaced, "best": best}


def wire(args):
    with bed_of(args) as bed:
        runs = [wire_run(bed, number) for number in range(1, args.runs + 1)]
    return {"benchmark": "wire", "unit": UNIT, **benchreport.medians(runs), "loss": args.loss, **options(args)}


def show_wire(result):
    print(f"wire 1 -> {result['hosts']}: {result['pages']} pages, MTU {result['mtu']}, no protocol; pages/s")
    paced = f"lost <= {result['loss']:.2%}"
    print(f"{'':12}{'as fast as it goes':>19}{'came':>9}{paced:>16}{'came':>9}{'ratio':>8}")
    for number, run in enumerate(result["runs"], 1):
        print(f"{'run ' + str(number):12}{run['limit']:>19.0f}{run['unpaced']['delivered_least']:>9.1%}{run['rate']:>16.0f}"
              f"{run['best']['delivered_least']:>9.2%}{run['rate'] / run['limit']:>8.3f}")
    print(f"{'median':12}{result['limit']:>19.0f}{'':9}{result['rate']:>16.0f}{'':9}{result['ratio']:>8.3f}")


# --- command line -----------------------------------------------------------------------------------------------------

SCENARIOS = {"fill": (fill, show_fill), "scale": (scale, show_scale), "wire": (wire, show_wire)}


def add_bed(command, runs, pages=65536, hosts=8):
    add = command.add_argument
    add("--hosts", type=int, default=hosts, metavar="N", help=f"receivers, one a host ({hosts})")
    add("--mtu", type=int, metavar="N", help="of the virtual wire (9000, or what the profile can)")
    add("--pages", type=int, default=pages, metavar="N", help=f"of the image ({pages}: {pages >> 8} MiB)")
    add("--runs", type=int, default=runs, metavar="N", help=f"rounds, bare and fabric by turns ({runs})")
    add("--idle", choices=["busy", "yield", "backoff"], help="of every process, bare and fabric (the profile's)")
    add("--profile", default="net_af_packet", metavar="NAME", help="(net_af_packet)")
    add("--seed", type=int, default=1, metavar="N", help="of the image (1)")


def add_loss(command):
    command.add_argument("--loss", type=float, default=0.001, metavar="SHARE",
                         help="that a bare receiver may lack, where paces are looked for (0.001)")


def add_commands(commands, common):
    for name, what in (("fill", "1 -> N hosts in network namespaces"), ("scale", "the same for 1, 2, 4, ... N hosts")):
        command = commands.add_parser(name, parents=[common], help=what)
        add_bed(command, runs=3)
        add_loss(command)
        add = command.add_argument
        add("--mode", choices=["list", "faults", "push"], default="list", help="how clients come by pages (list)")
        pace = command.add_mutually_exclusive_group().add_argument
        pace("--bare-rate", type=float, default=0, metavar="N", help="pace of the bare sender, pages/s; 0: unpaced (0)")
        pace("--no-drop", action="store_true", help="or the highest at which it loses next to nothing, looked for at first")
    command = commands.add_parser("wire", parents=[common], help="the bare device: the same frames, no protocol")
    add_bed(command, runs=3, pages=131072)
    add_loss(command)


def run(args):
    """@return (result, a function that prints it)"""
    lablib.require_root()
    args.mtu = bare_profile(args).mtu_for_lab(args.mtu)
    benchlib.program(args, benchlib.NODE), benchlib.program(args, SERVER)
    scenario, show = SCENARIOS[args.what]
    return scenario(args), show
