#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Tests tools/snowfabric.lua with tshark: on the examples of docs/wire-format.md and on bad frames.

With --pcap FILE: checks instead that every frame of our EtherType in a capture decodes, and that
there is one. Exit 77 (skipped) without tshark.
"""
import argparse
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

from wire_examples import read_examples

LUA = pathlib.Path(__file__).resolve().parents[2] / "tools" / "snowfabric.lua"
LINKTYPE_ETHERNET = 1
HEADER_AT, BODY_AT = 14, 42  # in an Ethernet frame

# documented name -> fields of the dissector; a compound value is split at these
COMPOUND = {
    "want": ["want.first", "want.nb_pages", "want.priority", "want.flags", "want.fragments"],
    "range": ["range.first", "range.nb_pages"],
}
REPORT = ["clock_us", "rx_bytes", "rx_frames", "lost", "srtt_us", "rttvar_us"]
NUMBERS = ["type", "flags", "space", "payload_len", "image_id", "epoch", "incarnation", "seq",
           "client_id", "mtu_bytes", "nb_pages", "report_interval_us", "nb_fragments", "gfn",
           "crc32c", "fragment", *(f"report.{name}" for name in REPORT),
           *COMPOUND["want"], *COMPOUND["range"]]
FIELDS = [*(f"snowfabric.{name}" for name in [*NUMBERS, "data", "padding", "drop"]),
          "eth.dst", "eth.src", "frame.protocols", "_ws.expert.message", "_ws.col.Info"]


def decode(pcap: pathlib.Path) -> list[dict[str, list[str]]]:
    """The fields of every frame of our EtherType. A Lua error shows in _ws.expert.message."""
    command = ["tshark", "-X", f"lua_script:{LUA}", "-r", str(pcap), "-Y", "eth.type == 0x88b5",
               "-T", "fields", "-E", "separator=/t", "-E", "occurrence=a", "-E", "aggregator=|"]
    for field in FIELDS:
        command += ["-e", field]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    # tshark goes on without a script that does not load, and says so on stderr alone
    if run.returncode != 0 or "Lua:" in run.stderr:
        raise RuntimeError(f"tshark: exit {run.returncode}: {run.stderr}")
    rows = [line.split("\t") for line in run.stdout.splitlines()]
    return [{name: text.split("|") if text else []
             for name, text in zip(FIELDS, row, strict=True)} for row in rows]


def problem(frame: dict[str, list[str]]) -> str | None:
    if frame["_ws.expert.message"]:
        return " ".join(frame["_ws.expert.message"])
    if "snowfabric" not in frame["frame.protocols"][0]:
        return "not dissected"
    return f"receivers drop it: {frame['snowfabric.drop']}" if frame["snowfabric.drop"] else None


def decode_frames(frames: list[bytes]) -> list[dict[str, list[str]]]:
    with tempfile.TemporaryDirectory(prefix="sf_pcap_") as folder:
        pcap = pathlib.Path(folder) / "frames.pcap"
        with pcap.open("wb") as out:
            out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, LINKTYPE_ETHERNET))
            for frame in frames:
                out.write(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)
        return decode(pcap)


def documented_numbers(fields: dict[str, list[str]]) -> dict[str, list[int]]:
    """The fields of an example under the dissector's names."""
    numbers: dict[str, list[int]] = {}
    for name, values in fields.items():
        for value in values:
            if name in COMPOUND:
                parts = value.replace("+", ":").split(":")
                for field, part in zip(COMPOUND[name], parts, strict=True):
                    numbers.setdefault(field, []).append(int(part, 0))
            elif name not in ("dst", "src", "data", "padding"):
                field = f"report.{name}" if name in REPORT else name
                numbers.setdefault(field, []).append(int(value, 0))
    return numbers


class Examples(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.examples = read_examples()
        cls.decoded = decode_frames([bytes(e.frame) for e in cls.examples])

    def test_every_frame_type_has_an_example_and_every_example_is_decoded(self):
        self.assertEqual({e.number("type") for e in self.examples}, set(range(1, 8)))
        self.assertEqual(len(self.examples), len(self.decoded))

    def test_every_number_is_decoded_as_documented(self):
        for example, frame in zip(self.examples, self.decoded):
            decoded = {name: [int(text, 0) for text in frame[f"snowfabric.{name}"]]
                       for name in NUMBERS if frame[f"snowfabric.{name}"]}
            with self.subTest(example.name):
                self.assertEqual(decoded, documented_numbers(example.fields))

    def test_addresses_data_and_padding_are_decoded_as_documented(self):
        for example, frame in zip(self.examples, self.decoded):
            pages = (text.split("*") for text in example.fields.get("data", []))
            data = "".join(f"{int(fill, 0):02x}" * int(count) for fill, count in pages)
            padding = "00" * int(example.fields.get("padding", ["0"])[0])
            with self.subTest(example.name):
                self.assertEqual(frame["eth.dst"], example.fields["dst"])
                self.assertEqual(frame["eth.src"], example.fields["src"])
                self.assertEqual("".join(frame["snowfabric.data"]), data)
                self.assertEqual("".join(frame["snowfabric.padding"]), padding)

    def test_no_frame_has_a_problem(self):
        for example, frame in zip(self.examples, self.decoded):
            with self.subTest(example.name):
                self.assertIsNone(problem(frame))

    def test_a_sealed_frame_tells_what_anybody_may_know(self):
        head = bytes.fromhex("025f00000001025f0000001188b5" "5358010000050000") + bytes(range(16)) + struct.pack(">Q", 77)
        whole, short = decode_frames([head + bytes(5 + 16), head + bytes(5 + 15)])
        self.assertIsNone(problem(whole))
        self.assertEqual(whole["_ws.col.Info"], ["sealed counter=77"])
        self.assertEqual(short["snowfabric.drop"], ["truncated"])

    def test_the_info_column_reads_well(self):
        info = {e.name: f["_ws.col.Info"][0] for e, f in zip(self.examples, self.decoded)}
        self.assertEqual(info["page"], "PAGE gfn=0x1234 seq=4711")
        self.assertEqual(info["fragment"], "PAGE gfn=0xfff frag 3/3")
        self.assertEqual(info["zeros"], "ZEROS 0x100+64 0x3000+4096 seq=4712")
        self.assertEqual(info["request"],
                         "REQUEST client=0xa1b2c3d4e5f60718 wants=3 first=0x1234+1")
        self.assertEqual(info["bye_server"], "BYE server leaves seq=4713")


def spoiled() -> list[tuple[str, str, bytes]]:
    """(what is wrong, the verdict of wire::parse, the frame)"""
    good = {e.name: bytes(e.frame) for e in read_examples()}

    def put(name: str, at: int, octets: bytes) -> bytes:
        return good[name][:at] + octets + good[name][at + len(octets):]

    length_at = HEADER_AT + 6
    want_at, fragment_at = BODY_AT + 40, BODY_AT + 12
    return [
        ("header cut", "truncated", good["hello"][:HEADER_AT + 27]),
        ("nothing behind Ethernet's header but one byte", "truncated", good["hello"][:15]),
        ("body cut", "truncated", good["welcome"][:-1]),
        ("magic", "bad_magic", put("hello", HEADER_AT, b"\x46\x53")),
        ("version 0", "bad_version", put("hello", HEADER_AT + 2, b"\0")),
        ("version 2", "bad_version", put("hello", HEADER_AT + 2, b"\2")),
        ("type 0", "bad_type", put("hello", HEADER_AT + 3, b"\0")),
        ("type 8", "bad_type", put("hello", HEADER_AT + 3, b"\x08")),
        ("no body", "bad_length", put("zeros", length_at, b"\0\0")),
        ("HELLO too short", "bad_length", put("hello", length_at, b"\0\x0f")),
        ("WELCOME too short", "bad_length", put("welcome", length_at, b"\0\x17")),
        ("half a want", "bad_length", put("request", length_at, b"\0\x30")),
        ("half a range", "bad_length", put("zeros", length_at, b"\0\x0d")),
        ("BYE too long", "bad_length", put("bye_client", length_at, b"\0\x09")),
        ("data too short", "bad_length", put("page", length_at, b"\x10\x0f")),
        ("fragment number", "bad_field", put("fragment", fragment_at, b"\3")),
        ("no fragments", "bad_field", put("page", fragment_at + 1, b"\0")),
        ("nine fragments", "bad_field", put("page", fragment_at + 1, b"\x09")),
        ("client 0", "bad_field", put("hello", BODY_AT, bytes(8))),
        ("want of 0 pages", "bad_field", put("request", want_at + 8, b"\0\0")),
        ("want of 257 pages", "bad_field", put("request", want_at + 8, b"\1\1")),
        ("want that wraps", "bad_field", put("request", want_at, b"\xff" * 8)),
        ("priority 2", "bad_field", put("request", want_at + 10, b"\2")),
        ("fragments of a run", "bad_field", put("request", want_at + 32 + 12, b"\1")),
        ("range of 0 pages", "bad_field", put("zeros", BODY_AT + 8, bytes(4))),
        ("range of 4097 pages", "bad_field", put("zeros", BODY_AT + 8, b"\0\0\x10\1")),
        ("image of 0 pages", "bad_field", put("welcome", BODY_AT + 8, bytes(8))),
        ("image of 2^32 pages", "bad_field", put("welcome", BODY_AT + 8, b"\0\0\0\1" + bytes(4))),
        ("report interval 0", "bad_field", put("welcome", BODY_AT + 16, bytes(4))),
    ]


class BadFrames(unittest.TestCase):
    def test_each_is_marked_with_the_verdict_of_the_parser(self):
        cases = spoiled()
        decoded = decode_frames([frame for _, _, frame in cases])
        self.assertEqual(len(decoded), len(cases))
        for (what, verdict, _), frame in zip(cases, decoded):
            with self.subTest(what):
                self.assertEqual(frame["snowfabric.drop"], [verdict])
                self.assertEqual(len(frame["_ws.expert.message"]), 1)
                self.assertNotIn("Lua", frame["_ws.expert.message"][0])
                self.assertIn(f"[{verdict}: ", frame["_ws.col.Info"][0])

    def test_a_capture_with_one_bad_frame_does_not_pass(self):
        frames = decode_frames([bytes(read_examples()[0].frame), spoiled()[0][2]])
        self.assertEqual([problem(frame) is None for frame in frames], [True, False])


def check_capture(pcap: pathlib.Path) -> int:
    frames = decode(pcap)
    bad = [(n, why) for n, frame in enumerate(frames, 1) if (why := problem(frame))]
    for n, why in bad[:10]:
        print(f"{pcap}: frame {n} of EtherType 0x88B5: {why}")
    print(f"{pcap}: {len(frames)} frames of EtherType 0x88B5, {len(bad)} do not decode")
    return 1 if bad or not frames else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pcap", type=pathlib.Path, help="check this capture instead")
    args = parser.parse_args()
    if shutil.which("tshark") is None:
        print("skipped: no tshark (package tshark)")
        return 77
    if args.pcap:
        return check_capture(args.pcap)
    return 0 if unittest.main(argv=sys.argv[:1], exit=False).result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
