#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What sf-agent says of free pages, with files in place of the kernel's. usage: sf_free_test.py SF-AGENT"""
import os
import pathlib
import struct
import sys
import unittest

import sf_agent_test
from sf_agent_test import AgentTest, Port

BUDDY, LRU = 1 << 10, 1 << 5


class FreeTest(AgentTest):
    def setUp(self):
        super().setUp()
        self.free = Port()
        self.addCleanup(self.free.close)
        self.flags, self.cmdline = self.dir / "kpageflags", self.dir / "cmdline"
        self.cmdline.write_text("console=ttyS0 quiet\n")
        self.write_flags([])
        self.env |= {"SF_FREE_PORT": self.free.path, "SF_KPAGEFLAGS": str(self.flags), "SF_CMDLINE": str(self.cmdline)}

    def write_flags(self, flags):
        self.flags.write_bytes(struct.pack(f"<{len(flags)}Q", *flags))

    def ask(self, token="ab12"):
        """[(first, number)], or the text of a refusal."""
        word, same, rest = self.free.ask(f"FREE {token}").split(" ", 2)
        self.assertEqual(same, token)
        if word == "REFUSED":
            return rest
        self.assertEqual(word, "RANGES")
        ranges = [tuple(map(int, self.free.line().split(" "))) for _ in range(int(rest))]
        self.assertEqual(self.free.line(), "END")
        return ranges

    def test_free_pages_are_runs_of_pages_with_the_buddy_bit(self):
        self.agent()
        self.assertEqual(self.ask(), [])
        self.write_flags([0, BUDDY, BUDDY | LRU, LRU, BUDDY, ~BUDDY & 0xffffffff])
        self.assertEqual(self.ask("7"), [(1, 2), (4, 1)])

    def test_a_run_goes_on_from_one_read_to_the_next_and_a_long_answer_comes_whole(self):
        self.agent()
        self.write_flags([BUDDY] * 20000 + [0, BUDDY] * 30000 + [BUDDY] * 3)
        self.assertEqual(self.ask(), [(0, 20000)] + [(20001 + 2 * i, 1) for i in range(29999)] + [(79999, 4)])

    def test_half_a_number_at_the_end_is_no_page(self):
        self.agent()
        self.flags.write_bytes(struct.pack("<Q", BUDDY) + b"\xff" * 5)
        self.assertEqual(self.ask(), [(0, 1)])

    def test_it_answers_while_the_agent_waits_for_a_fork(self):
        self.agent()
        self.assertEqual(self.port.ask("FORK 1"), "CLONE 1")
        self.write_flags([BUDDY])
        self.assertEqual(self.ask(), [(0, 1)])
        self.assertEqual(self.port.ask("RET 0"), "READY 0")

    def test_a_kernel_that_poisons_free_pages_is_refused(self):
        self.agent()
        for word in ("page_poison=1", "page_poison=on", "page_poison=Y", "page_poison=true", "page_poison="):
            self.cmdline.write_text(f"quiet {word} panic=-1\n")
            self.assertEqual(self.ask(), f"free pages are not zero here: the kernel was started with {word}")
        for word in ("page_poison=0", "page_poison=off", "page_poison=n", "xpage_poison=1", "page_poisoning"):
            self.cmdline.write_text(f"quiet {word}\n")
            self.assertEqual(self.ask(), [])

    def test_what_cannot_be_read_is_refused_and_why_is_said(self):
        self.agent()
        self.flags.unlink()
        self.assertEqual(self.ask(), f"cannot open {self.flags}: No such file or directory")
        self.flags.mkdir()
        self.assertEqual(self.ask(), f"cannot read {self.flags}: Is a directory")
        self.cmdline.unlink()
        self.assertEqual(self.ask(), f"cannot open {self.cmdline}: No such file or directory")

    def test_other_lines_are_errors(self):
        self.agent()
        for line in ("FREE", "FREE ", "FREE x", "FREE 1 2", "FREE " + "1" * 33, "free 1", "PING", ""):
            self.assertIn("ERROR waiting for FREE", self.free.ask(line))
        self.assertIn("ERROR a line longer", self.free.ask("FREE " + "1" * 600))
        self.assertEqual(self.ask(), [])

    def test_without_the_port_the_agent_works_as_ever(self):
        self.env["SF_FREE_PORT"] = str(self.dir / "none")
        self.agent()
        self.assertEqual(self.port.ask("PING"), "PONG 0")

    def test_it_ends_with_the_agent(self):
        agent = self.agent()
        children = pathlib.Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        self.assertEqual(len(children), 1)
        agent.kill()
        self.assertEqual(self.ended(agent)[0], -9)  # its output has ended too
        self.assertFalse(os.path.exists(f"/proc/{children[0]}/exe"))


class ChurnTest(AgentTest):
    def test_memory_that_comes_and_goes_is_verified(self):
        self.agent()
        self.assertEqual(self.port.ask("CHURN 0"), "CHURNING mb=0 bad=0 verified=0")
        self.assertEqual(self.port.ask("CHURN 4"), "CHURNING mb=4 bad=0 verified=0")
        self.assertRegex(self.port.ask("CHURN 2"), r"^CHURNING mb=2 bad=0 verified=\d+$")
        self.assertRegex(self.port.ask("CHURN 0"), r"^CHURNING mb=0 bad=0 verified=\d+$")
        self.assertIn("ERROR CHURN needs", self.port.ask("CHURN x"))


if __name__ == "__main__":
    sf_agent_test.main()
