# SPDX-License-Identifier: BSD-3-Clause
"""An outsider on the segment: records frames of a group, or sends what nobody should accept. Run it inside a host's
namespace.

usage: attacker.py record IFACE FILE COUNT                 that many PAGE frames, as they come by
       attacker.py counters IFACE FILE               of all sealed frames, in and out, until SIGTERM: source, session, counter
       attacker.py send IFACE FILE KIND COUNT SEED DST IMAGE_ID EPOCH    made of those of the file
KIND: replayed, flipped, forged, clear; FILE may be /dev/null for those that need no frame: clear, zeros, absent, nodes.
DST, IMAGE_ID, EPOCH: of the frames that are not replayed
"""
import json
import pathlib
import random
import signal
import socket
import struct
import sys
import time

import junk

ETHERNET_BYTES, SEAL_BYTES, TAG_BYTES = 14, 32, 16
SEAL_MAGIC = 0x5358
PAGE_BYTES = 4096
NB_CLEAR_PAGES = 1024  # forged pages that fit their checksum lie before
NB_NODES = 65  # of the hash tree over 32 MiB
HASH_TREE_SPACE = 1
SOMEBODY = "02534600ee02"


def record(iface, path, count):
    frames = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(junk.ETHER_TYPE)) as sock:
        sock.bind((iface, junk.ETHER_TYPE))
        # The groups of a host without a memtap are nobody's here.
        index = socket.if_nametoindex(iface)
        sock.setsockopt(263, 1, struct.pack("IHH8s", index, 1, 0, b""))  # SOL_PACKET, PACKET_ADD_MEMBERSHIP, PROMISC
        pathlib.Path(path + ".ready").touch()
        while len(frames) < int(count):
            frame = sock.recv(65536)
            if len(frame) > PAGE_BYTES:
                frames.append(frame.hex())
    pathlib.Path(path).write_text(json.dumps(frames))


def counters(iface, path):
    """docs/wire-format.md, section 11. Frames in the clear are of no session."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # `with` closes the file
    every_protocol = 3  # ETH_P_ALL: else a bridge takes a port's frames before they come here
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock, open(path, "w") as out:  # of no port before it is bound
        sock.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        sock.bind((iface, every_protocol))
        pathlib.Path(path + ".ready").touch()
        while True:
            frame = sock.recv(ETHERNET_BYTES + SEAL_BYTES)
            ether_type, magic = struct.unpack_from(">HH", frame, 12)
            if (ether_type, magic) == (junk.ETHER_TYPE, SEAL_MAGIC) and len(frame) == ETHERNET_BYTES + SEAL_BYTES:
                print(frame[6:12].hex(":"), frame[22:38].hex(), int.from_bytes(frame[38:46], "big"), file=out)


def crc32c(data):
    table = [0] * 256
    for i in range(256):
        value = i
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table[i] = value
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


EVIL = b"\x66" * PAGE_BYTES
EVIL_CRC = crc32c(EVIL)


def page_of(image_id, epoch, gfn, space=0):
    """A PAGE frame in the clear, all of it right but its bytes: they fit the checksum and not the image."""
    return junk.header(junk.page(gfn, EVIL, EVIL_CRC), image_id, epoch, junk.PAGE, space=space)


def made(kind, frame, rng, dst, image_id, epoch):
    source = frame[6:12] or bytes.fromhex(SOMEBODY)  # the server's own address, if one of its frames is at hand
    ethernet = bytes.fromhex(dst.replace(":", "")) + source + struct.pack(">H", junk.ETHER_TYPE)
    match kind:
        case "replayed":
            return frame
        case "flipped":
            bit = rng.randrange(8 * ETHERNET_BYTES + 128, 8 * len(frame))  # behind what says that it is sealed
            return frame[:bit // 8] + bytes([frame[bit // 8] ^ 1 << bit % 8]) + frame[bit // 8 + 1:]
        case "forged":
            page = page_of(image_id, epoch, rng.randrange(NB_CLEAR_PAGES))
            head = frame[ETHERNET_BYTES:ETHERNET_BYTES + SEAL_BYTES]
            head = head[:4] + struct.pack(">H", len(page)) + head[6:-8] + rng.randbytes(8)  # another counter
            return ethernet + head + page + rng.randbytes(TAG_BYTES)
        case "clear":
            return ethernet + page_of(image_id, epoch, rng.randrange(NB_CLEAR_PAGES))
        case "nodes":
            return ethernet + page_of(image_id, epoch, rng.randrange(NB_NODES), HASH_TREE_SPACE)
        case "zeros" | "absent":
            body = struct.pack(">QI", rng.randrange(NB_CLEAR_PAGES), 1)
            return ethernet + junk.header(body, image_id, epoch, junk.ZEROS if kind == "zeros" else junk.ABSENT)
    raise ValueError(f"unknown kind {kind}")


def send(iface, path, kind, count, seed, dst, image_id, epoch):
    text = pathlib.Path(path).read_text()
    frames = [bytes.fromhex(line) for line in json.loads(text)] if text else [b""]
    rng = random.Random(f"{seed} {kind}")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((iface, 0))
        for i in range(int(count)):
            sock.send(made(kind, frames[i % len(frames)], rng, dst, int(image_id, 16), int(epoch)))
            time.sleep(junk.PACE_S)


if __name__ == "__main__":
    {"record": record, "counters": counters, "send": send}[sys.argv[1]](*sys.argv[2:])
