# SPDX-License-Identifier: BSD-3-Clause
"""tools/demo as a user runs it, and what it writes down."""
import fleetlib
from lib import case, check, run_tool

KEYS = {"parent_pause_ms", "descriptor_bytes", "guest_ram_bytes", "avoided_pages", "clones", "parent", "wire_bytes"}
CLONE_KEYS = {"id", "host", "first_answer_ms", "answered_id", "pages_before_answer", "memory_ok"}


@case(240)
def demo_of_a_fork_writes_down_what_it_showed(context):
    table = run_tool(context, "demo", "--no-setup", "--clones", "2", "--hosts", "2")
    check(KEYS <= table.keys(), f"the table lacks {KEYS - table.keys()}")
    check(len(table["clones"]) == 2, f"{len(table['clones'])} clones of 2")
    for row in table["clones"]:
        check(CLONE_KEYS <= row.keys(), f"a clone's row lacks {CLONE_KEYS - row.keys()}")
        check(row["answered_id"] == row["id"] and row["memory_ok"], f"a clone: {row}")
        check(0 < row["pages_before_answer"] < table["image_pages"] and row["first_answer_ms"] > 0, f"a clone: {row}")
    check(0 < table["parent_pause_ms"] and 0 < table["descriptor_bytes"] < table["guest_ram_bytes"] / 500, f"{table}")


@case(120)
def demo_of_an_image_writes_down_what_it_showed(context):
    table = run_tool(context, "demo", "--no-setup", "--image", context.image, "--clones", "2", "--hosts", "2")
    check([row["verified"] for row in table["clones"]] == [True, True], f"{table['clones']}")
    check(table["unique_bytes"] == context.unique_bytes(9000), f"{table}")
    # Two pages in one frame cost a header less than `unique_bytes` says, and not less than their own bytes.
    check(table["wire_bytes"] > context.nb_nonzero * fleetlib.PAGE, f"{table}")
