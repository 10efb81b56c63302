# SPDX-License-Identifier: BSD-3-Clause
"""An outsider on the segment: records frames of a group, or sends what nobody should accept. Run it inside a host's
namespace.

usage: attacker.py record IFACE FILE COUNT                 that many PAGE frames, as they come by
       attacker.py control IFACE FILE SERVER         all sealed frames to that address or to all, until SIGTERM; IFACE: a port
                                                     of the bridge, for it shows nobody else what is for one alone
       attacker.py counters IFACE FILE               of all sealed frames, in and out, until SIGTERM: source, session, counter
       attacker.py send IFACE FILE KIND COUNT SEED DST IMAGE_ID EPOCH    made of those of the file
KIND: replayed, flipped, forged, clear, and forged_control, clear_control of what clients send; FILE may be /dev/null for
those that need no frame: clear, clear_control, zeros, absent, nodes.
DST, IMAGE_ID, EPOCH: of the frames that are not replayed
"""
import pathlib
import random
import signal
import socket
import struct
import sys
import time

import junk

ETHERNET_BYTES, SEAL_BYTES, TAG_BYTES = 14, 32, 16
COUNTER_BYTES = 8  # the last of the seal's header
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
    pathlib.Path(path).write_text("\n".join(frames))


def sealed_frames(iface, ready, most_bytes):
    """Of all that pass a port of the bridge, in and out, the beginnings. docs/wire-format.md, section 11."""
    every_protocol = 3  # ETH_P_ALL: else a bridge takes a port's frames before they come here
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:  # of no port before it is bound
        sock.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        sock.bind((iface, every_protocol))
        pathlib.Path(ready).touch()
        while True:
            frame = sock.recv(most_bytes)
            if len(frame) < ETHERNET_BYTES + SEAL_BYTES:
                continue
            if struct.unpack_from(">HH", frame, 12) == (junk.ETHER_TYPE, SEAL_MAGIC):
                yield frame


def control(iface, path, server):
    """One a line, flushed: it may be read while there come more."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # `with` closes the file
    to = (bytes.fromhex(server.replace(":", "")), b"\xff" * 6)
    with open(path, "w") as out:
        for frame in sealed_frames(iface, path + ".ready", 65536):
            if frame[:6] in to:
                print(frame.hex(), file=out, flush=True)


def counters(iface, path):
    """Frames in the clear are of no session."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # `with` closes the file
    with open(path, "w") as out:
        for frame in sealed_frames(iface, path + ".ready", ETHERNET_BYTES + SEAL_BYTES):
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


def control_of(rng, image_id, epoch):
    """A HELLO, REQUEST or BYE in the clear. The REQUEST reports that most was lost, and wants a lot."""
    client_id = rng.randrange(1, 1 << 64)
    match rng.choice((junk.HELLO, junk.REQUEST, junk.BYE)):
        case junk.HELLO:
            return junk.header(struct.pack(">QH6x", client_id, 9000), image_id, epoch, junk.HELLO)
        case junk.BYE:
            return junk.header(struct.pack(">Q", client_id), image_id, epoch, junk.BYE)
    report = struct.pack(">QQQIIII", client_id, time.monotonic_ns() // 1000, 1 << 20, 100, 1 << 20, 100, 10)
    want = struct.pack(">QHBBB3x", rng.randrange(NB_CLEAR_PAGES), 256, 0, 0, 0)
    return junk.header(report + want, image_id, epoch, junk.REQUEST)


def as_if_sealed(clear, frame, rng):
    """In the session of a frame, with another counter and no right tag."""
    head = frame[ETHERNET_BYTES:ETHERNET_BYTES + SEAL_BYTES]
    head = head[:4] + struct.pack(">H", len(clear)) + head[6:-COUNTER_BYTES] + rng.randbytes(COUNTER_BYTES)
    return head + clear + rng.randbytes(TAG_BYTES)


def made(kind, frame, rng, dst, image_id, epoch):
    source = frame[6:12] or bytes.fromhex(SOMEBODY)  # the server's own address, if one of its frames is at hand
    ethernet = bytes.fromhex(dst.replace(":", "")) + source + struct.pack(">H", junk.ETHER_TYPE)
    match kind:
        case "replayed":
            return frame
        case "flipped":
            # Behind what says that it is sealed, and not of the counter: 0 is called replayed.
            bit = rng.randrange(8 * ETHERNET_BYTES + 128, 8 * (len(frame) - COUNTER_BYTES))
            if bit >= 8 * (ETHERNET_BYTES + SEAL_BYTES - COUNTER_BYTES):
                bit += 8 * COUNTER_BYTES
            return frame[:bit // 8] + bytes([frame[bit // 8] ^ 1 << bit % 8]) + frame[bit // 8 + 1:]
        case "forged":
            return ethernet + as_if_sealed(page_of(image_id, epoch, rng.randrange(NB_CLEAR_PAGES)), frame, rng)
        case "forged_control":
            return ethernet + as_if_sealed(control_of(rng, image_id, epoch), frame, rng)
        case "clear_control":
            return ethernet + control_of(rng, image_id, epoch)
        case "clear":
            return ethernet + page_of(image_id, epoch, rng.randrange(NB_CLEAR_PAGES))
        case "nodes":
            return ethernet + page_of(image_id, epoch, rng.randrange(NB_NODES), HASH_TREE_SPACE)
        case "zeros" | "absent":
            body = struct.pack(">QI", rng.randrange(NB_CLEAR_PAGES), 1)
            return ethernet + junk.header(body, image_id, epoch, junk.ZEROS if kind == "zeros" else junk.ABSENT)
    raise ValueError(f"unknown kind {kind}")


def send(iface, path, kind, count, seed, dst, image_id, epoch):
    frames = [bytes.fromhex(line) for line in pathlib.Path(path).read_text().split()] or [b""]
    rng = random.Random(f"{seed} {kind}")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((iface, 0))
        for i in range(int(count)):
            sock.send(made(kind, frames[i % len(frames)], rng, dst, int(image_id, 16), int(epoch)))
            time.sleep(junk.PACE_S)


if __name__ == "__main__":
    {"record": record, "control": control, "counters": counters, "send": send}[sys.argv[1]](*sys.argv[2:])
