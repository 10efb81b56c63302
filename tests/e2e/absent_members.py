# SPDX-License-Identifier: BSD-3-Clause
"""Says HELLO in UDP datagrams for members that are not there, until it is stopped. Run it inside a host's namespace.

usage: absent_members.py IFACE GROUP PORT IMAGE_ID PREFIX    they are PREFIX.100 to PREFIX.199
"""
import itertools
import socket
import struct
import sys
import time

import junk

HELLO = 1
UDP = 17
BURST, PAUSE_S = 100, 0.005


def hello(image_id, client_id):
    return junk.header(struct.pack(">QH6x", client_id, 9000 - 28), image_id, 1, HELLO)


def packet(src, group, port, payload):
    """IPv4 and UDP; the kernel fills in lengths and the checksum of IPv4."""
    udp = struct.pack(">HHHH", 40000, port, 8 + len(payload), 0) + payload
    return struct.pack(">BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 1, UDP, 0, socket.inet_aton(src), socket.inet_aton(group)) + udp


def main():
    iface, group, port, image_id, prefix = sys.argv[1:]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        through = struct.pack("=4s4si", b"\0" * 4, b"\0" * 4, socket.if_nametoindex(iface))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, through)
        for number in itertools.count(1):
            sock.sendto(packet(f"{prefix}.{100 + number % 100}", group, int(port), hello(int(image_id, 16), number)), (group, 0))
            if number % BURST == 0:
                time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
