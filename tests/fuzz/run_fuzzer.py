#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Runs a libFuzzer target on its seeds and FUZZ_SECONDS (5) of mutations of them.

What it finds goes to a temporary folder, a crashing input to the current one (the build folder).
"""
import os
import subprocess
import sys
import tempfile


def main() -> int:
    fuzzer, *seeds = sys.argv[1:]
    seconds = os.environ.get("FUZZ_SECONDS", "5")
    with tempfile.TemporaryDirectory(prefix="sf_fuzz_") as found:
        command = [fuzzer, f"-max_total_time={seconds}", "-seed=1", "-max_len=8192",
                   "-print_final_stats=1", found, *seeds]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
