# SPDX-License-Identifier: BSD-3-Clause
"""The benchmarks as a user runs them, on a small image: all of them look at every byte that has come."""
import json
import re
import subprocess

from lib import ROOT, case, check  # finds tools/
import lablib


def bench(context, tool, *options):
    """@return what it wrote into --json"""
    path = context.workdir / "bench.json"
    path.unlink(missing_ok=True)
    process = subprocess.Popen([ROOT / "tools" / tool, *options, "--build-dir", context.build, "--json", path],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = process.communicate()[0]
    finally:
        process.terminate()  # it cleans up then
        process.wait()
    check(process.returncode == 0, f"{tool} ended with {process.returncode}: {said[-2000:]}")
    left = [name for name in lablib.namespaces() if re.fullmatch(rf"sf-(bench|peers)-{process.pid}-\w+", name)]
    check(not left, f"{tool} has left {left}")
    return json.loads(path.read_text())


@case(90)
def bench_fill_fills_all_hosts(context):
    result = bench(context, "fabric-bench", "fill", "--hosts", "2", "--pages", "2048", "--runs", "1")
    (run,) = result["runs"]
    check(result["verified"] and run["rate"] > 0 and run["limit"] > 0, f"{result}")
    check(result["environment"]["version"].startswith("snowfabric"), f"{result['environment']}")


@case(120)
def bench_peers_bring_the_same_file_to_all_hosts(context):
    names = ("snowfabric", "snowfabric --push", "nbdkit, nbdcopy")
    only = [word for name in names for word in ("--only", name)]
    result = bench(context, "bench-peers", "--receivers", "2", "--mb", "8", "--runs", "1", *only)
    rows = {row["by"]: row for row in result["rows"]}
    check(set(rows) == set(names), f"{rows.keys()}")
    for name, row in rows.items():
        check(row["seconds"] > 0 and row["cpu_s"] > 0 and row["wire"] > .99, f"{name}: {row}")
    return "; ".join(f"{name} {row['seconds']:.1f} s" for name, row in rows.items())
