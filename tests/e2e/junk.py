# SPDX-License-Identifier: BSD-3-Clause
"""Sends frames nobody should accept, out of an interface. Run it inside a host's namespace.

usage: junk.py IFACE DST_MAC IMAGE_ID EPOCH KIND COUNT SEED
"""
import random
import socket
import struct
import sys
import time

ETHER_TYPE = 0x88B5
MAGIC, VERSION = 0x5346, 1
HELLO, REQUEST, PAGE, ZEROS, ABSENT, BYE = 1, 3, 4, 5, 6, 7
PAGE_FIRST = 1000  # kind "page": behind what a test lets its guest touch
PACE_S = 0.0005  # a burst would overrun the receiver's ring, and what is lost there is counted nowhere


def header(payload, image_id, epoch, frame_type, version=VERSION, payload_len=None, space=0):
    """docs/wire-format.md, common header."""
    length = len(payload) if payload_len is None else payload_len
    return struct.pack(">HBBBBHQIII", MAGIC, version, frame_type, 0, space, length, image_id, epoch, 0, 0) + payload


def request(first, nb_pages, client_id=0x6A756E6B):
    """REQUEST body: client id, an empty report, one want."""
    return struct.pack(">Q32xQHBBB3x", client_id, first, nb_pages, 0, 0, 0)


def page(gfn, data=b"\xA5" * 4096, crc=0xDEADBEEF):
    """PAGE body: a whole page; if nothing else is said, with a checksum that does not fit."""
    return struct.pack(">QIBBH", gfn, crc, 0, 1, 0) + data


def frame_of(kind, rng, image_id, epoch):
    """What follows the Ethernet header."""
    good = header(request(rng.randrange(16), 1), image_id, epoch, REQUEST)
    match kind:
        case "random":
            return rng.randbytes(rng.randrange(1, 1400))
        case "truncated":
            # At least 46 bytes, or Ethernet would pad; the length field still says the whole body.
            return good[:rng.randrange(46, len(good))]
        case "version":
            return header(request(0, 1), image_id, epoch, REQUEST, version=rng.choice([0, 2, 255]))
        case "type":
            return header(request(0, 1), image_id, epoch, rng.randrange(8, 256))
        case "length":
            return header(request(0, 1), image_id, epoch, REQUEST, payload_len=rng.randrange(1400, 65536))
        case "image":
            return header(request(0, 1), image_id ^ (1 << rng.randrange(64)), epoch, REQUEST)
        case "epoch":
            return header(request(0, 1), image_id, epoch + 1 + rng.randrange(1000), REQUEST)
        case "page":
            return header(page(PAGE_FIRST + rng.randrange(16)), image_id, epoch, PAGE)
        case "far":
            return header(page((1 << 62) + rng.randrange(1 << 20)), image_id, epoch, PAGE)
        case "range":
            return header(request((1 << 62) + rng.randrange(1 << 20), 1), image_id, epoch, REQUEST)
    raise ValueError(f"unknown kind {kind}")


def main():
    iface, dst, image_id, epoch, kind, count, seed = sys.argv[1:]
    rng = random.Random(f"{seed} {kind}")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((iface, 0))
        ethernet = bytes.fromhex(dst.replace(":", "")) + bytes.fromhex("02534600EE01") + struct.pack(">H", ETHER_TYPE)
        for _ in range(int(count)):
            sock.send(ethernet + frame_of(kind, rng, int(image_id, 16), int(epoch)))
            time.sleep(PACE_S)


if __name__ == "__main__":
    main()
