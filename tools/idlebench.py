# SPDX-License-Identifier: BSD-3-Clause
"""What a farm costs in which nothing happens, and what the first fault costs more when something does."""
import os
import pathlib
import statistics
import time

import benchlib
import benchreport
import faultbench
import fillbench
import lablib
import profilelib

SETTLE_S, PAUSE_US, QUICK, SLOW = 2.0, 50_000, 1000, 100


def cpu_seconds(pids):
    """User and system time of processes so far."""
    ticks = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def idle_percent(fleet, seconds):
    """Of one core, all processes together."""
    pids = [fleet.server.pid, *(memtap.pid for memtap in fleet.memtaps.values())]
    time.sleep(SETTLE_S)
    before, began = cpu_seconds(pids), time.monotonic()
    time.sleep(seconds)
    return 100 * (cpu_seconds(pids) - before) / (time.monotonic() - began)


def fault_us(fleet, guest_id, host, *extra):
    """The median of what a guest waits for a page."""
    guest = fleet.start_guest(guest_id, host, "random", extra)
    benchlib.raise_to_front(guest)
    if not fleet.wait_guests(faultbench.RUN_S, [guest]) or guest.status() != 0:
        raise benchlib.BenchError(f"a guest did not end well:\n{guest.tail()}")
    return fleet.report(guest)["fault_us_p50"]


def run_round(bed, number):
    """The guests are on hosts of their own: none finds what another has brought."""
    args = bed.args
    benchlib.say_round(number, args.runs)
    with bed.fleet("--no-keep", "--prefetch", "0") as fleet:
        percent = idle_percent(fleet, args.seconds)
        quick = fault_us(fleet, 1, 1, "--limit-pages", QUICK)
        time.sleep(SETTLE_S)
        slow = fault_us(fleet, 2, args.hosts, "--limit-pages", SLOW, "--pause-us", PAUSE_US)
    return {"cpu_percent": percent, "rate": slow, "limit": quick}


def summary(args, rounds):
    percent = statistics.median(found["cpu_percent"] for found in rounds)
    return {"benchmark": "idle", "unit": "us", **benchreport.medians(rounds), "cpu_percent": percent, **fillbench.options(args)}


def show(result):
    print(f"idle: a memserver and {result['hosts']} memtaps use {result['cpu_percent']:.1f} % of a core when nothing happens; "
          f"a fault after {PAUSE_US // 1000} ms of that takes {result['rate']:.0f} us, one behind the other {result['limit']:.0f} "
          f"us; medians of {len(result['runs'])} rounds")


def add_commands(commands, common):
    add = commands.add_parser("idle", parents=[common], help="what a farm costs in which nothing happens").add_argument
    add("--hosts", type=int, default=8, metavar="N", help="with a memtap each (8)")
    add("--seconds", type=float, default=10, metavar="N", help="of looking at it (10)")
    add("--mtu", type=int, metavar="N", help="of the virtual wire (9000, or what the profile can)")
    add("--pages", type=int, default=16384, metavar="N", help="of the image (16384: 64 MiB)")
    add("--runs", type=int, default=5, metavar="N", help="rounds (5)")
    add("--idle", choices=["busy", "yield", "backoff"], help="of every process (the profile's)")
    add("--profile", default="net_af_packet", metavar="NAME", help="(net_af_packet)")
    add("--seed", type=int, default=1, metavar="N", help="of image and order (1)")


def run(args):
    """@return (result, a function that prints it)"""
    lablib.require_root()
    profile = profilelib.load(args.profile)
    args.mtu = profile.mtu_for_lab(args.mtu)
    if args.hosts < 2:
        raise benchlib.BenchError("--hosts: two at least")
    with fillbench.bed_of(args, profile.tap) as bed:
        return summary(args, [run_round(bed, number) for number in range(1, args.runs + 1)]), show
