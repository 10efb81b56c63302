# SPDX-License-Identifier: BSD-3-Clause
"""How long a guest waits for a page, one after the other, against what the device and the kernel take for that alone."""
import json
import signal
import statistics
import subprocess

import benchlib
import benchreport
import fillbench
import fleetlib
import lablib

CASES = {"median": 0.50, "99 of 100": 0.99}
RUN_S = 120.0


def percentile(sorted_values, share):
    return sorted_values[min(int(share * len(sorted_values)), len(sorted_values) - 1)]


def percentiles(values):
    ascending = sorted(values)
    return {case: percentile(ascending, share) for case, share in CASES.items()}


class Parts:
    """What a fault is made of, each part by a bench-node that decides nothing."""

    def __init__(self, bed):
        self.args, self.lab, self.node, self.image = bed.args, bed.lab, benchlib.program(bed.args, benchlib.NODE), bed.image
        self.options = [*bed.port, "--image", self.image]

    def run(self, host, what, *more):
        """@return the microseconds that each took"""
        command = [self.node, what, *self.options, "--pages", str(self.args.faults), "--seed", str(self.args.seed), *more]
        done = subprocess.run(self.lab.exec_args(host, command), stdout=subprocess.PIPE, timeout=RUN_S, check=True,
                              start_new_session=True, preexec_fn=benchlib.first_in_line)
        return json.loads(done.stdout)["us"]

    def round_trips(self):
        command = self.lab.exec_args(0, [self.node, "respond", *self.options])
        with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True,
                              preexec_fn=benchlib.first_in_line) as responder:
            try:
                said = responder.stdout.readline()
                if not said:
                    raise benchlib.BenchError("bench-node respond did not start")  # it has said why
                return self.run(1, "round-trips", "--server", json.loads(said)["mac"])
            finally:
                responder.send_signal(signal.SIGTERM)

    def local_faults(self):
        return self.run(1, "local-faults")


def through_fabric(bed):
    """The same pages, touched by a guest of a memtap on another host than the memserver's."""
    with bed.fleet() as fleet:
        with fleet.at_once():
            guest = fleet.start_guest(1, 1, "random", ("--limit-pages", bed.args.faults))
            benchlib.raise_to_front(guest)
        if not fleet.wait_guests(RUN_S):
            raise benchlib.BenchError(f"the guest did not end in {RUN_S:.0f} s:\n{guest.tail()}")
        report = fleet.report(guest)
        if guest.status() != 0 or not report["verified"]:
            raise benchlib.BenchError(f"the guest ended with status {guest.status()}:\n{guest.tail()}")
        lasting = fleet.memtap_stats(1).get("retries", 0)
    return {"median": report["fault_us_p50"], "99 of 100": report["fault_us_p99"], "faults": report["faults"],
            "retries": lasting}


def run_round(bed, number):
    benchlib.say_round(number, bed.args.runs)
    parts = Parts(bed)
    trips, local, fabric = percentiles(parts.round_trips()), percentiles(parts.local_faults()), through_fabric(bed)
    return {"round_trip_us": trips, "local_fault_us": local, "fabric_us": fabric}


def summary(args, rounds):
    cases = []
    for case in CASES:
        runs = [{"rate": found["fabric_us"][case], "limit": found["round_trip_us"][case] + found["local_fault_us"][case]}
                for found in rounds]
        cases.append({"case": case, **benchreport.medians(runs)})
    return {"benchmark": "fault", "unit": "us", **{key: cases[0][key] for key in ("rate", "limit", "ratio")}, "cases": cases,
            "faults": args.faults, "mtu": args.mtu, "pages": args.pages, "profile": args.profile,
            "idle": args.idle or "the profile's", "seed": args.seed, "verified": True, "rounds": rounds}


def show(result):
    print(f"fault: {result['faults']} pages of {result['pages']}, one after the other, MTU {result['mtu']}, "
          f"{len(result['rounds'])} rounds; microseconds, medians of the rounds")
    print(f"{'':12}{'round trip':>12}{'local fault':>13}{'sum':>8}{'fabric':>9}{'ratio':>8}")
    for case in result["cases"]:
        trip, local = (statistics.median(found[part][case["case"]] for found in result["rounds"])
                       for part in ("round_trip_us", "local_fault_us"))
        print(f"{case['case']:12}{trip:>12.0f}{local:>13.0f}{case['limit']:>8.0f}{case['rate']:>9.0f}{case['ratio']:>8.2f}")


def add_commands(commands, common):
    add = commands.add_parser("fault", parents=[common], help="how long a guest waits for a page").add_argument
    add("--faults", type=int, default=5000, metavar="N", help="pages touched, one after the other (5000)")
    add("--mtu", type=int, metavar="N", help="of the virtual wire (9000, or what the profile can)")
    add("--pages", type=int, default=65536, metavar="N", help="of the image (65536: 256 MiB)")
    add("--runs", type=int, default=5, metavar="N", help="rounds (5)")
    add("--idle", choices=["busy", "yield", "backoff"], help="of every process, bare and fabric (the profile's)")
    add("--profile", default="net_af_packet", metavar="NAME", help="(net_af_packet)")
    add("--seed", type=int, default=1, metavar="N", help="of image and order (1)")


def run(args):
    """@return (result, a function that prints it)"""
    lablib.require_root()
    args.mtu, args.hosts = fillbench.bare_profile(args).mtu_for_lab(args.mtu), 1
    if fleetlib.fragments(args.mtu) > 1:
        raise benchlib.BenchError(f"--mtu {args.mtu}: the bare loop sends a page in one frame, which takes 4140")
    with fillbench.bed_of(args) as bed:
        return summary(args, [run_round(bed, number) for number in range(1, args.runs + 1)]), show
