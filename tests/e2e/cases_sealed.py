# SPDX-License-Identifier: BSD-3-Clause
"""Groups whose frames are sealed, and an attacker on their segment."""
import collections
import sys

import lablib
from cases_failures import recovery_s
from lib import ROOT, SLOW_WIRE, case, check, check_complete, half_way, key_file, make_image, start_clones, wait_until

ATTACKER_HOST = 3  # has no memtap
NB_RECORDED = NB_SENT = 300
IMAGE_ID = "5ea1ed5ea1ed0001"
SLOWER_WIRE = ("--rate-gbps", "0.02", "--max-rate-gbps", "0.02")  # some 9 s of the image, for an attack of some 4 s


def sealed_world(context, key, server_args=(), **options):
    return context.world(server_args=("--key", key, *server_args), memtap_args=("--key", key), **options)


def attacker(fleet, *args):
    return fleet.start_other("attacker", [sys.executable, "-B", ROOT / "tests/e2e/attacker.py", *args], ATTACKER_HOST)


def record(context, fleet, name):
    """@return the recorder, and the file that it writes"""
    path = context.workdir / name
    process = attacker(fleet, "record", lablib.PORT, path, NB_RECORDED)
    wait_until((context.workdir / f"{name}.ready").exists, "the attacker listens")
    return process, path


def attack(context, fleet, path, kind, counter):
    """Sends frames of a kind, and waits until memtap 2 has counted them all."""
    image = fleet.info["images"][0]
    before = fleet.memtap_stats(2)[f"rx_drop_{counter}"]
    process = attacker(fleet, "send", lablib.PORT, path, kind, NB_SENT, context.seed, image["group_mac"],
                       image["image_id"], image["epoch"])
    check(process.wait(60.0) == 0, f"the attacker ended with {process.status()}: {process.tail()}")
    wait_until(lambda: fleet.memtap_stats(2)[f"rx_drop_{counter}"] >= before + NB_SENT, f"{kind} frames counted as {counter}")


@case(120)
def sealed_group_completes_9000(context):
    """Nothing differs for clones whose group seals its frames, with frames lost; nobody without the key joins."""
    with sealed_world(context, key_file(context), loss=2.0) as fleet:
        check_complete(context, fleet, start_clones(fleet, 8, ["random", "sequential"]))
        stats = fleet.memtap_stats(1)
        check(not any(stats[f"rx_drop_{why}"] for why in ("unsealed", "bad_seal", "replayed")), f"{stats}")


@case(120)
def sealed_group_completes_1500(context):
    """Pages in fragments."""
    with sealed_world(context, key_file(context), mtu=1500) as fleet:
        check_complete(context, fleet, start_clones(fleet, 4, "random"))


@case(60)
def without_the_groups_key_nobody_joins(context):
    """Neither a memtap in the clear nor one with another key: both say that no memserver answered."""
    with sealed_world(context, key_file(context), nb_hosts=2, memtaps=[]) as fleet:
        for args in ((), ("--key", key_file(context, "another"))):
            fleet.opt.memtap_args = (*args, "--give-up", 1)
            fleet.launch_memtap(1)
            check(fleet.memtaps[1].wait(20.0) == 1, f"memtap ended with {fleet.memtaps[1].status()}")
            check("no memserver answered" in fleet.memtaps.pop(1).tail(), "memtap says another thing")
        stats = fleet.server_stats()
        check(stats["rx_drop_unsealed"] > 0 and stats["rx_drop_bad_seal"] > 0 and stats["joins"] == 0, f"{stats}")


@case(180)
def attackers_frames_are_counted_and_none_is_installed(context):
    """Recorded frames sent again, with a bit flipped, and pages that an outsider made, while clones fetch; then those of an
    earlier freeze under the same key."""
    key = key_file(context)
    stale = make_image(context.workdir / "stale.img", 8, context.seed + 1)
    context_image, context.image = context.image, stale
    try:
        with sealed_world(context, key, ("--image-id", IMAGE_ID, "--epoch", 1), memtaps=[1, 2]) as fleet:
            recorder, old = record(context, fleet, "stale")
            guests = start_clones(fleet, 2, "random")
            check(fleet.wait_guests(60.0, guests) and recorder.wait(10.0) == 0, "nothing was recorded")
    finally:
        context.image = context_image
    with sealed_world(context, key, ("--image-id", IMAGE_ID, "--epoch", 2, *SLOWER_WIRE), memtaps=[1, 2]) as fleet:
        recorder, new = record(context, fleet, "new")
        guests = start_clones(fleet, 4, ["random", "sequential"])
        check(recorder.wait(30.0) == 0, "nothing was recorded")
        for path, kind, counter in ((new, "replayed", "replayed"), (new, "flipped", "bad_seal"), (new, "forged", "bad_seal"),
                                    (new, "clear", "unsealed"), (old, "replayed", "stale_epoch")):
            attack(context, fleet, path, kind, counter)
        running = [guest for guest in guests if guest.status() is None]
        check(running, "the clones were complete before the attack was over: slow the wire down")
        check_complete(context, fleet, guests)
        check_complete(context, fleet, start_clones(fleet, 2, "random"))
        return f"{5 * NB_SENT} frames of an attacker"


@case(60)
def restarted_memserver_repeats_no_counter(context):
    """It is killed, and comes back with the same image, epoch and key: no two frames have the same session and counter,
    of which the cipher's key and nonce are made. Who fetches completes."""
    same = ("--image-id", IMAGE_ID, "--epoch", 1)
    with sealed_world(context, key_file(context), (*same, *SLOWER_WIRE), nb_hosts=2) as fleet:
        path = context.workdir / "counters"
        recorder = fleet.start_other("recorder", ["ip", "netns", "exec", fleet.lab.bridge_ns, sys.executable, "-B",
                                                  ROOT / "tests/e2e/attacker.py", "counters", "h0", path])
        wait_until((context.workdir / "counters.ready").exists, "the recorder listens")
        guests = start_clones(fleet, 4, ["random", "sequential"])
        half_way(context, fleet)
        fleet.server.kill()
        took_s = recovery_s(fleet, list(fleet.memtaps), fleet.start_server)
        check_complete(context, fleet, guests)
        recorder.stop()
        server = fleet.info["server_mac"]
    seen = [line.split() for line in path.read_text().splitlines()]
    counts = collections.Counter((session, counter) for _, session, counter in seen)
    check(counts and max(counts.values()) == 1, f"seen more than once: {counts.most_common(5)}")
    lives = collections.Counter(session for source, session, _ in seen if source == server)
    check(len(lives) == 2 and min(lives.values()) > context.nb_nonzero // 8, f"frames of memserver by session: {lives}")
    return f"{len(counts)} pairs, {list(lives.values())} of memserver's lives; pages again after {took_s:.2f} s"
