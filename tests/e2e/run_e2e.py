#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""End to end over namespaces: memserver, memtaps and guests as a user runs them. Needs root and a built tree."""
import argparse
import fnmatch
import pathlib
import sys
import tempfile
import time

sys.dont_write_bytecode = True
import lib  # noqa: E402 (after the line above; finds tools/)
import cases_basic  # noqa: E402,F401 (found by lib; registers its cases)
import cases_bench  # noqa: E402,F401 (found by lib; registers its cases)
import cases_death  # noqa: E402,F401 (found by lib; registers its cases)
import cases_demo  # noqa: E402,F401 (found by lib; registers its cases)
import cases_failures  # noqa: E402,F401 (found by lib; registers its cases)
import cases_fork  # noqa: E402,F401 (found by lib; registers its cases)
import cases_fork_chain  # noqa: E402,F401 (found by lib; registers its cases)
import cases_fork_memtap  # noqa: E402,F401 (found by lib; registers its cases)
import cases_fork_more  # noqa: E402,F401 (found by lib; registers its cases)
import cases_guard  # noqa: E402,F401 (found by lib; registers its cases)
import cases_hash_tree  # noqa: E402,F401 (found by lib; registers its cases)
import cases_library  # noqa: E402,F401 (found by lib; registers its cases)
import cases_machine  # noqa: E402,F401 (found by lib; registers its cases)
import cases_sandbox  # noqa: E402,F401 (found by lib; registers its cases)
import cases_sealed  # noqa: E402,F401 (found by lib; registers its cases)
import cases_working_set  # noqa: E402,F401 (found by lib; registers its cases)
import cases_kill  # noqa: E402,F401 (found by lib; registers its cases)
import fleetlib  # noqa: E402 (found by lib)
import lablib  # noqa: E402 (found by lib)


def arguments():
    parser = argparse.ArgumentParser(prog="run_e2e.py", description=__doc__)
    parser.add_argument("--case", action="append", metavar="GLOB", help="only cases whose name matches; repeatable")
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    parser.add_argument("--image", type=pathlib.Path, metavar="FILE", help="instead of a synthetic one")
    parser.add_argument("--mb", type=int, default=32, metavar="N", help="size of the synthetic image (32)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of image, orders, loss, junk and deaths (1)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of cases that go by rounds (5)")
    parser.add_argument("--build-dir", type=pathlib.Path, default=lib.ROOT / "build", metavar="DIR")
    args = parser.parse_args()
    patterns = args.case or ["*"]
    args.cases = [name for name in lib.CASES if any(fnmatch.fnmatch(name, p) for p in patterns)]
    if not args.cases:
        parser.error(f"no case matches {patterns}; --list shows them")
    return args


def run_case(name, context):
    function, timeout_s, round_s = lib.CASES[name]
    began = time.monotonic()
    try:
        with lib.time_limit(timeout_s + round_s * context.rounds):
            note = function(context)
        verdict = "PASS"
    except lib.Skipped as why:
        verdict, note = "SKIP", str(why)
    except (lib.Failed, lib.TimedOut, fleetlib.FleetError, lablib.LabError) as why:
        verdict, note = "FAIL", str(why)
    except Exception as why:  # a bug of the case is a failure of the case, not of the ones after it
        verdict, note = "FAIL", repr(why)
    if verdict == "FAIL":
        lablib.Lab(lib.lab_name()).down()  # the time-out may have struck in the middle of the clean-up
    print(f"{verdict} {name} ({time.monotonic() - began:.1f} s){': ' + note if note else ''}", flush=True)
    return verdict


def main():
    args = arguments()
    if args.list:
        print("\n".join(args.cases))
        return 0
    lablib.exit_on_signals()
    with tempfile.TemporaryDirectory(prefix="snowfabric-e2e-") as tmp:
        workdir = pathlib.Path(tmp)
        try:
            lablib.require_root()
            image = args.image or lib.make_image(workdir / "image.img", args.mb, args.seed)
            context = lib.Context(args.build_dir.absolute(), image.absolute(), args.seed, workdir, args.rounds)
        except (lablib.LabError, fleetlib.FleetError, OSError) as error:
            print(f"run_e2e: {error}", file=sys.stderr)
            return 2
        print(f"image {image}: {context.nb_pages} pages, {context.nb_nonzero} not zero, seed {args.seed}", flush=True)
        verdicts = [run_case(name, context) for name in args.cases]
    passed, failed, skipped = (verdicts.count(v) for v in ("PASS", "FAIL", "SKIP"))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
