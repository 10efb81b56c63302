# SPDX-License-Identifier: BSD-3-Clause
"""A memserver fills hosts in network namespaces with an image, against a bare sender and bare receivers."""
import contextlib
import json
import os
import pathlib
import signal
import statistics
import subprocess
import tempfile

import benchlib
import lablib
import profilelib

SERVER = "memserver-dpdk/memserver-dpdk"
READY_S, RUN_S = 60.0, 180.0


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

    def run_bare(self):
        receivers = [self.node(host, "receive") for host in self.hosts()]
        sender = self.node(0, "send", "--pages-per-s", str(self.args.bare_rate))
        for node in [*receivers, sender]:
            node.wait_ready()
        for node in [*receivers, sender]:  # receivers first: they are looking before the first frame
            node.go()
        sent = sender.result()
        got = [receiver.result() for receiver in receivers]
        if any(r["bad_crc"] or r["foreign"] for r in got):
            raise benchlib.BenchError(f"a bare receiver got wrong or foreign frames: {got}")
        return {"rate": statistics.mean(rate(r) for r in got), "slowest": min(rate(r) for r in got),
                "sent_per_s": sent["pages"] / sent["seconds"],
                "delivered": sum(r["pages"] for r in got) / (sent["pages"] * len(got)),
                "delivered_least": min(r["pages"] for r in got) / sent["pages"],
                "kernel_drops": sum(r["kernel_drops"] for r in got)}

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
    bare, fabric = bed.run_bare(), bed.run_fabric()
    return {"limit": bare["rate"], "rate": fabric["rate"], "bare": bare, "fabric": fabric}


def rate(result):
    """Pages a second of one receiver; 0 if nothing came."""
    return result["pages"] / result["seconds"] if result["seconds"] > 0 else 0.0


def summary(args, pairs):
    bare, fabric = ([pair[side] for pair in pairs] for side in ("bare", "fabric"))
    limit, speed = (statistics.median(run["rate"] for run in side) for side in (bare, fabric))
    if not all(run["rate"] > 0 for run in bare + fabric):
        raise benchlib.BenchError("of a run nothing came: this machine is too busy")
    ratios = [pair["fabric"]["rate"] / pair["bare"]["rate"] for pair in pairs]
    return {"benchmark": "fill", "unit": "pages/s per receiver", "rate": speed, "limit": limit,
            "ratio": speed / limit, "ratio_min": min(ratios), "ratio_max": max(ratios),
            "bare_pace": args.bare_rate or "unpaced", "hosts": args.hosts, "mtu": args.mtu, "pages": args.pages,
            "mode": args.mode, "profile": args.profile, "idle": args.idle or "the profile's", "seed": args.seed,
            "verified": True, "runs": pairs}


def show(result):
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


def fill(args):
    args.mtu = bare_profile(args).mtu_for_lab(args.mtu)
    benchlib.program(args, benchlib.NODE), benchlib.program(args, SERVER)
    with bed_of(args) as bed:
        return summary(args, [run_pair(bed, number, args.runs) for number in range(1, args.runs + 1)])


def add_commands(commands, common):
    add = commands.add_parser("fill", parents=[common], help="1 -> N hosts in network namespaces").add_argument
    add("--hosts", type=int, default=8, metavar="N", help="receivers, one a host (8)")
    add("--mtu", type=int, metavar="N", help="of the virtual wire (9000, or what the profile can)")
    add("--pages", type=int, default=65536, metavar="N", help="of the image (65536: 256 MiB)")
    add("--runs", type=int, default=3, metavar="N", help="pairs of runs, bare and fabric by turns (3)")
    add("--mode", choices=["list", "faults", "push"], default="list", help="how clients come by pages (list)")
    add("--bare-rate", type=float, default=0, metavar="N", help="pace of the bare sender, pages/s; 0: unpaced (0)")
    add("--idle", choices=["busy", "yield", "backoff"], help="of every process, bare and fabric (the profile's)")
    add("--profile", default="net_af_packet", metavar="NAME", help="(net_af_packet)")
    add("--seed", type=int, default=1, metavar="N", help="of the image (1)")


def run(args):
    """@return (result, a function that prints it)"""
    lablib.require_root()
    return fill(args), show
