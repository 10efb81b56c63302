# SPDX-License-Identifier: BSD-3-Clause
"""The benchmarks as a user runs them, on a small image: all of them look at every byte that has come."""
import contextlib
import json
import subprocess
import time

import lib
import lablib  # found by lib
from lib import case, check, run_tool


@case(90)
def bench_fill_fills_all_hosts(context):
    result = run_tool(context, "fabric-bench", "fill", "--hosts", "2", "--pages", "2048", "--runs", "1")
    (run,) = result["runs"]
    check(result["verified"] and run["rate"] > 0 and run["limit"] > 0, f"{result}")
    check(result["environment"]["version"].startswith("snowfabric"), f"{result['environment']}")


@case(90)
def bench_wire_finds_a_pace_without_loss(context):
    result = run_tool(context, "fabric-bench", "wire", "--hosts", "2", "--pages", "4096", "--runs", "1")
    (run,) = result["runs"]
    check(run["best"]["delivered_least"] >= 1 - result["loss"], f"{run}")
    check(0 < run["rate"] <= 1.1 * run["limit"], f"{run}")
    return f"{run['rate']:.0f} of {run['limit']:.0f} pages/s"


@case(90)
def bench_sockets_compare_the_library_with_a_bare_loop(context):
    for mtu, pages_a_frame in ((9000, 2), (1500, 1 / 3)):
        result = run_tool(context, "fabric-bench", "sockets", "--image-mb", "8", "--runs", "1", "--receivers", "2",
                          "--mtu", str(mtu))
        (run,) = result["runs"]
        check(abs(run["bare"]["pages_a_frame"] - pages_a_frame) < 0.01, f"{run['bare']}")
        for fabric in (run["fabric"], run["cold"]):
            check(1 <= fabric["sends_per_page"] < 4 and 0 <= fabric["lost_share"] < 0.5, f"{fabric}")


@case(120)
def bench_scale_goes_from_one_host_to_all(context):
    result = run_tool(context, "fabric-bench", "scale", "--hosts", "2", "--pages", "2048", "--runs", "1")
    check([each["case"] for each in result["cases"]] == ["1 host", "2 hosts"], f"{result}")
    for each in result["cases"]:
        check(each["rate"] > 0 and each["limit"] > 0, f"{each}")


@case(120)
def bench_storm_and_mixed_count_what_guests_wait_for(context):
    small = ("--hosts", "2", "--guests", "2", "--threads", "2", "--pages", "2048", "--runs", "1")
    for scenario in ("storm", "mixed"):
        result = run_tool(context, "fabric-bench", scenario, *small)
        (run,) = result["runs"]
        check(run["rate"] > 0 and run["limit"] > 0 and run["fabric"]["faults"] > 0, f"{run}")


@case(90)
def bench_fault_times_what_a_guest_waits(context):
    result = run_tool(context, "fabric-bench", "fault", "--faults", "200", "--pages", "2048", "--runs", "1")
    for each in result["cases"]:
        check(each["rate"] > 0 and each["limit"] > 0, f"{each}")
    check(result["rounds"][0]["fabric_us"]["faults"] > 100, f"{result['rounds']}")
    return ", ".join(f"{each['case']} {each['rate']:.0f} us" for each in result["cases"])


@case(150)
def bench_load_finds_a_rate_replays_traces_and_times_joins(context):
    result = run_tool(context, "fabric-bench", "load", "--members", "16", "--seconds", "0.3", "--tolerance", "0.05",
                      "--touched", "256", "--pages", "4096", "--joins", "3",
                      "--max-gbps", "1")  # what a busy machine can do, too: facts, not speed
    (run,) = result["runs"]
    replay, join = run["load"]["replay"], run["load"]["join"]
    check(replay["touched"] == 16 * 256 and 256 <= replay["waits"] <= replay["touched"], f"{replay}")
    check(replay["tx_bytes"] >= 256 * 4096 and replay["lost_worst"] <= 0.05 * replay["sent"], f"{replay}")
    # A member whose BYE is lost is left alone after 5 s.
    check(join["times"] == 3 and join["join"]["us_median"] > 0 and join["leave"]["us_max"] < 1e6, f"{join}")
    for part in ("limit", "throughput"):
        found = run["load"][part]
        check(found["sent"] > 0 and found["lost_worst"] <= 0.05 * found["sent"], f"{part}: {found}")
        check(found["gbps"] <= 1.1 and found["trials"], f"{part}: {found}")
        check(all(trial["seconds"] >= 0.3 for trial in found["trials"]), f"{part}: {found}")
    check(run["load"]["members"] == 16 and run["load"]["bad_control_frames"] == 0, f"{run['load']}")
    return f"{run['rate']:.0f} of {run['limit']:.0f} frames/s"


def load_end(context, lab, host, role, *options):
    """One end of a load in a host of the lab, without tools/fabric-bench."""
    command = [context.build / "tools/bench-node", role, "--profile", "net_af_packet", "--device", lablib.PORT, *options]
    return subprocess.Popen(lab.exec_args(host, command), stdout=subprocess.PIPE, text=True)


@contextlib.contextmanager
def load_server(context, lab):
    with load_end(context, lab, 0, "load-server") as server:
        try:
            check(server.stdout.readline() == "READY\n", "no server's end")
            yield server
        finally:
            server.terminate()


def run_load_members(context, lab, *options):
    command = [lib.ROOT / "tools/fabric-bench", "load", "--build-dir", context.build, "--as", "members", "--port", lablib.PORT]
    return subprocess.run(lab.exec_args(1, [*command, *options]), capture_output=True, text=True, check=False, timeout=50)


@case(60)
def bench_load_shows_what_it_measured_before_it_failed(context):
    too_much = ("--members", "4", "--seconds", "0.3", "--tolerance", "0.05", "--max-gbps", "0.05", "--touched", "4096",
                "--timeout", "1")  # 16 MB take longer than a second at this rate
    with lablib.Lab(lib.lab_name(), 1) as lab, load_server(context, lab):
        done = run_load_members(context, lab, *too_much)
    check(done.returncode == 1 and "replay: 0 of 4 members had all their pages" in done.stderr, f"{done}")
    load = json.loads(done.stdout)
    check(load["limit"]["sent"] > 0 and load["throughput"]["sent"] > 0 and "replay" in load["error"], f"{load}")
    check("replay" not in load and "join" not in load, f"{load}")


@case(60)
def bench_load_server_falls_silent_when_the_members_are_killed(context):
    with lablib.Lab(lib.lab_name(), 1) as lab, load_server(context, lab):
        def nb_sent():
            counter = f"/sys/class/net/{lablib.PORT}/statistics/tx_packets"
            return int(subprocess.run(lab.exec_args(0, ["cat", counter]), capture_output=True, check=True).stdout)

        with load_end(context, lab, 1, "load-members", "--members", "2", "--seconds", "60", "--max-gbps", "0.05") as members:
            try:
                lib.wait_until(lambda: nb_sent() > 500, "the load begins")
            finally:
                members.kill()
        time.sleep(4)  # 3 s without a question, and some
        before = nb_sent()
        time.sleep(1)
        nb_more = nb_sent() - before
        check(nb_more < 50, f"{nb_more} frames in a second")


@case(30)
def bench_load_says_that_no_server_answers(context):
    with lablib.Lab(lib.lab_name(), 1) as lab:
        too_many = ("--members", "1000", "--touched", "4194304", "--pages", "4194304")
        refused = run_load_members(context, lab, *too_many)
        done = run_load_members(context, lab, *too_many, "--skip", "replay")  # which alone would need them
    check(refused.returncode == 1 and "more than 268435456 pages in all" in refused.stderr, f"{refused}")
    check(done.returncode == 1 and "nothing answers at the other port" in done.stderr, f"{done.returncode}: {done.stderr}")


@case(120)
def bench_peers_bring_the_same_file_to_all_hosts(context):
    names = ("snowfabric", "snowfabric --push", "nbdkit, nbdcopy")
    only = [word for name in names for word in ("--only", name)]
    result = run_tool(context, "bench-peers", "--receivers", "2", "--mb", "8", "--runs", "1", *only)
    rows = {row["by"]: row for row in result["rows"]}
    check(set(rows) == set(names), f"{rows.keys()}")
    for name, row in rows.items():
        check(row["seconds"] > 0 and row["cpu_s"] > 0 and row["wire"] > .99, f"{name}: {row}")
    return "; ".join(f"{name} {row['seconds']:.1f} s" for name, row in rows.items())
