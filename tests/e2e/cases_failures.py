# SPDX-License-Identifier: BSD-3-Clause
"""Cases in which something fails for a while, or for good: a link, a process, a resource, an image. Each says what
docs/failure-semantics.md says of it, and most how long it takes until pages come again."""
import contextlib
import os
import pathlib
import resource
import signal
import time

import lablib
from fleetlib import PAGE, SERVER
from lib import SLOW_WIRE, case, check, check_complete, half_way, seconds_since, start_clones, wait_until

SLOWER_WIRE = ("--rate-gbps", "0.02", "--max-rate-gbps", "0.02")  # some 9 s of the image
OUTAGE_S = 1.0
PAUSES_S = (0.8, 3.0)  # of a memserver: its clients ask each other after 1 s
GIVE_UP_S = 1.5
MEMTAP_GONE, PAGE_FAILED = 3, 4  # sf-guest's exit statuses
FAILED_GUEST = (PAGE_FAILED, -signal.SIGKILL)  # killed where the kernel cannot poison
NEVER_COMES = 77  # a page
ETHERNET_BYTES, WIRE_HEADER_BYTES, PAGE_BODY_BYTES = 14, 28, 16  # the page number follows the first two; a second is behind it


def recovery_s(fleet, hosts, mend):
    """From the end of an outage until each of these hosts that has not all its pages has got one."""
    def received(host):
        stats = fleet.memtap_stats(host)
        return stats.get("rx_pages", 0) - stats.get("rx_repairs", 0)  # of the server
    hosts = [host for host in hosts if any(g.host == host and g.status() is None for g in fleet.guests)]
    check(hosts, "the guests were complete too soon: slow the wire down")
    before, began = {host: received(host) for host in hosts}, time.monotonic()
    mend()
    wait_until(lambda: all(received(host) > before[host] for host in hosts), "pages come again", 10.0)
    return time.monotonic() - began


def link(ns, name, up):
    lablib.run(["ip", "-n", ns, "link", "set", name, "up" if up else "down"])


def cable(fleet, host, up):
    """The bridge's end of a host's cable: the host's own port loses its carrier, or gets it back."""
    link(fleet.lab.bridge_ns, f"h{host}", up)


def bridge(fleet, exists):
    """Takes the bridge away, or makes it anew: it knows no address then."""
    if not exists:
        lablib.run(["ip", "-n", fleet.lab.bridge_ns, "link", "delete", lablib.BRIDGE])
        return
    lablib.run(["ip", "-n", fleet.lab.bridge_ns, "link", "add", lablib.BRIDGE, "mtu", str(fleet.lab.mtu), "type", "bridge",
                "forward_delay", "0", "mcast_snooping", "0"])
    link(fleet.lab.bridge_ns, lablib.BRIDGE, True)
    for host in range(fleet.lab.nb_hosts + 1):
        lablib.run(["ip", "-n", fleet.lab.bridge_ns, "link", "set", f"h{host}", "master", lablib.BRIDGE])


@case(90)
def links_fail_and_come_back(context):
    """For a second each: cable and port of a memtap, cable and port of the memserver, the bridge. Everybody completes."""
    with context.world(nb_hosts=3, server_args=SLOWER_WIRE) as fleet:
        everybody = list(fleet.memtaps)
        outages = {
            "memtap's cable": ([2], lambda up: cable(fleet, 2, up)),
            "memtap's port": ([2], lambda up: link(fleet.lab.ns(2), lablib.PORT, up)),
            "server's cable": (everybody, lambda up: cable(fleet, 0, up)),
            "server's port": (everybody, lambda up: link(fleet.lab.ns(0), lablib.PORT, up)),
            "bridge": (everybody, lambda up: bridge(fleet, up)),
        }
        guests = start_clones(fleet, 6, ["sequential", "random"])
        took = []
        for name, (hosts, turn) in outages.items():
            turn(False)
            time.sleep(OUTAGE_S)
            took.append(f"{name} {recovery_s(fleet, hosts, lambda: turn(True)):.2f} s")
        check_complete(context, fleet, guests)
        return ", ".join(took)


@case(60)
def partition_longer_than_give_up(context):
    """The host behind it fails its guests by an error, the others complete, and its memtap takes guests afterwards."""
    with context.world(nb_hosts=2, server_args=SLOW_WIRE, memtap_args=("--give-up", GIVE_UP_S)) as fleet:
        guests = start_clones(fleet, 4, ["sequential", "random"])
        half_way(context, fleet)
        cable(fleet, 2, False)
        check_complete(context, fleet, [g for g in guests if g.host == 1])
        cut_off = [g for g in guests if g.host == 2]
        check(fleet.wait_guests(GIVE_UP_S + 10.0, cut_off), "guests of the host that is cut off hang")
        check(all(g.status() in FAILED_GUEST for g in cut_off), f"they ended with {[g.status() for g in cut_off]}")
        check(fleet.memtap_stats(2)["server_dead"] == 1, "memtap did not give its server up")
        heard, began = fleet.memtap_stats(2)["rx_frames"], time.monotonic()
        cable(fleet, 2, True)
        wait_until(lambda: fleet.memtap_stats(2)["rx_frames"] > heard, "memtap hears the server again")
        heard_s = time.monotonic() - began
        check_complete(context, fleet, start_clones(fleet, 1, "random", hosts=[2]))
        return f"heard after {heard_s:.2f} s, a new guest complete after {time.monotonic() - began:.2f} s"


@case(60)
def host_that_falls_silent_comes_back(context):
    """Its memtap stands still for longer than --client-timeout. The server forgets it, serves the other, and takes it again."""
    with context.world(nb_hosts=2, server_args=("--client-timeout", 1, *SLOWER_WIRE)) as fleet:
        guests = start_clones(fleet, 4, ["sequential", "random"])
        half_way(context, fleet)
        forgotten = fleet.server_stats()["clients_timed_out"]
        os.kill(fleet.memtaps[2].pid, signal.SIGSTOP)
        try:
            wait_until(lambda: fleet.server_stats()["clients_timed_out"] > forgotten, "the server forgets the silent host")
            wait_until(lambda: fleet.server_stats()["clients"] == 1, "the other host is the only one")
            check(any(guest.host == 2 and guest.status() is None for guest in guests), "the silent host lacked nothing")
        finally:
            os.kill(fleet.memtaps[2].pid, signal.SIGCONT)
        began = time.monotonic()
        wait_until(lambda: fleet.server_stats()["clients"] == 2, "the host has joined again")
        took = seconds_since(began)
        check_complete(context, fleet, guests)
        return f"joined again after {took}"


@contextlib.contextmanager
def standing_still(process):
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


@case(60)
def memserver_stands_still_and_goes_on(context):
    """For less than the second after which its clients ask each other, and for longer. Nobody gives it up."""
    with context.world(nb_hosts=3, server_args=SLOWER_WIRE) as fleet:
        guests = start_clones(fleet, 6, ["sequential", "random"])
        took = []
        for pause_s in PAUSES_S:
            with contextlib.ExitStack() as still:
                still.enter_context(standing_still(fleet.server))
                time.sleep(pause_s)
                took.append(f"{recovery_s(fleet, list(fleet.memtaps), still.close):.2f} s after {pause_s} s")
        check_complete(context, fleet, guests)
        stats = [fleet.memtap_stats(host) for host in fleet.memtaps]
        check(not any(s["server_dead"] or s["server_restarts"] or s["failed_pages"] for s in stats), f"given up: {stats}")
        check(any(s["sibling_requests"] for s in stats), "nobody asked another host")
        return f"pages again {', '.join(took)}; {sum(s['rx_repairs'] for s in stats)} from other hosts"


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    lablib.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "snowfabric-test", str(folder)])
    try:
        yield folder
    finally:
        lablib.run(["umount", "--lazy", str(folder)])


@case(60)
def full_disk_costs_a_checkpoint_alone(context):
    """memserver says so, leaves no half of it behind, and serves on."""
    with context.world(nb_hosts=2, memtaps=[]) as fleet, small_disk(fleet.dir / "disk", "1m") as disk:
        fleet.server.stop()
        fleet.start_server(extra=("--checkpoint", disk / "checkpoint"))
        wait_until(lambda: "is not written" in fleet.server.log.read_text(), "memserver says that there is no checkpoint")
        check("No space left on device" in fleet.server.log.read_text(), "memserver does not say why")
        check(not list(disk.iterdir()), f"left on the disk: {list(disk.iterdir())}")
        fleet.start_memtaps([1, 2])
        check_complete(context, fleet, start_clones(fleet, 2, "random"))


@case(60)
def memtap_stopped_amid_its_guests(context):
    """BYE to the server; a complete guest lives on, one that lacks pages is killed; the next memtap serves."""
    with context.world(nb_hosts=2, server_args=SLOW_WIRE) as fleet:
        others = start_clones(fleet, 2, "random", hosts=[1])
        lacking = fleet.start_guest(10, 2, "sequential", extra=("--limit-pages", 64, "--hold"))
        complete = fleet.start_guest(11, 2, "random", extra=("--hold",))
        wait_until(lambda: fleet.report(lacking) and fleet.report(complete), "both guests have what they touch")
        began = time.monotonic()
        check(fleet.memtaps[2].stop() is None and fleet.memtaps[2].status() == 0, "memtap did not end as asked")
        check(lacking.wait(5.0) == -signal.SIGKILL, f"a guest with pages missing ended with {lacking.status()}")
        check(complete.status() is None, "a complete guest ended with its memtap")
        wait_until(lambda: fleet.server_stats()["leaves"] == 1, "BYE has reached the server")
        fleet.start_memtap(2)
        check_complete(context, fleet, start_clones(fleet, 1, "random", hosts=[2]) + others)
        check(complete.stop() is None and fleet.report(complete)["verified"] is True, "the complete guest has wrong bytes")
        return f"a new guest complete {time.monotonic() - began:.2f} s after the signal"


@case(60)
def memserver_stopped_while_it_serves(context):
    """BYE to the group; whoever waits gets its page from the next one. Host 3 waits for nothing, so that it is BYE alone
    that makes it say HELLO, again and again."""
    with context.world(nb_hosts=3, server_args=SLOW_WIRE) as fleet:
        guests = start_clones(fleet, 4, ["sequential", "random"], hosts=[1, 2])
        half_way(context, fleet)
        hellos = fleet.memtap_stats(3)["tx_hellos"]
        check(fleet.server.stop() is None and fleet.server.status() == 0, "memserver did not end as asked")
        wait_until(lambda: fleet.memtap_stats(3)["tx_hellos"] >= hellos + 3, "BYE has reached the group", 5.0)
        took_s = recovery_s(fleet, [1, 2], fleet.start_server)
        check_complete(context, fleet, guests)
        return f"{took_s:.2f} s, its start included"


@case(60)
def full_client_table_is_a_clear_error(context):
    """The memtap that is one too many says so and ends; there is room when another has left."""
    with context.world(nb_hosts=2, memtaps=[1], server_args=("--max-clients", 1)) as fleet:
        fleet.opt.memtap_args = ("--give-up", 0.5)
        fleet.launch_memtap(2)
        check(fleet.memtaps[2].wait(10.0) == 1, f"the second memtap ended with {fleet.memtaps[2].status()}")
        check("no room for another client" in fleet.memtaps.pop(2).tail(), "it says another thing")
        check(fleet.server_stats()["clients_refused"] > 0, "nothing counted")
        check_complete(context, fleet, start_clones(fleet, 1, "random"))
        fleet.memtaps[1].stop()
        began = time.monotonic()
        fleet.start_memtap(2)
        took_s = time.monotonic() - began
        check_complete(context, fleet, start_clones(fleet, 1, "random", hosts=[2]))
        return f"joined {took_s:.2f} s after it was started again"


@case(60)
def image_truncated_while_served(context):
    """memserver says why and ends with 74; the next one, with the whole file, serves those who wait."""
    whole, context.image = context.image, context.workdir / "truncated.img"
    context.image.write_bytes(whole.read_bytes())
    try:
        with context.world(nb_hosts=1, server_args=SLOW_WIRE) as fleet:
            truncated, fleet.opt.image = fleet.opt.image, whole
            guests = start_clones(fleet, 2, "random")
            half_way(context, fleet)
            os.truncate(truncated, PAGE)
            check(fleet.server.wait(10.0) == os.EX_IOERR, f"memserver ended with {fleet.server.status()}")
            check("truncated" in fleet.server.tail(), f"it says another thing: {fleet.server.tail()}")
            took_s = recovery_s(fleet, [1], fleet.start_server)
            check_complete(context, fleet, guests)
            return f"{took_s:.2f} s, its start included"
    finally:
        context.image = whole


def set_mtu(fleet, host, mtu):
    lablib.run(["ip", "-n", fleet.lab.ns(host), "link", "set", lablib.PORT, "mtu", str(mtu)])
    fleet.lab.mtu = mtu


@case(60)
def too_small_mtu_is_a_clear_error(context):
    """A memtap whose port cannot take the server's frames says so and ends; with the MTU raised it serves."""
    with context.world(nb_hosts=1, memtaps=[]) as fleet:
        set_mtu(fleet, 1, 1500)
        began = time.monotonic()
        fleet.launch_memtap(1)
        check(fleet.memtaps[1].wait(10.0) == 1, f"memtap ended with {fleet.memtaps[1].status()}")
        took = seconds_since(began)
        check("raise the MTU here" in fleet.memtaps.pop(1).tail(), "memtap says another thing")
        set_mtu(fleet, 1, 9000)
        fleet.start_memtap(1)
        check_complete(context, fleet, start_clones(fleet, 1, "random"))
        return f"error after {took}"


@case(60)
def pages_the_server_lacks_fail(context):
    """A memserver that comes back with a part of the image: ABSENT fails who waits for the rest."""
    part = context.workdir / "part.img"
    part.write_bytes(context.image.read_bytes()[:16 * PAGE])
    with context.world(nb_hosts=1, server_args=("--image-id", "ab5e17", *SLOW_WIRE)) as fleet:
        guests = start_clones(fleet, 2, "random")
        half_way(context, fleet)
        fleet.server.kill()
        whole, fleet.opt.image = fleet.opt.image, part
        began = time.monotonic()
        fleet.start_server()
        check(fleet.wait_guests(10.0, guests), "guests hang on pages that nobody has")
        took_s = time.monotonic() - began
        check(all(g.status() in FAILED_GUEST for g in guests), f"guests ended with {[g.status() for g in guests]}")
        check(fleet.memtap_stats(1)["absent_pages"] > 0, "no ABSENT came")
        fleet.server.kill()
        fleet.opt.image = whole
        fleet.start_server()
        check_complete(context, fleet, start_clones(fleet, 1, "random"))
        return f"error after {took_s:.2f} s"


@case(60)
def page_that_never_comes_fails(context):
    """The bridge drops one page's frames to one host: its guest gets an error after three times --give-up."""
    first, second = ((ETHERNET_BYTES + WIRE_HEADER_BYTES + at) * 8 for at in (0, PAGE_BODY_BYTES))  # of the one or two pages
    drop = "; ".join(f"oifname h2 @ll,{bit},64 {NEVER_COMES} drop" for bit in (first, second))
    with context.world(nb_hosts=2, server_args=SLOWER_WIRE, memtap_args=("--give-up", 0.5)) as fleet:
        lablib.run(["ip", "netns", "exec", fleet.lab.bridge_ns, "nft",
                    f"table bridge sf {{ chain out {{ type filter hook forward priority 0; {drop}; }}; }}"])
        other = start_clones(fleet, 1, "random", hosts=[1])
        began = time.monotonic()
        waiting = start_clones(fleet, 1, "sequential", hosts=[2])
        check(fleet.wait_guests(15.0, waiting), "the guest hangs on a page that never comes")
        took_s = time.monotonic() - began
        check(waiting[0].status() in FAILED_GUEST, f"it ended with {waiting[0].status()}")
        check(fleet.memtap_stats(2)["overdue_pages"] >= 1, "nothing counted")
        check_complete(context, fleet, other)
        return f"error after {took_s:.2f} s"


@case(60)
def two_servers_of_one_image(context):
    """One memtap was told the one, one the other, one none: both admit that one, and it goes to and fro. All complete."""
    with context.world(nb_hosts=4, memtaps=[], server_args=SLOWER_WIRE) as fleet:
        info = fleet.dir / "second.json"
        second = fleet.start_other("second", [
            context.build / SERVER, "--profile", fleet.opt.profile, "--device", lablib.PORT, "--mtu", fleet.lab.mtu,
            "--info", info, *SLOWER_WIRE, context.image, "--", f"--file-prefix={fleet.prefix(4)}"], 4)
        fleet.wait_for(second, info.exists, "ready", 30.0)
        for host, server in ((1, fleet.info["server_mac"]), (2, lablib.host_mac(4)), (3, "")):
            fleet.info["server_mac"] = server
            fleet.start_memtap(host)
        began = time.monotonic()
        check_complete(context, fleet, start_clones(fleet, 6, ["sequential", "random"]))
        changes = fleet.memtap_stats(3)["server_restarts"]
        check(changes >= 1, "one server alone admitted the memtap that was told none")
        return f"{time.monotonic() - began:.1f} s, {changes} changes of sides"


def limited(process, what, limit):
    """@return what takes the limit off again"""
    soft, hard = resource.prlimit(process.pid, what)
    resource.prlimit(process.pid, what, (limit, hard))
    return lambda: resource.prlimit(process.pid, what, (soft, hard))


def next_descriptor(process):
    """The number that it would get, and with this limit does not. Some are in use for a moment only, such as that of
    somebody who asked its telemetry and has just hung up."""
    def free_now():
        used = {int(fd) for fd in os.listdir(f"/proc/{process.pid}/fd")}
        return next(fd for fd in range(len(used) + 1) if fd not in used)
    lowest = free_now()
    for _ in range(10):
        time.sleep(0.05)
        lowest = min(lowest, free_now())
    return lowest


def address_space_bytes(process):
    return int(pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * PAGE


@case(60)
def host_without_file_descriptors(context):
    """Guests that are there complete; a new one waits at the socket until memtap has descriptors again."""
    with context.world(nb_hosts=1, server_args=SLOWER_WIRE) as fleet:
        guests = start_clones(fleet, 2, ["sequential", "random"])
        wait_until(lambda: fleet.memtap_stats(1).get("guests") == len(guests), "the guests are attached")
        release = [limited(p, resource.RLIMIT_NOFILE, next_descriptor(p)) for p in (fleet.server, fleet.memtaps[1])]
        late = fleet.start_guest(len(guests), 1, "random")
        wait_until(lambda: "Too many open files" in fleet.memtaps[1].tail(), "memtap says why it takes no guest")
        check(all(guest.status() is None for guest in guests), "they leave and free descriptors too soon: slow the wire down")
        began = time.monotonic()
        for take_off in release:
            take_off()
        wait_until(lambda: fleet.memtap_stats(1).get("guests_attached") == 3, "the new guest is attached")
        took_s = time.monotonic() - began
        check_complete(context, fleet, [*guests, late])
        check(fleet.memtap_stats(1)["guests_rejected"] > 0, "nothing counted")
        return f"the new guest attached after {took_s:.2f} s"


@case(60)
def host_without_memory(context):
    """Serving takes no more memory; a new guest is refused, and one that comes when there is memory again is not."""
    with context.world(nb_hosts=1, server_args=SLOW_WIRE) as fleet:
        guests = start_clones(fleet, 2, ["sequential", "random"])
        release = [limited(p, resource.RLIMIT_AS, address_space_bytes(p)) for p in (fleet.server, fleet.memtaps[1])]
        refused = fleet.start_guest(len(guests), 1, "random")
        check(refused.wait(10.0) == MEMTAP_GONE, f"the new guest ended with {refused.status()}")
        check("Cannot allocate memory" in fleet.memtaps[1].tail(), "memtap does not say why")
        check_complete(context, fleet, guests)
        attached, began = fleet.memtap_stats(1)["guests_attached"], time.monotonic()
        for take_off in release:
            take_off()
        late = fleet.start_guest(len(guests) + 1, 1, "random")
        wait_until(lambda: fleet.memtap_stats(1)["guests_attached"] > attached, "a new guest is attached")
        took = seconds_since(began)
        check_complete(context, fleet, [late])
        return f"the next guest attached after {took}, its start included"
