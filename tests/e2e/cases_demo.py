# SPDX-License-Identifier: BSD-3-Clause
"""tools/demo as a user runs it, and what it writes down."""
import json
import subprocess

from lib import ROOT, case, check  # finds tools/
import lablib

KEYS = {"parent_pause_ms", "descriptor_bytes", "guest_ram_bytes", "avoided_pages", "clones", "parent", "wire_bytes"}
CLONE_KEYS = {"id", "host", "first_answer_ms", "answered_id", "pages_before_answer", "memory_ok"}


def demo(context, *options):
    """@return what it wrote into --json"""
    path = context.workdir / "demo.json"
    path.unlink(missing_ok=True)
    process = subprocess.Popen([ROOT / "tools/demo", "--no-setup", "--build-dir", context.build, "--json", path, *options],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = process.communicate()[0]
    finally:
        process.terminate()  # it cleans up then
        process.wait()
    check(process.returncode == 0 and path.exists(), f"the demo ended with {process.returncode}: {said[-2000:]}")
    left = lablib.Lab(f"sf-demo-{process.pid}").existing()
    check(not left, f"the demo has left {left}")
    return json.loads(path.read_text())


@case(240)
def demo_of_a_fork_writes_down_what_it_showed(context):
    table = demo(context, "--clones", "2", "--hosts", "2")
    check(KEYS <= table.keys(), f"the table lacks {KEYS - table.keys()}")
    check(len(table["clones"]) == 2, f"{len(table['clones'])} clones of 2")
    for row in table["clones"]:
        check(CLONE_KEYS <= row.keys(), f"a clone's row lacks {CLONE_KEYS - row.keys()}")
        check(row["answered_id"] == row["id"] and row["memory_ok"], f"a clone: {row}")
        check(0 < row["pages_before_answer"] < table["image_pages"] and row["first_answer_ms"] > 0, f"a clone: {row}")
    check(0 < table["parent_pause_ms"] and 0 < table["descriptor_bytes"] < table["guest_ram_bytes"] / 500, f"{table}")


@case(120)
def demo_of_an_image_writes_down_what_it_showed(context):
    table = demo(context, "--image", context.image, "--clones", "2", "--hosts", "2")
    check([row["verified"] for row in table["clones"]] == [True, True], f"{table['clones']}")
    check(table["wire_bytes"] >= table["unique_bytes"] > 0, f"{table}")
