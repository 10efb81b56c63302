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
HELLO_BYTES, BYE_BYTES, LEAST_REQUEST_BYTES = 44, 36, 68  # docs/wire-format.md, sections 2 and 5
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


def bridge_recorder(context, fleet, what, *args):
    """Notes frames on the memserver's cable: a switch shows nobody else what is for it alone.
    @return the recorder, and the file that it writes"""
    path = context.workdir / what
    ready = context.workdir / f"{what}.ready"
    ready.unlink(missing_ok=True)
    process = fleet.start_other("recorder", ["ip", "netns", "exec", fleet.lab.bridge_ns, sys.executable, "-B",
                                             ROOT / "tests/e2e/attacker.py", what, "h0", path, *args])
    wait_until(ready.exists, "the recorder listens")
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


def record_control(context, fleet):
    """Has two memtaps join, ask for pages and leave, one of them for good. @return their frames to the memserver"""
    recorder, path = bridge_recorder(context, fleet, "control", fleet.info["server_mac"])
    fleet.start_memtaps([1, 2])
    lacking = [fleet.start_guest(host, host, "random", extra=("--limit-pages", 64, "--hold")) for host in (1, 2)]
    wait_until(lambda: all(fleet.report(guest) for guest in lacking), "the guests have their first pages")
    for guest in lacking:
        guest.stop()
    check(fleet.memtaps[2].stop() is None, "memtap did not end as asked")
    wait_until(lambda: fleet.server_stats()["leaves"] == 1, "BYE has reached the server")
    recorder.stop()
    frames = path.read_text().split()
    seen = {int(frame[36:40], 16) for frame in frames}  # what is sealed, by its length
    check({HELLO_BYTES, BYE_BYTES} <= seen and max(seen) > LEAST_REQUEST_BYTES, f"of these lengths alone: {sorted(seen)}")
    return path.rename(context.workdir / f"control-{fleet.info['images'][0]['epoch']}")


def attack_server(context, fleet, path, kind, counter):
    """Sends control frames of a kind to the memserver, which must count each of them, so, and heed none."""
    image, before = fleet.info["images"][0], fleet.server_stats()
    process = attacker(fleet, "send", lablib.PORT, path, kind, NB_SENT, context.seed, fleet.info["server_mac"],
                       image["image_id"], image["epoch"])
    check(process.wait(60.0) == 0, f"the attacker ended with {process.status()}: {process.tail()}")
    drop = f"rx_drop_{counter}"
    wait_until(lambda: fleet.server_stats()[drop] >= before[drop] + NB_SENT, f"{kind} frames counted as {counter}", 5.0)
    after = fleet.server_stats()
    dropped = {name: after[name] - before[name] for name in after if name.startswith("rx_drop_")}
    check({name: count for name, count in dropped.items() if count} == {drop: NB_SENT}, f"{kind} frames dropped: {dropped}")
    table = {name: (before[name], after[name]) for name in ("joins", "leaves", "clients", "clients_timed_out", "clients_refused")}
    check(all(was == now for was, now in table.values()), f"{kind} frames changed the table of members: {table}")
    rates = [stats["rate_bytes_per_s"] for stats in (before, after)]
    check(rates[1] > rates[0] // 2, f"{kind} frames slowed the server down: bytes/s before and after {rates}")  # loss may, a little


@case(120)
def attackers_control_frames_are_counted_and_none_is_heeded(context):
    """What memtaps say to their server, HELLO, REQUEST and BYE, sent again, with a bit flipped, made up and in the clear,
    while clones fetch; and those of an earlier freeze. Its members and its rate stay as they are."""
    key, same = key_file(context), ("--image-id", IMAGE_ID)
    with sealed_world(context, key, (*same, "--epoch", 1), nb_hosts=3, memtaps=[]) as fleet:
        old = record_control(context, fleet)
    with sealed_world(context, key, (*same, "--epoch", 2, *SLOWER_WIRE), nb_hosts=3, memtaps=[]) as fleet:
        new = record_control(context, fleet)
        fleet.start_memtap(2)
        guests = start_clones(fleet, 4, ["random", "sequential"])
        for path, kind, counter in ((new, "replayed", "replayed"), (new, "flipped", "bad_seal"),
                                    (new, "forged_control", "bad_seal"), (new, "clear_control", "unsealed"),
                                    (old, "replayed", "stale_epoch")):
            attack_server(context, fleet, path, kind, counter)
        check(any(guest.status() is None for guest in guests),
              "the clones were complete before the attack was over: slow the wire down")
        check_complete(context, fleet, guests)
        check_complete(context, fleet, start_clones(fleet, 2, "random"))
        return f"{5 * NB_SENT} frames of an attacker"


@case(60)
def restarted_memserver_repeats_no_counter(context):
    """It is killed, and comes back with the same image, epoch and key: no two frames have the same session and counter,
    of which the cipher's key and nonce are made. Who fetches completes."""
    same = ("--image-id", IMAGE_ID, "--epoch", 1)
    with sealed_world(context, key_file(context), (*same, *SLOWER_WIRE), nb_hosts=2) as fleet:
        recorder, path = bridge_recorder(context, fleet, "counters")
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
