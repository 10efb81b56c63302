# SPDX-License-Identifier: BSD-3-Clause
"""The example pair over the C API, on hosts with addresses: sf-serve on host 0, sf-fetch on others."""
import contextlib
import filecmp
import json
import pathlib
import re
import signal
import sys

import fleetlib
import lablib
from lib import case, check, lab_name, wait_until

HERE = pathlib.Path(__file__).resolve().parent
SERVE, FETCH = "library/sf-serve", "library/sf-fetch"
UDP = ("-i", lablib.PORT)
ETHERNET = ("-k", "ethernet", "-i", lablib.PORT)
SLOWLY = ("-r", "100")  # Mbit/s: leaves time to interfere mid-way, and for the others to join before much is sent
# Of the bytes that must go: four clients that ask each for itself cost four times as many. A server that waits long for a CPU takes
# requests made before an answer for such made after it, and answers again.
MOST = 2.0


class Pair:
    """A server and its clients, each with a log."""

    def __init__(self, context, lab):
        self.context, self.lab = context, lab
        self.processes = []
        for old in context.workdir.glob("copy-*"):
            old.unlink()
        for host in range(lab.nb_hosts + 1):
            lablib.run(["ip", "-n", lab.ns(host), "address", "add", f"10.53.0.{host + 1}/24", "dev", lablib.PORT])

    def start(self, host, program, *args, how=()):
        """@param how  it is carried, if not by kernel sockets: options"""
        name = f"{pathlib.Path(program).name}-{len(self.processes)}"
        process = fleetlib.Process(name, self.lab.exec_args(host, [self.context.build / program, *how, *args]),
                                   self.context.workdir / f"{name}.log")
        self.processes.append(process)
        return process

    def serve(self, *args, how=UDP):
        """@return the server, and its image's id"""
        server = self.start(0, SERVE, *args, self.context.image, how=how)
        wait_until(lambda: lines_of(server) or server.status() is not None, "sf-serve says its image")
        check(server.status() is None, server.tail())
        return server, lines_of(server)[0]["image_id"]

    def fetch(self, host, image_id, *args, how=UDP):
        return self.start(host, FETCH, *args, image_id, self.copy(host), how=how)

    def copy(self, host):
        return self.context.workdir / f"copy-{host}"

    def check_complete(self, host, client, timeout_s=60.0):
        check(client.wait(timeout_s) == 0, f"status {client.status()}\n{client.tail()}")
        check(filecmp.cmp(self.copy(host), self.context.image, shallow=False), f"the copy of host {host} differs")
        return lines_of(client)[-1]


def dpdk_udp(host):
    """Its address is not the kernel's."""
    return "-k", "dpdk-udp", "-i", lablib.PORT, "-a", f"10.53.0.{host + 101}"


def lines_of(process):
    return [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]


@contextlib.contextmanager
def pair(context, nb_hosts=1, mtu=9000):
    lab = lablib.Lab(lab_name(), nb_hosts, mtu)
    with lab:
        made = Pair(context, lab)
        try:
            yield made
        finally:
            complaints = [text for process in made.processes if (text := process.stop())]
        check(not complaints, "; ".join(complaints))
    check(not lab.existing(), f"left: {lab.existing()}")


@case(90)
def library_brings_an_image_to_four_hosts_once_over_the_wire(context):
    notes = []
    for mtu in (9000, 1500):
        with pair(context, 4, mtu) as made:
            server, image_id = made.serve(*SLOWLY)
            clients = {host: made.fetch(host, image_id) for host in range(1, 5)}
            for host, client in clients.items():
                said = made.check_complete(host, client)
                check(said["rx_pages"] == context.nb_nonzero and said["rx_dropped"] == 0, f"{said}")
            server.stop()
            check(server.status() == 0, server.tail())
            stats = lines_of(server)[-1]
            check(stats["distinct_pages"] == context.nb_nonzero and stats["tx_failed"] == 0, f"{stats}")
            ratio = stats["tx_bytes"] / (context.nb_nonzero * fleetlib.PAGE)
            check(1 < ratio < MOST, f"{stats}: {ratio:.2f} x the pages")
            notes.append(f"{ratio:.2f} x the pages' bytes at MTU {mtu}")
    return ", ".join(notes)


@case(60)
def library_client_on_the_servers_own_host_gets_what_goes_to_the_group(context):
    """The server's frames are looped to its own host only once somebody there has said HELLO."""
    with pair(context) as made:
        server, image_id = made.serve(*SLOWLY)
        clients = {host: made.fetch(host, image_id) for host in (1, 0)}
        for host, client in clients.items():
            check(made.check_complete(host, client, 30.0)["rx_pages"] == context.nb_nonzero, client.tail())
        server.stop()
        stats = lines_of(server)[-1]
        ratio = stats["tx_bytes"] / (context.nb_nonzero * fleetlib.PAGE)
        check(ratio < MOST, f"{stats}: {ratio:.2f} x the pages")
    return f"{ratio:.2f} x the pages' bytes"


@case(120)
def library_brings_an_image_by_each_carrier_and_to_mixed_groups(context):
    """Kernel sockets and DPDK ports in one group of UDP, whoever serves; DPDK ports on bare Ethernet."""
    groups = {
        "ethernet": {host: ETHERNET for host in range(5)},
        "dpdk-udp to both": {0: dpdk_udp(0), 1: UDP, 2: dpdk_udp(2), 3: UDP, 4: dpdk_udp(4)},
        "udp to both": {0: UDP, 1: dpdk_udp(1), 2: UDP, 3: dpdk_udp(3), 4: UDP},
    }
    for name, how in groups.items():
        with pair(context, 4) as made:
            server, image_id = made.serve(*SLOWLY, how=how[0])
            clients = {host: made.fetch(host, image_id, how=how[host]) for host in range(1, 5)}
            for host, client in clients.items():
                made.check_complete(host, client)
            server.stop()
            check(server.status() == 0, server.tail())
            stats = lines_of(server)[-1]
            ratio = stats["tx_bytes"] / (context.nb_nonzero * fleetlib.PAGE)
            check(1 < ratio < MOST, f"{name}: {stats}: {ratio:.2f} x the pages")


@case(90)
def library_client_fetches_what_memserver_serves(context):
    with context.world(nb_hosts=2, memtaps=[1]) as fleet:
        image_id = fleet.info["images"][0]["image_id"]
        copy = context.workdir / "copy"
        client = fleetlib.Process("sf-fetch", fleet.lab.exec_args(2, [context.build / FETCH, *ETHERNET, image_id, copy]),
                                  context.workdir / "sf-fetch.log")
        check(client.wait(60.0) == 0, client.tail())
        check(filecmp.cmp(copy, context.image, shallow=False), "the copy differs")


@case(90)
def library_client_goes_on_with_a_server_that_was_killed_and_started_again(context):
    with pair(context) as made:
        server, image_id = made.serve(*SLOWLY)
        client = made.fetch(1, image_id)
        wait_until(made.copy(1).exists, "sf-fetch has joined")
        server.kill()
        check(client.wait(1.0) is None, client.tail())
        made.serve()
        made.check_complete(1, client)


@case(90)
def library_members_that_are_gone_hold_up_nobody(context):
    """The kernel keeps what is sent to them while it looks for them, seconds long, and counts it against who sent it."""
    group, port = "239.192.7.7", "21400"
    with pair(context, 2) as made:
        server, image_id = made.serve("-r", "20", "-g", group, "-p", port)  # some 9 s: the flood takes its time
        client = made.fetch(1, image_id, "-g", group, "-p", port)
        wait_until(made.copy(1).exists, "sf-fetch has joined")
        absent = fleetlib.Process("absent", made.lab.exec_args(2, [sys.executable, HERE / "absent_members.py", lablib.PORT, group, port,
                                                                   image_id, "10.53.0"]), context.workdir / "absent.log")
        try:
            made.check_complete(1, client, 40.0)
            check(absent.status() is None, absent.tail())
        finally:
            absent.kill()
        server.stop()
        failed = lines_of(server)[-1]["tx_failed"]
        check(failed > 0, "nothing waited for members that are gone")
        return f"{failed} datagrams to such members were left out"


@case(90)
def library_pair_ends_on_signals_and_says_what_was_done(context):
    for signum in (signal.SIGINT, signal.SIGTERM):
        with pair(context) as made:
            server, image_id = made.serve(*SLOWLY)
            client = made.fetch(1, image_id)
            wait_until(made.copy(1).exists, "sf-fetch has joined")
            client.popen.send_signal(signum)
            check(client.wait(5.0) == 1 and "stopped" in client.tail(), client.tail())
            server.popen.send_signal(signum)
            check(server.wait(5.0) == 0, server.tail())
            check(lines_of(server)[-1]["tx_bytes"] > 0, server.tail())


@case(60)
def library_pair_says_what_is_wrong(context):
    with pair(context) as made:
        refusals = (
            (0, SERVE, (context.workdir / "nothing",), 1, r"nothing.*No such file"),
            (0, SERVE, (), 2, "usage"),
            (0, SERVE, ("-p", "70000", context.image), 2, "usage"),
            (0, SERVE, ("-g", "10.0.0.1", context.image), 1, "10.0.0.1 is no IPv4 multicast address"),
            (0, SERVE, ("-i", "nowhere0", context.image), 1, "no network interface nowhere0"),
            (0, SERVE, ("-k", "smoke", context.image), 2, "usage"),
            (0, SERVE, ("-k", "dpdk-udp", context.image), 1, "'' is no IPv4 address"),
            (0, SERVE, ("-k", "ethernet", "-P", "nothing", context.image), 1, "nothing"),
            (1, FETCH, ("-t", "1", "1234", made.copy(1)), 1, "no server of this image"),
            (1, FETCH, ("xyz", made.copy(1)), 2, "usage"),
        )
        for host, program, args, status, text in refusals:
            process = made.start(host, program, *args, how=UDP)
            process.wait(10.0)
            said = process.tail(20)
            check(process.status() == status and re.search(text, said), f"{args}: {process.status()}\n{said}")
        check(not made.copy(1).exists(), "a file was made for an image that there is not")
