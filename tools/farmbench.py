# SPDX-License-Identifier: BSD-3-Clause
"""Guests on hosts in network namespaces that fault what they touch: storm, where all touch the same pages at the same time, and mixed,
where all have a working set in common and each goes its own way then. Against bare receivers of the same pages on as many hosts."""
import statistics

import benchlib
import benchreport
import fillbench
import lablib

RUN_S = 300.0
UNIT = "pages/s per guest"


def touches(args):
    """Options of a guest."""
    threads = ["--threads", args.threads]
    if args.what == "storm":  # each vCPU for itself, in one order
        return [*threads, "--same-pages", "--hot-percent", 100]
    return [*threads, "--hot-percent", args.hot_percent]


def run_guests(fleet, args):
    """@return their reports"""
    numbers = [(host, host * args.guests + n) for host in range(1, args.hosts + 1) for n in range(args.guests)]
    with fleet.at_once():
        guests = [fleet.start_guest(number, host, "hotset", touches(args)) for host, number in numbers]
        for guest in guests:
            benchlib.raise_to_front(guest)
    if not fleet.wait_guests(RUN_S):
        raise benchlib.BenchError(f"the guests did not end in {RUN_S:.0f} s:\n{guests[0].tail()}")
    reports = [fleet.report(guest) for guest in guests]
    for guest, report in zip(guests, reports):
        if guest.status() != 0 or not report["verified"]:
            raise benchlib.BenchError(f"{guest.name} ended with status {guest.status()}:\n{guest.tail()}")
    return reports


def through_fabric(bed):
    with bed.fleet() as fleet:
        reports, server = run_guests(fleet, bed.args), fleet.server_stats()
    rates = [report["pages"] / report["complete_s"] for report in reports]
    return {"rate": statistics.mean(rates), "slowest": min(rates), "faults": sum(report["faults"] for report in reports),
            "fault_us_p50": statistics.median(report["fault_us_p50"] for report in reports),
            "fault_us_p99": max(report["fault_us_p99"] for report in reports),
            "sends_per_page": (server["tx_pages_multicast"] + server["tx_pages_unicast"]) / bed.args.pages,
            "lockstep_hits": server["lockstep_hits"]}


def run_round(bed, number):
    benchlib.say_round(number, bed.args.runs)
    bare, fabric = bed.run_bare(0), through_fabric(bed)
    return {"limit": bare["rate"], "rate": fabric["rate"], "bare": bare, "fabric": fabric}


def show(result):
    print(f"{result['benchmark']}: {result['hosts']} hosts, {result['guests']} guest(s) of {result['threads']} vCPU(s) each, "
          f"{result['pages']} pages, MTU {result['mtu']}; pages/s a guest")
    print(f"{'':12}{'bare':>10}{'fabric':>10}{'slowest':>10}{'ratio':>8}{'p50 us':>9}{'p99 us':>9}{'sends/page':>12}")
    for number, run in enumerate(result["runs"], 1):
        fabric = run["fabric"]
        print(f"{'run ' + str(number):12}{run['limit']:>10.0f}{run['rate']:>10.0f}{fabric['slowest']:>10.0f}"
              f"{run['rate'] / run['limit']:>8.3f}{fabric['fault_us_p50']:>9.0f}{fabric['fault_us_p99']:>9.0f}"
              f"{fabric['sends_per_page']:>12.3f}")
    print(f"{'median':12}{result['limit']:>10.0f}{result['rate']:>10.0f}{'':10}{result['ratio']:>8.3f}")


def add_commands(commands, common):
    storm = commands.add_parser("storm", parents=[common], help="all guests fault the same pages at the same time")
    mixed = commands.add_parser("mixed", parents=[common], help="a working set in common, then each its own way")
    for command in (storm, mixed):
        fillbench.add_bed(command, runs=3, pages=32768, hosts=4)
        add = command.add_argument
        add("--guests", type=int, default=2, metavar="N", help="a host (2)")
        add("--threads", type=int, default=4, metavar="M", help="vCPUs a guest (4)")
    mixed.add_argument("--hot-percent", type=int, default=25, metavar="P", help="of the pages that are the working set (25)")


def run(args):
    """@return (result, a function that prints it)"""
    lablib.require_root()
    args.mtu = fillbench.bare_profile(args).mtu_for_lab(args.mtu)
    with fillbench.bed_of(args) as bed:
        runs = [run_round(bed, number) for number in range(1, args.runs + 1)]
    more = {"hot_percent": args.hot_percent} if args.what == "mixed" else {}
    return {"benchmark": args.what, "unit": UNIT, **benchreport.medians(runs), "guests": args.guests, "threads": args.threads,
            **more, **fillbench.options(args)}, show
