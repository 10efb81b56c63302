# SPDX-License-Identifier: BSD-3-Clause
"""Cases in which nobody dies: every byte arrives, once."""
import subprocess
import sys
import time

import fleetlib
from lib import (ROOT, SLOW_WIRE, Skipped, case, check, check_complete, check_wire_ratio, half_way, make_image,
                 start_clones, wait_until)

MIXED = ["sequential", "random", "hotset"]


def clones_of_every_order(context, mtu, loss, limit):
    with context.world(mtu=mtu, loss=loss) as fleet:
        guests = start_clones(fleet, 8, MIXED)
        check_complete(context, fleet, guests)
        slowest_ms = max(fleet.report(guest)["fault_us_p99"] for guest in guests) / 1000
        return f"{check_wire_ratio(context, fleet, mtu, limit)}, faults answered within {slowest_ms:.1f} ms (p99)"


@case(90)
def smoke_9000(context):
    return clones_of_every_order(context, 9000, 0.0, 1.10)


@case(90)
def smoke_1500(context):
    return clones_of_every_order(context, 1500, 0.0, 1.10)


@case(180)
def loss_5_percent_9000(context):
    return clones_of_every_order(context, 9000, 5.0, 1.5)


@case(180)
def loss_5_percent_1500(context):
    return clones_of_every_order(context, 1500, 5.0, 1.5)


@case(90)
def lockstep_sends_a_page_once(context):
    """8 clones that fault in the same order: at most 1.1 multicasts a page."""
    with context.world() as fleet:
        guests = start_clones(fleet, 8, "sequential")
        check_complete(context, fleet, guests)
        sent = fleet.server_stats()["tx_pages_multicast"]
        check(sent <= 1.1 * context.nb_nonzero, f"{sent} multicasts for {context.nb_nonzero} pages")
        return f"{sent / context.nb_nonzero:.3f} multicasts a page"


@case(90)
def pushed_pages_keep_to_their_rate(context):
    """They take no more than --push-gbps, and what is asked for is not held back by it."""
    gbps = 0.01
    with context.world(nb_hosts=1, server_args=("--push", "--push-gbps", gbps)) as fleet:
        def pushed():
            return fleet.server_stats()["tx_pages_pushed"]
        wait_until(pushed, "a pushed page")
        began, before = time.monotonic(), pushed()
        time.sleep(2)
        nb_pages, seconds = pushed() - before, time.monotonic() - began
        most = 1.05 * (gbps * 1e9 / 8 * seconds + 64 * 1024) / fleetlib.PAGE  # a run of zeros counts as one of them
        check(0 < nb_pages <= most, f"{nb_pages} pages pushed in {seconds:.2f} s, of at most {most:.0f}")
        began = time.monotonic()
        check_complete(context, fleet, start_clones(fleet, 1, "random"))
        took, alone = time.monotonic() - began, context.nb_nonzero * fleetlib.PAGE * 8 / (gbps * 1e9)
        check(took < alone / 2, f"a guest took {took:.1f} s; all is pushed in {alone:.1f} s")
        return f"{nb_pages * fleetlib.PAGE * 8 / seconds / 1e9:.4f} Gbit/s of {gbps}; a guest took {took:.1f} of {alone:.1f} s"


@case(90)
def late_joiner_completes(context):
    """A host that joins after half of the pages went by gets them all the same."""
    with context.world(server_args=SLOW_WIRE, memtaps=[1, 2, 3]) as fleet:
        early = start_clones(fleet, 3, MIXED)
        half_way(context, fleet)
        fleet.start_memtap(4)
        late = start_clones(fleet, 1, "random", hosts=[4])
        check_complete(context, fleet, early + late)


@case(90)
def pages_given_back_read_as_zeros(context):
    """Guests in Firecracker's two-descriptor form, several threads each, that return a third of their memory."""
    with context.world(nb_hosts=2) as fleet:
        guests = start_clones(fleet, 4, MIXED, extra=("--two-fds", "--threads", 2, "--remove", 33))
        check_complete(context, fleet, guests)
        removed = [fleet.report(guest)["removed"] for guest in guests]
        check(all(nb == context.nb_pages * 33 // 100 for nb in removed), f"pages given back: {removed}")
        counted = sum(fleet.memtap_stats(host)["removed_pages"] for host in (1, 2))
        check(counted == sum(removed), f"memtaps saw {counted} of {sum(removed)} pages given back")


@case(120)
def two_images_do_not_mix(context):
    """One memserver, two parents: each clone gets its own parent's bytes."""
    second = make_image(context.workdir / "second.img", 16, context.seed + 1)
    with context.world(nb_hosts=2, memtaps=[], server_args=(second,)) as fleet:
        index = {entry["path"]: i for i, entry in enumerate(fleet.info["images"])}
        groups = {entry["group_mac"] for entry in fleet.info["images"]}
        check(len(groups) == 2, f"two images, group addresses {groups}")
        for host, image in ((1, context.image), (2, second)):
            fleet.start_memtap(host, image_index=index[str(image)])
            fleet.start_guest(host, host, "random", image=image)
        check(fleet.wait_guests(60.0), "guests not complete after 60 s")
        for guest in fleet.guests:
            report = fleet.report(guest)
            check(guest.status() == 0 and report and report["verified"] is True,
                  f"guest {guest.id}: status {guest.status()}, {report}")


@case(240)
def slow_receiver_neither_stalls_nor_starves(context):
    """One of 4 hosts gets a tenth of the rate: the others need at most 1.5 x, and it completes too."""
    with context.world() as fleet:
        guests = start_clones(fleet, 4, "random")
        check_complete(context, fleet, guests)
        alone_s = max(fleet.report(g)["complete_s"] for g in guests)
        rate_bytes = fleet.server_stats()["tx_bytes"] / alone_s
    with context.world() as fleet:
        # The bridge's end of host 4's cable: what it cannot carry is dropped there.
        fleet.lab.tc("qdisc", "add", "dev", "h4", "root", "tbf", "rate", f"{int(rate_bytes * 8 / 10)}bit",
                     "burst", "64kb", "limit", "256kb")
        guests = start_clones(fleet, 4, "random")
        check_complete(context, fleet, guests[:3], timeout_s=60.0)
        others_s = max(fleet.report(g)["complete_s"] for g in guests[:3])
        check_complete(context, fleet, guests[3:], timeout_s=150.0)
        slow_s = fleet.report(guests[3])["complete_s"]
        check(others_s <= 1.5 * alone_s, f"others took {others_s:.2f} s beside a slow one, {alone_s:.2f} s without")
        return f"others {others_s / alone_s:.2f} x, slow one {slow_s / alone_s:.1f} x"


@case(120)
def dissector_reads_a_capture(context):
    """tshark with our dissector decodes every frame of a run, at an MTU with fragments."""
    test = ROOT / "tests" / "e2e" / "dissector_test.py"
    if not test.exists():
        raise Skipped("no tests/e2e/dissector_test.py")
    image = make_image(context.workdir / "capture.img", 4, context.seed)
    with context.world(mtu=1500, nb_hosts=2, server_args=(image,), memtaps=[]) as fleet:
        index = next(i for i, entry in enumerate(fleet.info["images"]) if entry["path"] == str(image))
        capture_file = fleet.dir / "capture.pcapng"
        capture = fleet.start_other("dumpcap", ["ip", "netns", "exec", fleet.lab.bridge_ns, "dumpcap", "-q", "-i", "h0",
                                                "-f", "ether proto 0x88b5", "-w", capture_file])
        wait_until(lambda: capture_file.exists() and capture_file.stat().st_size > 0, "capture began")
        for host in (1, 2):
            fleet.start_memtap(host, image_index=index)
            fleet.start_guest(host, host, "random", image=image)
        check(fleet.wait_guests(60.0) and all(g.status() == 0 for g in fleet.guests), "guests not complete")
        time.sleep(0.5)  # dumpcap writes in blocks
        capture.stop()
        done = subprocess.run([sys.executable, "-B", test, "--pcap", capture_file], capture_output=True, text=True)
        check(done.returncode == 0, f"dissector: {(done.stdout + done.stderr)[-1500:]}")
