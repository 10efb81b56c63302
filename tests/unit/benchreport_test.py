#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Results of benchmarks as CSV and HTML, and two of them compared."""
import csv
import pathlib
import sys
import tempfile
import unittest
import xml.etree.ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
sys.dont_write_bytecode = True
import benchreport
from benchreport import ReportError


def result(ratios, benchmark="serve", case="one page"):
    return {"benchmark": benchmark, "unit": "pages/s",
            "cases": [{"case": case, "runs": [{"rate": 1000 * ratio, "limit": 1000} for ratio in ratios]}]}


class Comparison(unittest.TestCase):
    def verdict(self, before, after):
        (row,), differences = benchreport.compare(result(before), result(after))
        self.assertEqual(differences, {})
        self.assertLessEqual(row["low"], row["change"])
        self.assertGreaterEqual(row["high"], row["change"])
        return row["verdict"]

    def test_a_change_beyond_what_runs_differ_by_is_shown(self):
        self.assertEqual(self.verdict([.50, .51, .49, .50, .52], [.70, .71, .69, .72, .70]), "better")
        self.assertEqual(self.verdict([.70, .71, .69, .72, .70], [.50, .51, .49, .50, .52]), "worse")

    def test_one_within_it_is_not(self):
        self.assertEqual(self.verdict([.5, .9, .4, .7, .6], [.6, .8, .5, .9, .4]), "no difference shown")

    def test_of_times_less_is_better(self):
        slow, fast = ({**result(ratios), "unit": "us"} for ratios in ([1.70, 1.71, 1.69, 1.72, 1.70], [1.50, 1.51, 1.49, 1.50, 1.52]))
        (row,), _ = benchreport.compare(slow, fast)
        self.assertEqual(row["verdict"], "better")
        (row,), _ = benchreport.compare(fast, slow)
        self.assertEqual(row["verdict"], "worse")

    def test_few_runs_say_nothing(self):
        for nb_runs in (1, 4):
            self.assertIn("say nothing", self.verdict([.5] * nb_runs, [.7] * nb_runs))

    def test_options_that_differ_are_named(self):
        before, after = {**result([.5]), "sealed": True, "ratio": .5, "mtu": 9000}, {**result([.5]), "mtu": 1500}
        _, differences = benchreport.compare(before, after)
        self.assertEqual(differences, {"sealed": (True, None), "mtu": (9000, 1500)})

    def test_a_result_without_cases_is_one(self):
        ring = {"benchmark": "ring", "unit": "pages/s", "runs": [{"rate": 8, "limit": 10}] * 3}
        (row,), _ = benchreport.compare(ring, ring)
        self.assertEqual((row["case"], row["before"], row["change"]), ("ring", .8, 1))

    def test_results_of_different_things_are_refused(self):
        for other in (result([.5], benchmark="install"), result([.5], case="ranges")):
            with self.assertRaisesRegex(ReportError, "no case in common"):
                benchreport.compare(result([.5]), other)

    def test_what_has_no_rates_is_refused(self):
        for other in ({"benchmark": "fork-pause", "runs": [{"pause_ms": 3}]}, {"cases": [{}]}, {"cases": "no"}, [], 7,
                      result([0]), result([])):
            with self.assertRaisesRegex(ReportError, "no rates and limits"):
                benchreport.compare(other, other)


class Files(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "file"

    def test_csv_has_a_line_a_run(self):
        benchreport.write_csv(result([.5, .25]), self.path)
        with open(self.path, newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual([(row["case"], row["run"], row["ratio"]) for row in rows],
                         [("one page", "1", "0.5"), ("one page", "2", "0.25")])

    def test_html_needs_nothing_else_and_takes_any_name(self):
        benchreport.write_html({**result([.5, .25], case="<b>&"), "environment": {"cpu": "<x>"}}, self.path)
        text = self.path.read_text()
        self.assertIn("&lt;b&gt;&amp;", text)
        self.assertIn("&lt;x&gt;", text)
        self.assertNotIn("src=", text)
        svg = xml.etree.ElementTree.fromstring(text[text.index("<svg"):text.index("</svg>") + 6])
        self.assertEqual(sum(element.tag.endswith("circle") for element in svg), 4)


if __name__ == "__main__":
    unittest.main()
