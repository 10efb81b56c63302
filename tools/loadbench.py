# SPDX-License-Identifier: BSD-3-Clause
"""A load generator for switches and NICs: a memserver at one port, many memtaps behind another, the device under test between."""
import contextlib
import json
import os
import select
import subprocess
import sys

import benchlib
import benchreport
import lablib

READY_S, END_S = 60.0, 10.0
UNIT = "frames/s"
PASSED_ON = ("members", "seconds", "tolerance", "max_gbps", "touched", "pages", "vcpus", "timeout", "joins", "join_gbps")


def node_command(args, role, device, *options):
    command = [str(benchlib.program(args, benchlib.NODE)), role, "--profile", args.profile, "--seed", str(args.seed)]
    for option, value in (("--device", device), ("--mtu", args.mtu), ("--idle", args.idle), ("--lcores", args.lcores)):
        if value is not None:
            command += [option, str(value)]
    return [*command, *map(str, options), *(["--", *args.eal.split()] if args.eal else [])]


@contextlib.contextmanager
def node(command):
    """Ends with the block; its progress goes where ours does."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True,
                          preexec_fn=benchlib.first_in_line) as popen:
        try:
            yield popen
        finally:
            popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(END_S)
            popen.kill()  # nothing, if it has ended


@contextlib.contextmanager
def server(command):
    with node(command) as popen:
        if not select.select([popen.stdout], [], [], READY_S)[0] or popen.stdout.readline().strip() != "READY":
            raise benchlib.BenchError("the server's end did not start")
        yield popen


def show_rest(popen):
    """We are told to end: prints what it has to say when it is told so, too."""
    popen.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        print(popen.communicate(timeout=END_S)[0], end="", flush=True)


def members(command):
    with node(command) as popen:
        try:
            out = popen.stdout.read()
        except SystemExit:
            show_rest(popen)
            raise
    try:
        load = json.loads(out)
    except ValueError:
        raise benchlib.BenchError("the members' end ended without a result") from None
    if "error" in load:
        print(out, end="", flush=True)  # it may have taken an hour
        raise benchlib.BenchError(load["error"])
    return load


def members_command(args, device):
    given = [(f"--{name.replace('_', '-')}", getattr(args, name)) for name in PASSED_ON]
    several = [("--skip", what) for what in args.skip] + [("--trace", path) for path in args.trace]
    return node_command(args, "load-members", device, *(word for pair in given + several for word in pair))


def in_lab(args):
    """@return the runs, over a bridge and two hosts that are made for them"""
    with lablib.Lab(f"sf-load-{os.getpid()}", 1, args.mtu) as lab, \
            server(lab.exec_args(0, node_command(args, "load-server", lablib.PORT))):
        return runs(args, lambda: members(lab.exec_args(1, members_command(args, lablib.PORT))))


def runs(args, run_one):
    found = []
    for number in range(1, args.runs + 1):
        benchlib.say_round(number, args.runs)
        run = run_one()
        found.append({"limit": run["limit"]["frames_per_s"], "rate": run["throughput"]["frames_per_s"], "load": run})
    return found


def serve(args):
    """Until a signal; then says what it did."""
    print("fabric-bench: serves the load of --as members at another port; Ctrl-C ends it", file=sys.stderr, flush=True)
    with server(node_command(args, "load-server", args.port)) as popen:
        try:
            popen.wait()
        finally:
            show_rest(popen)
        if popen.returncode != 0:
            raise benchlib.BenchError(f"the server's end failed with status {popen.returncode}")


def result_of(args, found):
    last = found[-1]["load"]
    return {"benchmark": "load", "unit": UNIT, **benchreport.medians(found), "members": args.members, "mtu": last["mtu"],
            "seconds": args.seconds, "tolerance": args.tolerance, "profile": args.profile, "idle": args.idle or "the profile's",
            "seed": args.seed, "device": "a bridge and two namespaces" if args.role is None else f"behind {args.port}"}


def show(result):
    print(f"load 1 -> {result['members']} members behind one port: MTU {result['mtu']}, {result['seconds']:g} s a rate, tolerance "
          f"{result['tolerance']:.3%}; {result['device']}")
    print(f"{'no-drop rate':12}{'limit, frames/s':>17}{'Gbit/s':>9}{'fabric, frames/s':>18}{'Gbit/s':>9}{'ratio':>8}"
          f"{'lost, worst':>13}{'mean':>8}")
    for number, run in enumerate(result["runs"], 1):
        limit, fabric = run["load"]["limit"], run["load"]["throughput"]
        print(f"{'run ' + str(number):12}{limit['frames_per_s']:>17.0f}{limit['gbps']:>9.3f}{fabric['frames_per_s']:>18.0f}"
              f"{fabric['gbps']:>9.3f}{run['rate'] / run['limit']:>8.3f}{fabric['lost_worst']:>13}{fabric['lost_mean']:>8.1f}")
    print(f"{'median':12}{result['limit']:>17.0f}{'':9}{result['rate']:>18.0f}{'':9}{result['ratio']:>8.3f}")
    show_delays([run["load"] for run in result["runs"]])


def show_delays(loads):
    for number, load in enumerate(loads, 1):
        if replay := load.get("replay"):
            print(f"replay, run {number}: all done after {replay['seconds']:.2f} s; {replay['waits']} waits of {replay['touched']} "
                  f"pages touched: p50 {replay['wait_us_p50']:.0f} us, p99 {replay['wait_us_p99']:.0f} us, "
                  f"max {replay['wait_us_max']:.0f} us; {replay['retries']} retries, {replay['tx_bytes'] / 1e6:.1f} MB sent, "
                  f"lost of {replay['sent']} frames: worst {replay['lost_worst']}, mean {replay['lost_mean']:.1f}")
        if join := load.get("join"):
            for what in ("join", "leave"):
                print(f"{what}, run {number}: {join['times']} times: median {join[what]['us_median']:.0f} us, "
                      f"p99 {join[what]['us_p99']:.0f} us, max {join[what]['us_max']:.0f} us")


# --- command line -----------------------------------------------------------------------------------------------------

def add_commands(commands, common):
    command = commands.add_parser("load", parents=[common], help="a load for switches and NICs: 1 -> N memtaps behind one port")
    add = command.add_argument
    add("--as", choices=["server", "members"], dest="role",
        help="one end of the device under test, by --port; without, both over a bridge that is made for it")
    add("--port", metavar="DEVICE", help="of --as: kernel interface, PCI address or socket file")
    add("--members", type=int, default=100, metavar="N", help="memtaps that are emulated, 1 to 1000 (100)")
    add("--seconds", type=float, default=2, metavar="S", help="that each rate is offered (2; RFC 2544 has 60)")
    add("--tolerance", type=float, default=0, metavar="SHARE", help="of the frames that the worst receiver may lack (0)")
    add("--max-gbps", type=float, default=100, metavar="N", help="the rate that is offered first (100)")
    add("--skip", action="append", choices=["replay", "join"], default=[], help="leave this out; repeatable")
    add("--trace", action="append", default=[], metavar="FILE",
        help="as memtap-dpdk --record writes it, replayed by members in turns; repeatable (traces from the seed)")
    add("--touched", type=int, default=2048, metavar="N", help="pages of a trace from the seed, a multiple of 16 (2048)")
    add("--pages", type=int, default=65536, metavar="N", help="of the image that such traces are of (65536: 256 MiB)")
    add("--vcpus", type=int, default=4, metavar="N", help="of each member: pages that it waits for at once (4)")
    add("--timeout", type=float, default=120, metavar="S", help="of the replay (120)")
    add("--joins", type=int, default=20, metavar="N", help="joins and leaves that are timed (20)")
    add("--join-gbps", type=float, default=0.1, metavar="N", help="that are pushed meanwhile, 0.02 or more (0.1)")
    add("--runs", type=int, default=1, metavar="N", help="of the whole (1)")
    add("--mtu", type=int, metavar="N", help="of the port (the interface's; in the lab 9000)")
    add("--idle", choices=["busy", "yield", "backoff"], help="of both ends (the profile's)")
    add("--profile", default="net_af_packet", metavar="NAME", help="(net_af_packet)")
    add("--lcores", metavar="MAP", help="of this end, as EAL's --lcores")
    add("--eal", metavar="ARGS", help="further arguments for EAL, in one word")
    add("--seed", type=int, default=1, metavar="N", help="of pages and client ids (1)")


def check(args):
    if (args.role is None) != (args.port is None):
        raise benchlib.BenchError("--as and --port go together: which end, at which port")
    if not 1 <= args.members <= 1000 or args.runs < 1:
        raise benchlib.BenchError(f"--members {args.members}, --runs {args.runs}: 1 to 1000 members, at least one run")
    if not 0 <= args.tolerance < 1 or not 0.1 <= args.seconds <= 3600:
        raise benchlib.BenchError(f"--tolerance {args.tolerance:g}, --seconds {args.seconds:g}: a share less than 1, and 0.1 to "
                                  "3600 seconds")


def run(args):
    """@return (result, a function that prints it); of --as server (None, ...): it has none"""
    check(args)
    lablib.require_root()
    if args.role == "server":
        return serve(args), lambda result: None
    if args.role == "members":
        found = runs(args, lambda: members(members_command(args, args.port)))
    else:
        args.mtu = args.mtu or 9000
        found = in_lab(args)
    return result_of(args, found), show
