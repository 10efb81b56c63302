#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Writes the seeds in tests/fuzz/corpus that are made (or checks them: --check).

wire: what follows the Ethernet header in the examples of docs/wire-format.md, the input of wire::parse().
engine, host, ring: steps; checkpoint, guest_bitmap: bytes put into what is right; the fuzzers say how.
qemu_stream: a byte that says what follows (qemu_stream_fuzz.cpp), and a stream as docs/qemu-stream.md tells.
"""
import json
import pathlib
import struct
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))
from wire_examples import read_examples  # noqa: E402 (behind the path where it is)

ETHERNET_HEADER_BYTES = 14

PAGE = 4096
RAM_ID = 2
ZERO, MEM_SIZE, FULL, EOS, CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
FROM_PARENT, FROM_CLONE, SHARED = 0, 1, 2


def name(text):
    return bytes([len(text)]) + text.encode()


def ram_end():
    return struct.pack(">QBI", EOS, 0x7e, RAM_ID)


def ram_start(blocks, address=b""):
    start = struct.pack(">BI", 1, RAM_ID) + name("ram") + struct.pack(">IIQ", 0, 4, sum(blocks.values()) | MEM_SIZE)
    return start + b"".join(name(b) + struct.pack(">Q", size) + address for b, size in blocks.items()) + ram_end()


def filled_pages(block, size):
    """Pages of one byte all over: a few bytes each."""
    head = struct.pack(">Q", ZERO) + name(block) + b"f"
    return head + b"".join(struct.pack(">QB", at | ZERO | CONTINUE, 0) for at in range(PAGE, size, PAGE))


def device(section, text, state):
    head = struct.pack(">BI", 4, section) + name(text) + struct.pack(">II", 0, 1)
    return head + state + struct.pack(">BI", 0x7e, section)


def parent_stream(shared):
    blocks = {"acpi": PAGE, "pc.ram": 3 * PAGE, "pc.rom": PAGE}
    stream = struct.pack(">II", 0x5145564d, 3) + struct.pack(">BI", 7, 2) + b"pc"
    if shared:
        stream += b"\x05" + name("configuration/capabilities") + struct.pack(">II", 1, 1) + name("x-ignore-shared")
    stream += ram_start(blocks, bytes(8) if shared else b"") + struct.pack(">BI", 2, RAM_ID)
    if shared:
        del blocks["pc.ram"]
    stream += b"".join(filled_pages(b, size) for b, size in blocks.items()) + ram_end()
    stream += device(7, "timer", b"ticks") + device(9, "globalstate", b"running") + b"\x00"
    text = b'{"page_size":4096}'
    return stream + b"\x06" + struct.pack(">I", len(text)) + text


def full_page_stream():
    stream = struct.pack(">II", 0x5145564d, 3) + struct.pack(">BI", 7, 2) + b"pc" + ram_start({"pc.ram": PAGE})
    stream += struct.pack(">BIQ", 3, RAM_ID, FULL) + name("pc.ram") + bytes(range(256)) * (PAGE // 256) + ram_end()
    return stream + device(9, "globalstate", b"running") + b"\x00"


def clone_answers():
    def message(kind, data):
        return struct.pack(">HH", kind, len(data)) + data

    def ask(page, block=None):
        where = struct.pack(">QI", page * PAGE, PAGE)
        return message(4, where) if block is None else message(3, where + name(block))

    bitmap = message(5, name("pc.ram")) + struct.pack(">QQQQ", 16, 1, 2, 0x0123456789abcdef)
    return (message(2, struct.pack(">I", 3)) + ask(1, "pc.ram") + ask(69) + ask(1, "pc.rom") + ask(0) + bitmap
            + message(6, struct.pack(">I", 1)) + message(1, struct.pack(">I", 0)))


# The first byte says who answers (answers_fuzz.cpp); T is the token of the question.
FROM_GUEST, FROM_MEMTAP, FROM_SHIM, FROM_QEMU, FLAT_VIEW = range(5)


def lines(*texts):
    return "".join(text + "\n" for text in texts).encode()


def flat_view():
    return lines("FlatView #0", ' AS "memory", root: system', " Root memory region: system",
                 "  0000000000000000-000000000009ffff (prio 0, ram): pc.ram",
                 "  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios",
                 "  0000000100000000-000000013fffffff (prio 0, ram): pc.ram @00000000c0000000 KVM")


def answers():
    region = {"base_host_virt_addr": PAGE, "size": PAGE, "offset": 0, "file_offset": 0}
    qemu = [{"return": [{"device": "cd0", "inserted": {"ro": True, "file": "a.iso"}}]}, {"return": []},
            {"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}, {"return": []}, {"return": []},
            {"error": {"class": "GenericError", "desc": "no"}}, {"return": {"status": "running"}}, {"return": {}},
            {"return": flat_view().decode()}]
    return {
        "free_ranges": bytes([FROM_GUEST]) + lines("RANGES T 3", "0 1", "5 7", "1048576 200", "END"),
        "free_refused": bytes([FROM_GUEST]) + lines("RANGES other 1", "REFUSED T this kernel fills free pages"),
        "completion": bytes([FROM_MEMTAP]) + lines('{"missing": 7}', '{"missing": 1}', '{"complete": true}'),
        "no_completion": bytes([FROM_MEMTAP]) + lines('{"missing": 7}', '{"error": "the memserver is silent"}'),
        "shim": bytes([FROM_SHIM]) + json.dumps([region]).encode(),
        "shim_refuses": bytes([FROM_SHIM]) + b'{"error": "no", "busy": true}',
        "qmp": bytes([FROM_QEMU]) + lines(*map(json.dumps, qemu)),
        "flat_view": bytes([FLAT_VIEW]) + flat_view(),
    }


def page_tables():
    """Control registers, an address, and a frame of tables: the entry of index 0 leads to itself, that of index 1 is large."""
    registers = struct.pack("=QQQQQ", 0, 0, 1 << 10, 0, 0)
    tables = struct.pack("=QQQ", 0x1000 | 1, 0x200000 | 1 << 7 | 1, 0)
    return {"four_levels": registers + tables,
            "large": struct.pack("=QQQQQ", 0, 1 << 12, 1 << 10, 0, 1 << 21) + tables}


def ip_checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return struct.pack(">H", total ^ 0xffff)


def ipv4_frame(source, target, protocol, body, to_mac=b"\x01\x00\x5e\x42\x32\xf6"):
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0x4000, 1, protocol, 0, source, target)
    head = head[:10] + ip_checksum(head) + head[12:]
    return to_mac + bytes([2, 0, 0, 0, 0, 2]) + b"\x08\x00" + head + body


def ip_frames():
    """Of a client to the server of ip_fuzz.cpp, and back; each frame behind its length."""
    own, peer, group, port = bytes([10, 53, 0, 1]), bytes([10, 53, 0, 2]), bytes.fromhex("efc232f6"), 21318

    def datagram(target, target_port):
        return ipv4_frame(peer, target, 17, struct.pack(">HHHH", 40000, target_port, 8 + 28, 0) + bytes(28))
    arp = bytes([255] * 6 + [2, 0, 0, 0, 0, 2]) + bytes.fromhex("0806 0001 0800 0604 0001") + bytes([2, 0, 0, 0, 0, 2])
    arp += peer + bytes(6) + own
    query = struct.pack(">BBH4s", 0x11, 100, 0, bytes(4))
    igmp = ipv4_frame(peer, bytes([224, 0, 0, 1]), 2, query[:2] + ip_checksum(query) + query[4:])
    frames = {"to_servers": datagram(group, port), "to_us": datagram(own, port + 2), "arp": arp, "query": igmp}
    seeds = {name: b"\x00" + struct.pack(">H", len(frame)) + frame for name, frame in frames.items()}
    to_clients = datagram(group, port + 1)
    return {**seeds, "to_clients": b"\x01" + struct.pack(">H", len(to_clients)) + to_clients}

# engine_fuzz.cpp: a byte of options, then steps: a byte that says which, and what that takes.
MICROSECONDS, MILLISECONDS, TALK, BYTES_TO_SERVER, BYTES_TO_CLIENT, BODY_TO_SERVER, BODY_TO_CLIENT = range(7)
FAULT, REQUEST, PAGE_FRAME, RANGES, WELCOME, SIBLING_REQUEST = range(7, 13)
PUSH, END_GAME, LARGE_BURST, FEW_PARTIAL, TREE, JUMBO = (1 << bit for bit in range(6))


def steps(options, *some):
    return bytes([options]) + b"".join(bytes(step) for step in some)


def want(page):
    """One page as demand, all of it."""
    return [1, page, 0]


def request(client, clock_us, *wants, step=REQUEST):
    """Of who calls itself client + 1: a report, wants, and an incarnation."""
    report = struct.pack(">QQIIII", clock_us, clock_us, clock_us // 1000, 3, 200, 50)
    return [step, client, *report, len(wants), *(byte for one in wants for byte in one), 1]


def faults(*pages):
    return [byte for page in pages for byte in (FAULT, page, 0)]


def engine():
    pass_10_ms, pass_250_ms = [MILLISECONDS, 10], [MILLISECONDS, 250]
    two_clients = [request(0, 0), request(1, 0), [TALK], pass_10_ms, request(0, 60000, want(20)), request(1, 60000, want(20))]
    # First page, second page, and an incarnation; or fragments, which, a checksum that is right, page, flags, sequence.
    pair, fragment = [PAGE_FRAME, 1, 30, 31, 0, 1], [PAGE_FRAME, 0, 2, 0, 1, 40, 1, 0, 1, 1]
    bye = [BODY_TO_CLIENT, 6, 1, 1, 0, 2, 0, 8, *bytes(8)]
    return {
        "fetch": steps(0, faults(20, 21, 8), [TALK], pass_10_ms, [TALK]),
        "pairs": steps(JUMBO | LARGE_BURST, faults(20, 21, 22, 23), [TALK], pass_10_ms, [TALK], pair, faults(30), [TALK]),
        "two_clients": steps(LARGE_BURST, *two_clients, [TALK], pass_10_ms, [TALK]),
        "push_and_tree": steps(PUSH | TREE | LARGE_BURST, faults(77), [TALK], pass_10_ms, [TALK], pass_10_ms, [TALK]),
        "end_game": steps(END_GAME | LARGE_BURST, faults(*range(20, 60)), [TALK], *two_clients, [TALK]),
        "fragment": steps(FEW_PARTIAL, faults(40), fragment, [TALK]),
        "ranges": steps(0, faults(60, 61), [RANGES, 0, 0, 60, 0, 0, 1], [RANGES, 1, 0, 61, 0, 0, 1], [TALK]),
        "restart": steps(0, faults(20), [WELCOME, 1, 0, 50, 1, 1, 2], [TALK]),
        "sibling": steps(0, request(3, 0, want(21), want(24), step=SIBLING_REQUEST), pass_10_ms, [TALK], pass_10_ms, [TALK]),
        "silence": steps(0, faults(20), bye, *[pass_250_ms] * 3, [TALK], faults(21), pass_250_ms, [TALK]),
    }


def host():
    """host_fuzz.cpp: as engine()."""
    turn, lossy_turn, touch, claim, put_off, fails, page, zeros_or_absent, welcome, sibling, end_or_complete, prefetch = (
        [2], 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15)
    tree, keeps, push, jumbo, loads, neighbours = (1 << bit for bit in range(6))
    pass_250_ms = [1, 250]

    def touches(*pages):
        return [byte for at in pages for byte in (touch, at % 2, at)]
    # Page, fragments, which, flags, sequence, damage (a fourth is), and an incarnation.
    fragment, damaged = [page, 20, 2, 0, 1, 0, 1, 1, 1], [page, 21, 0, 0, 1, 0, 2, 4, 1]
    return {
        "faults": steps(neighbours, touches(0, 1, 8, 64, 20), turn, turn),
        "kept": steps(keeps | jumbo, touches(20, 21, 22), turn, touches(23), turn, touches(23, 24), [touch, 1, 20], turn),
        "lost": steps(keeps, touches(20, 21, 22, 23), [lossy_turn, 0x55], pass_250_ms, [lossy_turn, 0xaa], pass_250_ms, turn),
        "complete": steps(keeps | push | jumbo, [end_or_complete, 1, 0], touches(30), turn, [1, 5], turn,
                          [end_or_complete, 0], turn),
        "working_set": steps(keeps | loads, touches(30, 31, 10), turn, [1, 5], turn, [prefetch, 40, 20], turn),
        "put_off": steps(0, [put_off, 0, 0] * 3, [put_off, 1, 1], touches(20, 21), turn, [1, 5], turn, [claim, 0, 20], turn),
        "lies": steps(tree, touches(20, 21, 60), fragment, damaged, [zeros_or_absent, 0, 0, 20, 0, 0, 1],
                      [zeros_or_absent, 1, 0, 60, 0, 0, 1], [welcome, 1, 0, 50, 1, 1, 2], turn),
        "silence": steps(keeps, touches(20), [lossy_turn, 255], *[pass_250_ms, [lossy_turn, 255]] * 4, [fails, 0, 0], touches(21),
                         [lossy_turn, 255], pass_250_ms, turn),
        "sibling": steps(keeps | push | jumbo, [prefetch, 0, 60], turn, turn, request(3, 0, want(21), want(9), step=sibling),
                         [1, 3], turn, [1, 1], turn),
    }


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def checkpoint():
    """Pages of the file but one, what fills new ones, whether to sign and for how many pages, and bytes to put somewhere."""
    def signed(nb_pages):
        return nb_pages << 1 | 1

    def in_trailer(at, value):
        return [80 + at, 0, value]
    table = struct.pack(">I", crc32c(b"\x5a" * PAGE))
    one_page = [byte for at, value in enumerate(table) for byte in (PAGE >> 8, at, value)] + in_trailer(23, 1)
    return {
        "whole": bytes([4, 0, 0]),
        "one_page": bytes([2, 0, signed(1), *one_page]),
        "other_epoch": bytes([4, 0, signed(3), *in_trailer(27, 9)]),
        "damaged_page": bytes([4, 0, 0, 0, 5, 1]),
        "damaged_trailer": bytes([4, 0, 0, *in_trailer(15, 8)]),
        "another_size": bytes([6, 0x5a, signed(3)]),
    }


def guest_bitmap():
    """Bytes of text, whether that is what the guest announces, whether it is reset, the text, and bytes to put somewhere."""
    as_text, reset, presence_at = 1, 2, 0x40

    def announced(options, text, *writes):
        return bytes([len(text), as_text | options]) + text + bytes(byte for write in writes for byte in write)
    claimed_by_both = [(0, presence_at + at, value) for at, value in enumerate((0x1b, 0xe4, 0xff, 0x55))]
    return {
        "reset": announced(reset, b"5 1 0", *claimed_by_both, *claimed_by_both),
        "take_over": announced(0, b"5 1 0", *claimed_by_both, (1, 0, 7), (0, presence_at, 0xaa), (0, 9, 9)),
        "elsewhere": announced(0, b"512 1 0"),
        "no_number": announced(0, b"five 1"),
    }


def ring():
    """Steps: what Xen or somebody writes into the page, and what the pager does."""
    ask, write, take, answer, publish, left = range(6)

    def page(gfn, drop=0):
        return [ask, 1, 2, gfn, drop]
    all_slots = [step for gfn in range(8) for step in page(gfn)]
    return {
        "served": bytes([*page(3), take, answer, 0, publish, *page(4, drop=1), take, answer, 0, publish]),
        "full": bytes([*all_slots, *[take] * 9, *[answer, 0] * 8, publish, *page(9), take]),
        "left": bytes([*all_slots, take, take, answer, 1, left]),
        "broken": bytes([*page(3), write, 0, 0, 99, take, take, left]),
        "wrong_version": bytes([*page(3), write, 0, 64, 6, take]),
    }


def load():
    """What the ends of `fabric-bench load` say: a trial is to begin, and how far it is."""
    def frame(kind, body=bytes(36)):
        return struct.pack(">HBBQ", 0x534c, 1, kind, 7) + body
    order = struct.pack(">B3xIQIIHHQ", 2, 2000, 125_000_000, 4096, 100, 9000, 0, 0)
    report = struct.pack(">BBHQQQQ", 3, 3, 9000, 8, 8 * 8242, 2_000_000_000, 8 * 8242)
    return {"start": frame(1, order), "go": frame(2), "ask": frame(3), "state": frame(4, report)}


def corpora():
    """name: {file: bytes}"""
    return {
        "answers": answers(),
        "checkpoint": checkpoint(),
        "engine": engine(),
        "guest_bitmap": guest_bitmap(),
        "host": host(),
        "ip": ip_frames(),
        "load": load(),
        "page_tables": page_tables(),
        "ring": ring(),
        "seal": {"flip": bytes([60, 0, 1, 0]) + b"a frame that is sealed", "cut": bytes([0, 0, 0, 5]) + b"another"},
        "text": {"pages": lines("17", "0x20-0x3f  # a comment", "", "5 - 9"), "key": b"0123456789abcdef" * 4 + b"\n",
                 "mac": b"02:db:00:00:00:01", "number": b"1122334455667788",
                 "guest": b"4294967297", "image": b"00000000000000af"},
        "wire": {e.name: e.frame[ETHERNET_HEADER_BYTES:] for e in read_examples()},
        "qemu_stream": {
            "snapshot": bytes([FROM_PARENT]) + parent_stream(shared=False),
            "ignore_shared": bytes([FROM_PARENT | SHARED]) + parent_stream(shared=True),
            "full_page": bytes([FROM_PARENT]) + full_page_stream(),
            "answers": bytes([FROM_CLONE]) + clone_answers(),
        },
    }


def check(folder, seeds):
    have = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}
    if have != seeds:
        print(f"tests/fuzz/corpus/{folder.name} is not what make_corpus.py makes: run it")
    return have == seeds


def write(folder, seeds):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for file, seed in seeds.items():
        (folder / file).write_bytes(seed)


def main() -> int:
    folders = {HERE / "corpus" / corpus: seeds for corpus, seeds in corpora().items()}
    if sys.argv[1:] == ["--check"]:
        return 0 if all([check(folder, seeds) for folder, seeds in folders.items()]) else 1
    for folder, seeds in folders.items():
        write(folder, seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
