# SPDX-License-Identifier: BSD-3-Clause
"""Pages that are held to a hash tree, and an insider who makes others: all of his frames are right but for their bytes."""
import re
import sys

import lablib
from lib import ROOT, case, check, check_complete, start_clones, wait_until

INSIDERS_HOST = 4  # has no memtap
NB_SENT = 300
TREE = ("--hash-tree",)
SLOW_WIRE = ("--rate-gbps", "0.02", "--max-rate-gbps", "0.02")
MEMTAPS = [1, 2]
RECHECKED = re.compile(r"nodes fetched and checked in .* ms, (\d+) once more")


def insider(fleet, context, kind, nb_frames=NB_SENT):
    """Sends frames of a kind of tests/e2e/attacker.py to the group."""
    image = fleet.info["images"][0]
    args = ["send", lablib.PORT, "/dev/null", kind, nb_frames, context.seed, image["group_mac"], image["image_id"], image["epoch"]]
    return fleet.start_other("insider", [sys.executable, "-B", ROOT / "tests/e2e/attacker.py", *args], INSIDERS_HOST)


def bad_hashes(fleet):
    return fleet.memtap_stats(2)["rx_drop_bad_hash"]


def check_tree(fleet):
    for memtap in fleet.memtaps.values():
        check(RECHECKED.search(memtap.tail(1000)), f"memtap says nothing of a hash tree: {memtap.tail()}")


@case(120)
def hash_tree_group_completes_9000(context):
    """Nothing differs for clones, with frames lost."""
    with context.world(server_args=TREE, loss=2.0) as fleet:
        check_complete(context, fleet, start_clones(fleet, 8, ["random", "sequential"]))
        check_tree(fleet)
        check(bad_hashes(fleet) == 0, f"{fleet.memtap_stats(2)}")


@case(120)
def hash_tree_group_completes_1500(context):
    """Pages in fragments."""
    with context.world(server_args=TREE, mtu=1500) as fleet:
        check_complete(context, fleet, start_clones(fleet, 4, "random"))
        check_tree(fleet)


@case(60)
def without_the_images_hash_tree_memtap_ends_with_an_error(context):
    """With the root of another image, and with a root where memserver has no tree."""
    for server_args, says in ((TREE, "do not fit its root"), ((), "no memserver answered for the hash tree")):
        with context.world(nb_hosts=2, memtaps=[], server_args=server_args) as fleet:
            fleet.info["images"][0]["hash_root"] = "5a" * 32
            fleet.launch_memtap(1, ("--give-up", 1))
            check(fleet.memtaps[1].wait(20.0) == 1, f"memtap ended with {fleet.memtaps[1].status()}")
            check(says in fleet.memtaps.pop(1).tail(), "memtap says another thing")


@case(120)
def insiders_pages_are_counted_and_none_is_installed(context):
    """Pages, zeros and absent pages that the image does not have."""
    with context.world(server_args=(*TREE, *SLOW_WIRE), memtaps=MEMTAPS) as fleet:
        guests = start_clones(fleet, 4, ["sequential", "random"], MEMTAPS)  # random at memtap 2: the attack is on its first pages
        for kind in ("clear", "zeros", "absent"):
            before = bad_hashes(fleet)
            process = insider(fleet, context, kind)
            check(process.wait(60.0) == 0, f"the insider ended with {process.status()}: {process.tail()}")
            # Some pages are needed by nobody any more, some are zero indeed.
            wait_until(lambda: bad_hashes(fleet) >= before + NB_SENT // 4, f"frames of kind {kind} are counted")
        check([guest for guest in guests if guest.status() is None], "the clones were complete before: slow the wire down")
        check_complete(context, fleet, guests)
        return f"{bad_hashes(fleet)} of {3 * NB_SENT} frames refused, the others of no use"


@case(120)
def insiders_nodes_are_fetched_again(context):
    """While memtap fetches the tree, most of its nodes come from somebody else first."""
    with context.world(server_args=(*TREE, *SLOW_WIRE), memtaps=[]) as fleet:
        flood = insider(fleet, context, "nodes", 10**6)
        fleet.start_memtap(1)
        check(flood.status() is None, "the insider had ended before")
        flood.stop()
        found = RECHECKED.search(fleet.memtaps[1].tail(1000))
        check(found and int(found[1]) > 0, f"no node was fetched once more: {fleet.memtaps[1].tail()}")
        check_complete(context, fleet, start_clones(fleet, 2, "random", [1]))
        return f"{found[1]} nodes once more"
