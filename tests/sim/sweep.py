#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What the defaults of the protocol are worth: `fabric-sim plan` with one of them changed at a time, over the same cases.

  tests/sim/sweep.py BUILD-DIR [SWEEP ...] [--json FILE]    a release build; some minutes each

Prints a table for each sweep, as docs/adr/ has them. A cell: the server's bytes in images; when half of the clones were done, and
all; the longest that any of them waited for a page.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

# What happens: a fork on a clean wire, with losses; faults alone, each clone in its own order, or all in the same.
CASES = {
    "clean": ("--clones", 64, "--image-bytes", "16M"),
    "1 % at receivers": ("--clones", 64, "--image-bytes", "16M", "--loss", 1),
    "1 % on uplink": ("--clones", 64, "--image-bytes", "16M", "--loss", 1, "--loss-at", "uplink"),
    "faults, own orders": ("--clones", 64, "--image-bytes", "16M", "--loss", 0.1, "--no-push", "--touch", 25),
    "faults, one order": ("--clones", 64, "--image-bytes", "16M", "--loss", 0.1, "--no-push", "--touch", 25, "--overlap", 100),
}
# Of 16 clones some have a link of a tenth of the others' rate.
SLOW = ("--clones", 16, "--image-bytes", "64M", "--gbps", 1, "--slow-gbps", 0.1)
FLOW_CASES = {
    "none slow": SLOW,
    "1 slow": (*SLOW, "--slow", 1),
    "4 slow": (*SLOW, "--slow", 4),
    "1 slow, faults": (*SLOW, "--slow", 1, "--no-push"),
    "4 slow, faults": (*SLOW, "--slow", 4, "--no-push"),
    "4 slow, short queues": (*SLOW, "--slow", 4, "--queue-bytes", "256K"),
    "12 slow, short queues": (*SLOW, "--slow", 12, "--queue-bytes", "256K"),
    "none slow, 1 % lost": (*SLOW, "--loss", 1),
}
# Links of 10 Gbit/s; or only the server's is, and the clones' have 1.
FAST = ("--clones", 16, "--image-bytes", "64M")
RATE_CASES = {
    "clean": FAST,
    "1 % lost": (*FAST, "--loss", 1),
    "faults": (*FAST, "--no-push"),
    "1 slow": (*FAST, "--slow", 1),
    "all slow": (*FAST, "--slow", 16),
    "all slow, short queues": (*FAST, "--slow", 16, "--queue-bytes", "256K"),
}
# The clones touch half of the image, each in its own order, or all the same tenth of it.
PUSH = ("--clones", 16, "--image-bytes", "64M")
HALF = (*PUSH, "--touch", 50)
PUSH_CASES = {
    "clean": HALF,
    "1 % lost": (*HALF, "--loss", 1),
    "10 %, one order": (*PUSH, "--touch", 10, "--overlap", 100),
    "1 slow": (*HALF, "--slow", 1),
    "all slow": (*HALF, "--slow", 16),
    "all slow, short queues": (*HALF, "--slow", 16, "--queue-bytes", "256K"),
}
# The option, its values, and the cases. The default stands first. A value may have more words: options that go with it.
SWEEPS = {
    "window": ("--window-us", (0, 50, 200, 1000, 5000, 20000), CASES),
    "rto": ("--rto-ms", (20, 1, 5, 100), CASES),
    "rto-min": ("--rto-min-ms", (1, 0.1, 0.3, 5, 20), CASES),
    "end-game": ("--end-game", (0.995, 0.5, 0.8, 0.95, 2), CASES),
    "report": ("--report-ms", (50, 5, 20, 200), CASES),
    "rate": ("--rate-gbps", (0, 5, 2, 1, 0.2), RATE_CASES),
    "push": ("--push-gbps", (0, 5, 2, 1, 0.2), PUSH_CASES),
    "flow": ("--flow-rule", ("mean", "equal", "min", "max", "tagged --tagged fast", "tagged --tagged slow"), FLOW_CASES),
}


def answer(fabric_sim, *options):
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run([fabric_sim, "plan", *map(str, options), "--json", file.name], stdout=subprocess.DEVNULL, check=True)
        return json.loads(pathlib.Path(file.name).read_text())


def cell(row):
    return (f"{row['wire_to_image_ratio']:.2f} x; {row['seconds_p50']:.3f}, {row['seconds']:.3f} s; "
            f"{1e3 * row['longest_wait_s']:.1f} ms")


def sweep(fabric_sim, name):
    option, values, cases = SWEEPS[name]
    print(f"| `{option}` | {' | '.join(cases)} |\n|{'---|' * (len(cases) + 1)}")
    rows = []
    for value in values:
        rows.append({case: answer(fabric_sim, *options, option, *str(value).split()) for case, options in cases.items()})
        print(f"| {value} | {' | '.join(map(cell, rows[-1].values()))} |", flush=True)
    print()
    return {"option": option, "rows": dict(zip(map(str, values), rows))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build_dir", type=pathlib.Path, metavar="BUILD-DIR")
    parser.add_argument("sweeps", nargs="*", metavar="SWEEP", help=f"of {', '.join(SWEEPS)}; default: all")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write every answer there")
    args = parser.parse_args()
    if unknown := set(args.sweeps) - SWEEPS.keys():
        parser.error(f"{', '.join(unknown)}: no such sweep")
    results = {name: sweep(args.build_dir / "tools/fabric-sim", name) for name in args.sweeps or SWEEPS}
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
