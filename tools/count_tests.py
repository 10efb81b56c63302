# SPDX-License-Identifier: BSD-3-Clause
"""Prints `passed failed skipped` of a meson test run: single GoogleTest cases where a program reports them.

usage: count_tests.py BUILD_DIR/meson-logs/testlog.json
"""
import json
import re
import sys

SUMMARY = {"passed": r"^\[  PASSED  \] (\d+) tests?\.", "failed": r"^\[  FAILED  \] (\d+) tests?, listed",
           "skipped": r"^\[  SKIPPED \] (\d+) tests?, listed"}


def count(entry):
    """Of one meson test."""
    output = entry.get("stdout") or ""
    found = {name: re.search(pattern, output, re.MULTILINE) for name, pattern in SUMMARY.items()}
    counts = {name: int(match.group(1)) if match else 0 for name, match in found.items()}
    if not any(found.values()):
        verdict = {"OK": "passed", "EXPECTEDFAIL": "passed", "SKIP": "skipped"}.get(entry["result"], "failed")
        counts[verdict] = 1
    elif entry["result"] not in ("OK", "SKIP") and counts["failed"] == 0:
        counts["failed"] = 1  # a crash or a sanitizer's report after the last case
    return counts


def main():
    total = dict.fromkeys(SUMMARY, 0)
    with open(sys.argv[1]) as log:
        for line in log:
            for name, n in count(json.loads(line)).items():
                total[name] += n
    print(total["passed"], total["failed"], total["skipped"])


if __name__ == "__main__":
    main()
