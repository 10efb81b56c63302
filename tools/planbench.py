# SPDX-License-Identifier: BSD-3-Clause
"""Benchmark of the planner: what `fabric-sim plan` says beside what memserver, memtaps and guests take on virtual hosts."""
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

import benchlib
import fleetlib
import lablib

SIMULATOR = "tools/fabric-sim"
MIB = 1 << 20
RUN_S = 300.0
BURST, QUEUE = 64 << 10, 4 << 20  # of a link, in bytes; the queue is the simulated links'
NEAR = 0.01  # of the time of one clone, from which on it is calibrated
MOST_STEPS = 20


class PlanError(Exception):
    """Says what failed, on what, and what to do."""


def measured(args, image, nb_clones):
    """One fork of guests over links of the wanted rate. @return its time and bytes"""
    gbps = args.mbit / 1000
    options = fleetlib.Options(args.build_dir, image, seed=args.seed,
                               server_args=("--rate-gbps", gbps, "--max-rate-gbps", gbps))
    lab = lablib.Lab(f"sf-bench-{os.getpid()}", nb_clones, args.mtu)
    with lab, fleetlib.Fleet(lab, options) as fleet:
        for host in range(nb_clones + 1):
            lab.tc("qdisc", "add", "dev", f"h{host}", "root", "tbf", "rate", f"{args.mbit}mbit", "burst", BURST, "limit",
                   QUEUE)
        fleet.start_server()
        for host in range(1, nb_clones + 1):
            loss = ("--rx-loss", args.loss, "--seed", args.seed * 1000 + host) if args.loss else ()
            fleet.start_memtap(host, extra=loss)
        with fleet.at_once():
            guests = [fleet.start_guest(host, host, "random") for host in range(1, nb_clones + 1)]
        if not fleet.wait_guests(RUN_S):
            raise PlanError(f"{nb_clones} clones were not done after {RUN_S:.0f} s")
        reports = [fleet.report(guest) for guest in guests]
        if not all(guest.status() == 0 and report["verified"] for guest, report in zip(guests, reports)):
            raise PlanError(f"guests did not get the image right: {reports}")
        return {"seconds": max(report["complete_s"] for report in reports),
                "wire_bytes": fleet.server_stats()["tx_bytes"]}


def predicted(args, nb_clones, fault_us):
    with tempfile.NamedTemporaryFile(suffix=".json") as answer:
        options = ("--clones", nb_clones, "--image-bytes", args.image_mb * MIB, "--gbps", args.mbit / 1000, "--burst", BURST,
                   "--loss", args.loss, "--mtu", args.mtu, "--no-push", "--seed", args.seed, "--think-us", 0,
                   "--fault-us", f"{fault_us:.3f}", "--json", answer.name)
        subprocess.run([args.build_dir / SIMULATOR, "plan", *map(str, options)], check=True, stdout=subprocess.DEVNULL)
        said = json.loads(pathlib.Path(answer.name).read_text())
    if not said["finished"]:
        raise PlanError(f"the simulator's {nb_clones} clones do not finish")
    return {"seconds": said["seconds"], "wire_bytes": said["wire_bytes"]}


def calibrated(args, seconds):
    """@return what a page that is waited for takes beside the network, in us, so that one clone takes so long"""
    low, high = 0.0, 2e6 * seconds / (args.image_mb * MIB // fleetlib.PAGE)
    off = 0.0
    for _ in range(MOST_STEPS):
        fault_us = (low + high) / 2
        off = predicted(args, 1, fault_us)["seconds"] / seconds - 1
        if abs(off) < NEAR:
            return fault_us
        low, high = (fault_us, high) if off < 0 else (low, fault_us)
    raise PlanError(f"one clone takes {seconds:.2f} s here, and in the simulator that {off:+.1%} at the nearest")


def plan(args):
    with tempfile.TemporaryDirectory(prefix="snowfabric-bench-") as folder:
        image = pathlib.Path(folder) / "image"
        image.write_bytes(os.urandom(args.image_mb * MIB))
        runs = []
        for number in range(1, args.runs + 1):
            benchlib.say_round(number, args.runs)
            runs.append({n: measured(args, image, n) for n in args.clones})
    medians = {n: {what: statistics.median(run[n][what] for run in runs) for what in ("seconds", "wire_bytes")}
               for n in args.clones}
    fault_us = calibrated(args, medians[1]["seconds"])
    rows = []
    for n in args.clones:
        # What a link takes for the bytes alone: where it is all, a plan has little to show.
        medians[n]["link_seconds"] = medians[n]["wire_bytes"] * 8 / (args.mbit * 1e6)
        said = predicted(args, n, fault_us)
        rows.append({"clones": n, "measured": medians[n], "predicted": said,
                     **{f"{what}_off": said[what] / medians[n][what] - 1 for what in ("seconds", "wire_bytes")}})
    return {"benchmark": "plan", "image_mb": args.image_mb, "mbit": args.mbit, "loss_percent": args.loss, "mtu": args.mtu,
            "fault_us": fault_us, "rows": rows, "runs": runs}


def show(result):
    print(f"image of {result['image_mb']} MiB, links of {result['mbit']} Mbit/s, {result['loss_percent']} % loss at each "
          f"receiver, {len(result['runs'])} rounds; {result['fault_us']:.0f} us for a page that is waited for, by the first row")
    print(f"{'clones':>6}{'last done':>12}{'link alone':>12}{'planned':>10}{'off':>8}{'server sends':>15}{'planned':>12}{'off':>8}")
    for row in result["rows"]:
        real, said = row["measured"], row["predicted"]
        print(f"{row['clones']:>6}{real['seconds']:>10.2f} s{real['link_seconds']:>10.2f} s{said['seconds']:>8.2f} s"
              f"{row['seconds_off']:>+8.1%}{real['wire_bytes'] / 1e6:>12.1f} MB{said['wire_bytes'] / 1e6:>9.1f} MB{row['wire_bytes_off']:>+8.1%}")


def clone_counts(text):
    counts = sorted({1, *map(int, text.split(","))})  # one is what is calibrated by
    if counts[0] < 1 or counts[-1] > lablib.MAX_HOSTS:
        raise ValueError
    return counts


def add_commands(commands, common):
    add = commands.add_parser("plan", parents=[common], help="what the planner says, against runs on virtual hosts").add_argument
    add("--clones", type=clone_counts, default=[1, 4, 8], metavar="N,N", help="(1,4,8)")
    add("--image-mb", type=int, default=32, metavar="N", help="without zero pages (32)")
    add("--mbit", type=int, default=100, metavar="N", help="of each link, Mbit/s: what this machine sustains (100)")
    add("--loss", type=float, default=0, metavar="PERCENT", help="of the frames, at each receiver (0)")
    add("--runs", type=int, default=3, metavar="N", help="rounds; medians are shown (3)")
    add("--mtu", type=int, default=9000, metavar="N", help="of the virtual wire (9000)")
    add("--seed", type=int, default=1, metavar="N", help="of orders and loss (1)")


def run(args):
    """@return (result, a function that prints it)"""
    lablib.require_root()
    return plan(args), show
