#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""sf-descriptor, run as a program on the example of docs/descriptor-format.md.

usage: sf_descriptor_test.py PROGRAM
"""
import json
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = sys.argv.pop(1) if len(sys.argv) > 1 else ""


def example():
    text = (ROOT / "docs/descriptor-format.md").read_text()
    return bytes.fromhex("".join(re.findall(r"^[0-9a-f]{4} ((?: [0-9a-f]{2})+)$", text, re.M)))


class Show(unittest.TestCase):
    def show(self, content, *options):
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            done = subprocess.run([PROGRAM, "show", file.name, *options], capture_output=True, text=True, check=False)
            return done.returncode, done.stdout, done.stderr.replace(file.name, "FILE")

    def test_json_has_the_example(self):
        status, out, _ = self.show(example(), "--json")
        self.assertEqual(status, 0)
        report = json.loads(out)
        self.assertEqual(report["image_id"], "1122334455667788")
        self.assertEqual((report["group_mac"], report["server_mac"]), ("03:e2:32:f6:83:1b", "02:5f:00:00:00:01"))
        self.assertEqual(report["descriptor_bytes"], len(example()))
        self.assertEqual(report["image_bytes"], 1000 * 4096)
        self.assertEqual(report["frozen_at"], "2023-11-14T22:13:20.000000000Z")
        self.assertEqual(report["parent_uuid"], "a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf")
        self.assertEqual([block["name"] for block in report["blocks"]], ["pc.ram", "pc.rom"])
        self.assertEqual(report["sections"], [{"type": 1, "name": "qemu-config", "optional": False, "bytes": 2}])
        self.assertEqual(report["zero_pages"], {"pages": 202, "ranges": 2, "percent": 20.2})
        self.assertEqual(report["absent_pages"]["pages"], 40)
        self.assertEqual(report["working_set"]["pages"], 4)
        self.assertEqual(report["machine_args"], ["qemu-system-x86_64", "-M", "pc"])

    def test_table_has_the_example(self):
        status, out, _ = self.show(example())
        self.assertEqual(status, 0)
        for text in ('"pc.ram"', "qemu-config", "20.20%", "1122334455667788", "02:5f:00:00:00:01"):
            self.assertIn(text, out)

    def test_a_bad_file_is_an_error_that_says_why(self):
        for content, why in [(b"", "truncated"), (b"hello", "not a VM descriptor"), (example()[:-1], "truncated"),
                             (example()[:-1] + b"\xff", "corrupt")]:
            status, out, error = self.show(content, "--json")
            self.assertEqual((status, out), (1, ""))
            self.assertRegex(error, f"^sf-descriptor: FILE: descriptor: .*{why}.*: Bad message\n$")


class AddWorkingSet(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file, self.record = Path(folder.name) / "FILE", Path(folder.name) / "RECORD"
        self.file.write_bytes(example())

    def add(self, record):
        self.record.write_text(record)
        done = subprocess.run([PROGRAM, "add-working-set", self.file, self.record], capture_output=True, text=True,
                              check=False)
        self.assertEqual(done.stdout, "")
        return done.returncode, done.stderr.replace(str(self.record), "RECORD").replace(str(self.file), "FILE")

    def shown(self):
        done = subprocess.run([PROGRAM, "show", "--json", self.file], capture_output=True, check=True)
        return json.loads(done.stdout)

    def test_it_takes_the_place_of_the_one_before(self):
        before = self.shown()
        self.assertEqual(self.add("900-999\n17-17\n5\n"), (0, ""))
        after = self.shown()
        self.assertEqual((after["working_set"]["pages"], after["working_set"]["ranges"]), (102, 3))
        changed = {key for key in after if after[key] != before[key]}
        self.assertEqual(changed, {"working_set", "descriptor_bytes", "descriptor_percent"})

    def test_the_same_list_makes_the_same_file(self):
        self.assertEqual(self.add("96\n10-12 # as in the example\n"), (0, ""))
        self.assertEqual(self.file.read_bytes(), example())

    def test_a_bad_record_is_an_error_that_says_where_and_changes_nothing(self):
        for record, why in [("1\nx\n", "RECORD:2: neither a page number nor a range"),
                            ("1\n\n999-1000\n", "RECORD:3: page 1000 is beyond the image of 1000"),
                            ("5-9\n7\n", "descriptor: working_set: the range at page 7 begins before page 10, "
                                          "where another ends")]:
            self.assertEqual(self.add(record), (1, f"sf-descriptor: {why}: Invalid argument\n"))
            self.assertEqual(self.file.read_bytes(), example())
        self.assertEqual(sorted(path.name for path in self.file.parent.iterdir()), ["FILE", "RECORD"])

    def test_a_file_that_is_no_descriptor_stays_as_it_is(self):
        self.file.write_bytes(b"hello")
        status, error = self.add("1\n")
        self.assertEqual(status, 1)
        self.assertIn("FILE: descriptor: ", error)
        self.assertEqual(self.file.read_bytes(), b"hello")


class Arguments(unittest.TestCase):
    def test_wrong_ones_are_status_2(self):
        for arguments in [], ["show"], ["hide", "FILE"], ["add-working-set", "FILE"]:
            done = subprocess.run([PROGRAM, *arguments], capture_output=True, check=False)
            self.assertEqual(done.returncode, 2)


if __name__ == "__main__":
    unittest.main()
