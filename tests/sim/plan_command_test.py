# SPDX-License-Identifier: BSD-3-Clause
"""`fabric-sim plan` as a user calls it. usage: plan_command_test.py FABRIC-SIM"""
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree as xml

FABRIC_SIM = sys.argv.pop(1)
NB_PAGES, PAGE = 256, 4096
SVG = "{http://www.w3.org/2000/svg}"


class PlanCommandTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def plan(self, *options):
        size = () if "--image-bytes" in options else ("--image-bytes", NB_PAGES * PAGE)
        return subprocess.run([FABRIC_SIM, "plan", *map(str, (*size, *options))], capture_output=True, text=True)

    def answer(self, *options):
        file = self.folder / "answer.json"
        done = self.plan("--json", file, *options)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(file.read_text())

    def test_one_number_of_clones_is_an_object(self):
        row = self.answer("--clones", 3)
        self.assertEqual((row["clones"], row["finished"], row["extrapolated"], row["from_start_up"]), (3, True, False, False))
        self.assertGreater(row["wire_bytes"], NB_PAGES * PAGE)
        self.assertLess(row["wire_to_image_ratio"], 1.3)
        self.assertGreaterEqual(row["seconds"], row["seconds_p50"])

    def test_several_numbers_are_rows_in_order_each_once(self):
        self.assertEqual([row["clones"] for row in self.answer("--clones", "4,1,4,2")], [1, 2, 4])

    def test_the_same_seed_has_the_same_answer(self):
        first, second = (self.answer("--clones", 4, "--loss", 5, "--seed", 7) for _ in range(2))
        for row in (first, second):
            del row["took_s"]
        self.assertEqual(first, second)

    def test_a_link_half_as_fast_takes_about_twice_the_time(self):
        fast, slow = (self.answer("--clones", 2, "--gbps", gbps)["seconds"] for gbps in (0.2, 0.1))
        self.assertAlmostEqual(slow / fast, 2, delta=0.3)

    def test_a_longer_way_takes_longer_where_each_page_is_waited_for(self):
        near, far = (self.answer("--clones", 1, "--no-push", "--prefetch", 0, "--delay-us", us)["seconds"] for us in (10, 1010))
        self.assertAlmostEqual(far - near, NB_PAGES * 4 * 1e-3, delta=0.1)

    def test_a_short_queue_loses_frames(self):
        options = ("--clones", 2, "--gbps", 1, "--slow", 1, "--slow-gbps", 0.1)
        short, long = (self.answer(*options, "--queue-bytes", size)["queue_drops"] for size in ("16K", "16M"))
        self.assertGreater(short, 0)
        self.assertEqual(long, 0)

    def test_a_clone_with_a_slow_link_is_done_later(self):
        row = self.answer("--clones", 3, "--gbps", 0.2, "--slow", 1, "--slow-gbps", 0.02)
        self.assertEqual(row["seconds_slow"], row["seconds"])
        self.assertGreater(row["seconds_slow"], 3 * row["seconds_p50"])

    def trace(self, name, text):
        file = self.folder / name
        file.write_text(text)
        return file

    def test_clones_touch_what_is_in_a_trace_alone(self):
        one, other = self.trace("one", "7-9\n0x20\n8\n"), self.trace("other", "# of another clone\n7\n100-101\n")
        row = self.answer("--clones", 4, "--no-push", "--prefetch", 0, "--trace", one, "--trace", other)
        self.assertEqual(row["traces"], [str(one), str(other)])
        self.assertEqual(row["pages_multicast"], 6)  # each page of the two once

    def test_a_trace_that_is_none_is_told(self):
        for name, text, said in (("empty", "# nothing\n", "no page"), ("words", "7\nseven\n", "words:2: neither"),
                                 ("beyond", f"{NB_PAGES}\n", f"beyond:1: page {NB_PAGES} is beyond the image")):
            done = self.plan("--trace", self.trace(name, text))
            self.assertEqual(done.returncode, 2, name)
            self.assertIn(said, done.stderr)
        done = self.plan("--trace", self.folder / "none")
        self.assertEqual((done.returncode, "none" in done.stderr), (2, True))

    def test_a_trace_is_neither_drawn_nor_extrapolated(self):
        file = self.trace("one", "7\n")
        self.assertNotEqual(self.plan("--trace", file, "--touch", 10).returncode, 0)
        done = self.plan("--trace", file, "--clones", 128, "--image-bytes", "1G")
        self.assertEqual(done.returncode, 2)
        self.assertIn("at most 512 MiB", done.stderr)

    def test_the_plot_has_a_dot_for_each_figure(self):
        file = self.folder / "plot.svg"
        done = self.plan("--clones", "1,2,4", "--svg", file)
        self.assertEqual(done.returncode, 0, done.stderr)
        root = xml.parse(file).getroot()
        self.assertEqual(root.tag, f"{SVG}svg")
        lines = root.findall(f".//{SVG}polyline")
        self.assertEqual(len(lines), 5)  # three times and two counts of bytes
        self.assertEqual(len(root.findall(f".//{SVG}circle")), 3 * len(lines))
        for dot in root.iter(f"{SVG}circle"):
            self.assertTrue(0 < float(dot.get("cx")) < float(root.get("width")))

    def test_what_makes_no_sense_is_refused(self):
        for options in (("--clones", 0), ("--clones", 5000), ("--gbps", "fast"), ("--loss", 60), ("--loss-at", "home"),
                        ("--flow-rule", "median"), ("--tagged", "some"), ("--end-game", -1),
                        ("--image-bytes", 4097)):
            done = self.plan(*options)
            self.assertNotIn(done.returncode, (0, 1), options)
            self.assertIn(options[0], done.stdout + done.stderr)

    def test_a_file_that_cannot_be_written_is_told_before_the_work(self):
        for option in ("--json", "--svg"):
            began = time.monotonic()
            done = self.plan(option, self.folder / "none" / "file", "--clones", 64, "--image-bytes", "1G")
            self.assertEqual(done.returncode, 2)
            self.assertIn("cannot write", done.stderr)
            self.assertLess(time.monotonic() - began, 5)

    def test_a_signal_ends_it(self):
        with subprocess.Popen([FABRIC_SIM, "plan", "--clones", "64", "--image-bytes", "1G"],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            time.sleep(0.5)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            process.communicate()
        self.assertEqual(process.returncode, 130)
        self.assertLess(time.monotonic() - began, 30)


if __name__ == "__main__":
    unittest.main()
