# SPDX-License-Identifier: BSD-3-Clause
"""Cases in which somebody dies, or talks nonsense: the others do not notice."""
import subprocess
import sys
import time

import lablib
from fleetlib import telemetry
from lib import SLOW_WIRE, case, check, check_complete, check_told, half_way, seconds_since, start_clones, wait_until, ROOT

MIXED = ["sequential", "random", "hotset"]
GIVE_UP_S = 3


@case(120)
def memtap_killed_others_complete(context):
    with context.world(server_args=SLOW_WIRE) as fleet:
        guests = start_clones(fleet, 8, MIXED)
        half_way(context, fleet)
        fleet.memtaps[2].kill()
        check_complete(context, fleet, [g for g in guests if g.host != 2])
        orphans = [g for g in guests if g.host == 2]
        check(fleet.wait_guests(20.0, orphans), "guests of the dead memtap hang")
        check(all(g.status() != 0 for g in orphans), "a guest of the dead memtap claims to be complete")
        began = time.monotonic()
        fleet.start_memtap(2)
        check_complete(context, fleet, start_clones(fleet, 1, "random", hosts=[2]))
        return f"the next memtap has completed a new guest after {seconds_since(began)}"


def presence_file(fleet, guest):
    """Where its memtap notes which pages it has."""
    guests = telemetry(fleet.prefix(guest.host), "/memtap/guests")
    number = next(number for number, pid in guests.items() if pid == guest.pid)
    return fleet.dir / f"presence-{guest.host}" / f"clone-{number}.presence"


@case(120)
def guest_killed_others_complete(context):
    """Also those on the same memtap. Nothing is left of the one that is dead."""
    with context.world(server_args=SLOW_WIRE) as fleet:
        guests = start_clones(fleet, 8, MIXED)
        half_way(context, fleet)
        gone = fleet.memtap_stats(guests[0].host)["guests_gone"]
        check(all(guest.status() is None for guest in guests), "a guest was complete too soon: slow the wire down")
        presence = presence_file(fleet, guests[0])
        check(presence.exists(), f"{presence} is not there while its guest lives")
        began = time.monotonic()
        guests[0].kill()
        wait_until(lambda: fleet.memtap_stats(guests[0].host)["guests_gone"] > gone, "its memtap has noticed")
        took = seconds_since(began)
        wait_until(lambda: not presence.exists(), f"{presence} is removed", 5.0)
        check_complete(context, fleet, guests[1:])
        return f"forgotten after {took}"


@case(120)
def memserver_restarted_all_complete(context):
    with context.world(server_args=SLOW_WIRE) as fleet:
        guests = start_clones(fleet, 8, MIXED)
        half_way(context, fleet)
        fleet.server.kill()
        before = fleet.memtap_stats(1)["rx_pages"]
        began = time.monotonic()
        fleet.start_server()
        wait_until(lambda: fleet.memtap_stats(1)["rx_pages"] > before, "pages come again")
        took = seconds_since(began)
        check_complete(context, fleet, guests)
        seen = [fleet.memtap_stats(host)["server_restarts"] for host in fleet.memtaps]
        check(all(count >= 1 for count in seen), f"server_restarts by memtap: {seen}")
        return f"pages again after {took}"


@case(120)
def dead_memserver_is_a_clear_error(context):
    """Within --give-up, and no silent hang."""
    with context.world(server_args=SLOW_WIRE, memtap_args=("--give-up", GIVE_UP_S)) as fleet:
        guests = start_clones(fleet, 4, MIXED)
        half_way(context, fleet)
        killed_at = time.monotonic()
        fleet.server.kill()
        check(fleet.wait_guests(GIVE_UP_S + 15.0, guests), "guests hang on a dead memserver")
        took_s = time.monotonic() - killed_at
        for guest in guests:
            check(guest.status() not in (0, None), f"guest {guest.id} claims to be complete")
            check(guest.log.read_text().strip(), f"guest {guest.id} ended without a word")
        check(took_s >= GIVE_UP_S * 0.8, f"given up after {took_s:.1f} s already")
        dead = [fleet.memtap_stats(host).get("server_dead") for host in fleet.memtaps]
        check(all(dead), f"server_dead by memtap: {dead}")
        told = [check_told(fleet, host, ("poisoned_pages", "kills")) for host in fleet.memtaps]
        return f"error after {took_s:.1f} s, {sum(told)} pages failed"


@case(120)
def memserver_restored_from_its_checkpoint(context):
    """Killed half way, and started again from the file that it wrote meanwhile: the same image, also by its hash tree."""
    with context.world(server_args=("--hash-tree", *SLOW_WIRE)) as fleet:
        checkpoint = fleet.dir / "checkpoint"
        fleet.server.stop()
        fleet.start_server(extra=("--checkpoint", checkpoint))
        image_id = fleet.info["images"][0]["image_id"]
        guests = start_clones(fleet, 4, MIXED)
        half_way(context, fleet)
        wait_until(checkpoint.exists, "the checkpoint is complete")
        check(any(guest.status() is None for guest in guests), "the guests were complete too soon: slow the wire down")
        fleet.server.kill()
        image, fleet.opt.image = fleet.opt.image, None
        began = time.monotonic()
        fleet.start_server(extra=("--restore", checkpoint))
        fleet.opt.image = image
        check(fleet.info["images"][0]["image_id"] == image_id, "another image")
        before = [fleet.memtap_stats(host)["rx_pages"] for host in fleet.memtaps]
        wait_until(lambda: [fleet.memtap_stats(host)["rx_pages"] for host in fleet.memtaps] > before, "pages come again")
        took_s = time.monotonic() - began
        check_complete(context, fleet, guests)
        check(fleet.server_stats()["pages_sent_once"] > 0, "the pages were not the restored memserver's")
        return f"pages again after {took_s:.2f} s"


@case(120)
def siblings_repair_what_a_dead_memserver_owes(context):
    """Hosts that joined just before it died get every page from the one that keeps them, and hold it to the hash tree."""
    with context.world(nb_hosts=3, memtaps=[1], server_args=("--hash-tree",), memtap_args=("--give-up", GIVE_UP_S)) as fleet:
        check_complete(context, fleet, start_clones(fleet, 1, "random", hosts=[1]))
        fleet.start_memtaps([2, 3])
        fleet.server.kill()
        began = time.monotonic()
        guests = start_clones(fleet, 4, MIXED, hosts=[2, 3])
        wait_until(lambda: fleet.memtap_stats(2)["rx_repairs"] > 0, "a page comes from another host")
        first_s = time.monotonic() - began
        check_complete(context, fleet, guests)
        took_s = time.monotonic() - began
        sent = [fleet.memtap_stats(host)["tx_repairs"] for host in (1, 2, 3)]
        check(sent[0] >= context.nb_nonzero, f"pages sent by hosts: {sent}, of {context.nb_pages}")
        return f"first page after {first_s:.1f} s, complete after {took_s:.1f} s, {sum(sent)} pages sent for {context.nb_pages}"


def dropped(stats):
    return sum(count for name, count in stats.items() if name.startswith("rx_drop_"))


def send_junk(fleet, kind, dst, count, seed):
    image = fleet.info["images"][0]
    done = subprocess.run(
        fleet.lab.exec_args(1, [sys.executable, "-B", ROOT / "tests" / "e2e" / "junk.py", lablib.PORT, dst,
                                image["image_id"], image["epoch"], kind, count, seed]),
        capture_output=True, text=True, timeout=30)
    check(done.returncode == 0, f"junk sender: {done.stderr}")


def check_counted(fleet, kind, dst, read, context):
    """Sends 200 frames of a kind and waits until `read()` has grown by as many."""
    count, before = 200, read()
    send_junk(fleet, kind, dst, count, context.seed)
    wait_until(lambda: read() >= before + count, f"{count} '{kind}' frames counted (now {read() - before})", 5.0)


@case(180)
def junk_is_counted_and_dropped(context):
    """Random bytes, truncated frames, other versions, foreign and stale frames, pages out of range."""
    with context.world(nb_hosts=2, server_args=SLOW_WIRE) as fleet:
        guests = start_clones(fleet, 4, MIXED)
        # The sender sits on host 1, and a host's own frames do not come back to it: host 2 is watched.
        server, group = fleet.info["server_mac"], fleet.info["images"][0]["group_mac"]
        for kind in ("random", "truncated", "version", "type", "length", "image", "epoch", "page"):
            check_counted(fleet, kind, server, lambda: dropped(fleet.server_stats()), context)
        check_counted(fleet, "range", server, lambda: fleet.server_stats()["wants_absent"], context)
        for kind in ("random", "truncated", "version", "type", "length", "image", "epoch", "far"):
            check_counted(fleet, kind, group, lambda: dropped(fleet.memtap_stats(2)), context)
        check_complete(context, fleet, guests)
        # And the service still takes newcomers.
        check_complete(context, fleet, start_clones(fleet, 2, "random"))


@case(90)
def page_with_wrong_bytes_is_not_installed(context):
    """A forged PAGE of a page the clone still lacks fails its checksum: counted, and the clone gets the right one."""
    with context.world(nb_hosts=2, memtaps=[2]) as fleet:
        # Touches the front of the image and stays, so that the forged pages are wanted when they come.
        lacking = fleet.start_guest(0, 2, "sequential", extra=("--limit-pages", 64, "--hold"))
        wait_until(lambda: fleet.report(lacking), "the guest has its first pages")
        group = fleet.info["images"][0]["group_mac"]
        check_counted(fleet, "page", group, lambda: fleet.memtap_stats(2)["rx_drop_bad_crc"], context)
        check_complete(context, fleet, start_clones(fleet, 1, "sequential"))
