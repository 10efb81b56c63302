#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Runs a libFuzzer target on its seeds and FUZZ_SECONDS (5) of mutations of them; 0: the seeds alone.

What it finds goes to FUZZ_FOUND/TARGET, where the next run goes on from it, or to a temporary folder; a crashing input to
the current one (the build folder).
"""
import os
import pathlib
import subprocess
import sys
import tempfile


def main() -> int:
    fuzzer, *seeds = sys.argv[1:]
    seconds = os.environ.get("FUZZ_SECONDS", "5")
    limit = "-runs=0" if seconds == "0" else f"-max_total_time={seconds}"
    with tempfile.TemporaryDirectory(prefix="sf_fuzz_") as temporary:
        found = pathlib.Path(os.environ.get("FUZZ_FOUND", temporary)) / pathlib.Path(fuzzer).name
        found.mkdir(parents=True, exist_ok=True)
        command = [fuzzer, limit, "-seed=1", "-max_len=8192", "-print_final_stats=1", found, *seeds]
        # A crash is 77 to libFuzzer, which meson takes for a test that was skipped.
        return 1 if subprocess.run(command, check=False).returncode else 0


if __name__ == "__main__":
    sys.exit(main())
