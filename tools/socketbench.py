# SPDX-License-Identifier: BSD-3-Clause
"""libsnowfabric by kernel sockets, sf-serve to sf-fetch, against a bare loop over the same kind of socket: the same frames between
network namespaces, and the same work for each page."""
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

import benchlib
import benchreport
import fillbench
import lablib
import peerlib

PAGES_A_MB, PAGE_MBIT = 256, 4096 * 8 / 1e6
UNIT = "pages/s per receiver"
MOST_MBIT = 100000  # so that the CPUs bound the rate, and no option does


class Bed:
    """The hosts, the image, and the runs over them."""

    def __init__(self, args, lab, folder):
        self.args, self.lab, self.folder = args, lab, folder
        self.image, self.node = folder / "image", benchlib.program(args, benchlib.NODE)
        self.pages = args.image_mb * PAGES_A_MB
        subprocess.run([self.node, "image", self.image, "--pages", str(self.pages), "--seed", str(args.seed)], check=True)
        self.peers = peerlib.Bed(args, lab, folder, self.image)

    def receiver(self, host):
        command = [self.node, "socket-receive", "--interface", lablib.PORT, "--pages", self.pages]
        if self.args.limit_into == "file":
            copy = self.folder / f"bare{host}"
            copy.unlink(missing_ok=True)
            command += ["--out", copy]
        return fillbench.Node(self.lab, host, command)

    def run_bare(self, pace):
        """@param pace  pages a second; 0: as fast as the socket takes them"""
        receivers = [self.receiver(host) for host in self.peers.hosts()]
        sender = fillbench.Node(self.lab, 0, [self.node, "socket-send", "--interface", lablib.PORT, "--mtu", self.args.mtu,
                                              "--image", self.image, "--pages-per-s", pace])
        sent, got = fillbench.run_nodes(sender, receivers)
        for copy in self.folder.glob("bare*"):  # the fabric's copies want the room
            copy.unlink()
        return {**fillbench.delivery(sent, got), "pages_a_frame": sent["pages"] / sent["frames"],
                "lost": sum(each["lost"] for each in got)}

    def run_fabric(self, start=0.0):
        """@param start  pages a second that the server begins with; 0: as without option, at 1 Gbit/s"""
        options = ["-r", MOST_MBIT, *(["-s", round(start * PAGE_MBIT)] if start else [])]
        try:
            self.peers.measure(peerlib.Library("udp", *options))
            said = [json.loads(job.log.read_text().splitlines()[-1]) for job in self.peers.jobs]
        except (peerlib.PeerError, ValueError, IndexError) as error:
            raise benchlib.BenchError(f"libsnowfabric: {error}") from None
        (server,) = (each for each in said if "tx_pages" in each)
        clients = [each for each in said if "rx_pages" in each]
        rates = [self.pages / each["seconds"] for each in clients]
        return {"rate": statistics.mean(rates), "slowest": min(rates), "sends_per_page": server["tx_pages"] / self.pages,
                "tx_pages": server["tx_pages"], "lost": max(each["rx_lost"] for each in clients),
                "retries": sum(each["retries"] for each in clients),
                "duplicates": sum(each["rx_duplicates"] for each in clients)}


def run_round(bed, number):
    benchlib.say_round(number, bed.args.runs)
    unpaced, bare = fillbench.lossless(bed, bed.args.loss)
    told, cold = bed.run_fabric(bare["sent_per_s"]), bed.run_fabric()
    for each in (told, cold):  # of the frames that one receiver was sent
        each["lost_share"] = each["lost"] * bare["pages_a_frame"] / each["tx_pages"]
    return {"limit": bare["rate"], "rate": told["rate"], "unpaced": unpaced, "bare": bare, "fabric": told, "cold": cold}


def show(result):
    print(f"sockets 1 -> {result['receivers']}: {result['image_mb']} MiB, MTU {result['mtu']}, {len(result['runs'])} runs; "
          f"the bare receiver puts pages into {result['limit_into']}; pages/s per receiver")
    print(f"{'':8}{'unpaced':>9}{'came':>9}{'bare':>9}{'came':>9}{'fabric':>9}{'lost':>9}{'sends/page':>12}{'ratio':>8}"
          f"{'from 1 Gbit/s':>15}{'lost':>9}{'ratio':>8}")
    for number, run in enumerate(result["runs"], 1):
        unpaced, bare, fabric, cold = (run[key] for key in ("unpaced", "bare", "fabric", "cold"))
        print(f"{'run ' + str(number):8}{unpaced['sent_per_s']:>9.0f}{unpaced['delivered_least']:>9.2%}{bare['rate']:>9.0f}"
              f"{bare['delivered_least']:>9.2%}{fabric['rate']:>9.0f}{fabric['lost_share']:>9.3%}{fabric['sends_per_page']:>12.3f}"
              f"{fabric['rate'] / bare['rate']:>8.3f}{cold['rate']:>15.0f}{cold['lost_share']:>9.3%}"
              f"{cold['rate'] / bare['rate']:>8.3f}")
    cold = statistics.median(run["cold"]["rate"] for run in result["runs"])
    print(f"{'median':8}{'':18}{result['limit']:>9.0f}{'':9}{result['rate']:>9.0f}{'':21}{result['ratio']:>8.3f}{cold:>15.0f}{'':9}"
          f"{cold / result['limit']:>8.3f}")


# --- command line -----------------------------------------------------------------------------------------------------

def add_commands(commands, common):
    command = commands.add_parser("sockets", parents=[common], help="libsnowfabric by kernel sockets, against a bare loop")
    add = command.add_argument
    add("--receivers", type=int, default=1, metavar="N", help="one a host (1)")
    add("--image-mb", type=int, default=256, metavar="N", help="random, in MiB (256)")
    add("--mtu", type=int, default=9000, metavar="N", help="of the virtual wire: from 8280 on two pages a frame (9000)")
    add("--runs", type=int, default=5, metavar="N", help="rounds, bare and fabric by turns (5)")
    add("--limit-into", choices=["file", "memory"], default="file",
        help="where bare receivers put pages: a new file by write(2), as sf-fetch does, or memory that is in place (file)")
    add("--seed", type=int, default=1, metavar="N", help="of the image (1)")
    fillbench.add_loss(command)


def check(args):
    if args.receivers < 1 or args.image_mb < 1 or args.runs < 1:
        raise benchlib.BenchError(f"--receivers {args.receivers}, --image-mb {args.image_mb}, --runs {args.runs}: "
                                  "at least one each")
    if not 0 <= args.loss < 1:
        raise benchlib.BenchError(f"--loss {args.loss:g}: a share, less than 1")


def run(args):
    """@return (result, a function that prints it)"""
    check(args)
    lablib.require_root()
    for name in (benchlib.NODE, "library/sf-serve", "library/sf-fetch"):
        benchlib.program(args, name)
    with tempfile.TemporaryDirectory(prefix="snowfabric-bench-", dir="/dev/shm") as folder, \
            lablib.Lab(f"sf-bench-{os.getpid()}", args.receivers, args.mtu) as lab:
        bed = Bed(args, lab, pathlib.Path(folder))
        runs = [run_round(bed, number) for number in range(1, args.runs + 1)]
    return {"benchmark": "sockets", "unit": UNIT, **benchreport.medians(runs), "receivers": args.receivers,
            "image_mb": args.image_mb, "mtu": args.mtu, "loss": args.loss, "limit_into": args.limit_into, "seed": args.seed,
            "verified": True}, show
