#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""sf-xen-agent as a program of this host, with a pseudo terminal for xenstore and files in place of the kernel's.
usage: sf_xen_agent_test.py SF-XEN-AGENT"""
import mmap
import os
import pathlib
import pty
import select
import struct
import subprocess
import sys
import tempfile
import time
import tty
import unittest

AGENT = None
TIMEOUT_S = 20
BUDDY = 1 << 10
NB_PAGES = 256
READ, WATCH, WRITE, EVENT, ERROR = 2, 4, 11, 15, 16
PRESENCE_AT, FREE_AT = 64, 64 + NB_PAGES // 4
MAGIC = b"SFBITMAP"


class Xenstore:
    """Xen's end of /dev/xen/xenbus: a few nodes."""

    def __init__(self):
        self.host, self.guest = pty.openpty()
        tty.setraw(self.guest)
        self.path = os.ttyname(self.guest)
        self.nodes = {"memory/static-max": str(NB_PAGES * 4)}
        self.watched, self.event_first = set(), False

    def close(self):
        os.close(self.host)
        os.close(self.guest)

    def _read(self, size, deadline):
        data = b""
        while len(data) < size:
            ready, _, _ = select.select([self.host], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"{len(data)} bytes of {size}")
            data += os.read(self.host, size - len(data))
        return data

    def _send(self, kind, body, request=0):
        os.write(self.host, struct.pack("<4I", kind, request, 0, len(body)) + body)

    def event(self, node):
        self._send(EVENT, f"{node}\0{node}\0".encode())

    def put(self, node, value):
        self.nodes[node] = value
        if node in self.watched:
            self.event(node)

    def serve_one(self, seconds=TIMEOUT_S):
        """@return (kind, node)"""
        deadline = time.monotonic() + seconds
        kind, request, _, size = struct.unpack("<4I", self._read(16, deadline))
        node, _, rest = self._read(size, deadline).partition(b"\0")
        node = node.decode()
        if kind == WATCH and self.event_first:
            self.event(node)
        if kind == READ and node not in self.nodes:
            self._send(ERROR, b"ENOENT\0", request)
        elif kind == READ:
            self._send(READ, self.nodes[node].encode(), request)
        else:
            self._send(kind, b"OK\0", request)
        if kind == WRITE:
            self.nodes[node] = rest.decode()
        if kind == WATCH:
            self.watched.add(node)
            if not self.event_first:
                self.event(node)
        return kind, node

    def serve_until_written(self, node):
        while self.serve_one() != (WRITE, node):
            pass
        return self.nodes[node]

    def serve_until_silent(self):
        try:
            while True:
                self.serve_one(0.3)
        except TimeoutError:
            pass


class XenAgentTest(unittest.TestCase):
    def setUp(self):
        tmp = tempfile.TemporaryDirectory(dir="/dev/shm")
        self.addCleanup(tmp.cleanup)
        self.dir = pathlib.Path(tmp.name)
        self.store = Xenstore()
        self.addCleanup(self.store.close)
        self.file, self.flags, self.cmdline = self.dir / "bitmap", self.dir / "flags", self.dir / "cmdline"
        self.cmdline.write_text("console=hvc0\n")
        self.set_free([])

    def set_free(self, pages):
        self.flags.write_bytes(b"".join(struct.pack("<Q", BUDDY if p in pages else 0) for p in range(NB_PAGES + 10)))

    def start(self, *args):
        env = {"SF_XENBUS": self.store.path, "SF_BITMAP_FILE": str(self.file), "SF_KPAGEFLAGS": str(self.flags),
               "SF_CMDLINE": str(self.cmdline)}
        agent = subprocess.Popen([AGENT, *args], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        def end():
            agent.kill()
            agent.communicate()
        self.addCleanup(end)
        return agent

    def ready(self, *args):
        agent = self.start(*args)
        announced = self.store.serve_until_written("data/snowfabric/bitmap")
        self.store.serve_until_silent()
        fd = os.open(self.file, os.O_RDWR)
        self.memory = mmap.mmap(fd, 2 << 20)
        os.close(fd)
        self.addCleanup(self.memory.close)
        return agent, announced

    def ask(self, token):
        self.store.put("data/snowfabric/ask", token)
        return self.store.serve_until_written("data/snowfabric/answer")

    def free(self):
        words = self.memory[FREE_AT:FREE_AT + NB_PAGES // 8]
        return {p for p in range(NB_PAGES) if words[p // 8] >> (p % 8) & 1}

    def states(self):
        words = self.memory[PRESENCE_AT:PRESENCE_AT + NB_PAGES // 4]
        return [words[p // 4] >> (p % 4 * 2) & 3 for p in range(NB_PAGES)]

    def become_a_clone(self, present=()):
        words = bytearray(NB_PAGES // 4)
        for page in present:
            words[page // 4] |= 3 << (page % 4 * 2)
        self.memory[PRESENCE_AT:FREE_AT] = bytes(words)
        self.memory[12:16] = struct.pack("<I", 77)
        self.store.nodes = {"memory/static-max": str(NB_PAGES * 4)}
        self.store.event("data/snowfabric/ask")

    def test_it_announces_a_bitmap_of_its_ram(self):
        _, announced = self.ready()
        frame, nb_pages, generation = map(int, announced.split(" "))
        self.assertGreater(frame, 0)
        self.assertEqual((nb_pages, generation), (1, 0))
        self.assertEqual(self.memory[:8], MAGIC)
        self.assertEqual(struct.unpack("<IIQ", self.memory[8:24]), (1, 0, NB_PAGES))

    def test_an_event_in_front_of_an_answer_is_not_missed(self):
        self.store.event_first = True
        self.ready()

    def test_it_says_what_is_free_anew_for_each_question(self):
        self.ready()
        self.set_free({3, 64, NB_PAGES - 1, NB_PAGES + 3})  # the last is no page of RAM
        self.assertEqual(self.ask("0a"), "0a ok")
        self.assertEqual(self.free(), {3, 64, NB_PAGES - 1})
        self.set_free({5})
        self.assertEqual(self.ask("0b"), "0b ok")
        self.assertEqual(self.free(), {5})
        self.assertEqual(set(self.states()), {0})  # a parent claims nothing

    def test_a_kernel_that_fills_free_pages_is_refused(self):
        self.cmdline.write_text("page_poison=1\n")
        self.ready()
        self.assertRegex(self.ask("0c"), "^0c refused free pages are not zero here")

    def test_a_clone_announces_itself_and_claims_what_is_free_and_absent(self):
        self.ready("200")
        self.set_free({7, 8, 100})
        self.become_a_clone(present=[8])
        self.assertRegex(self.store.serve_until_written("data/snowfabric/bitmap"), " 77$")
        self.store.serve_until_silent()
        deadline = time.monotonic() + TIMEOUT_S
        while self.states()[7] != 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        states = self.states()
        self.assertEqual([states[p] for p in (6, 7, 8, 100)], [0, 2, 3, 2])

    def test_a_clone_of_a_clone_goes_by_no_look_at_its_parent(self):
        self.ready("100")
        self.become_a_clone()
        self.store.serve_until_silent()
        self.set_free({7})
        self.assertEqual(self.ask("0a"), "0a ok")  # from here on it may wake up as another
        self.set_free({9})
        before = self.states()
        self.store.serve_until_silent()
        time.sleep(0.5)
        self.assertEqual(self.states(), before)
        self.become_a_clone()
        self.store.nodes.pop("data/snowfabric/ask", None)
        self.store.serve_until_silent()
        deadline = time.monotonic() + TIMEOUT_S
        while self.states()[9] != 2 and time.monotonic() < deadline:
            self.store.serve_until_silent()
        self.assertEqual(self.states()[9], 2)
        self.assertEqual(self.states()[7], 0)

    def test_when_the_freeze_is_over_it_claims_again(self):
        self.ready("100")
        self.become_a_clone()
        self.store.serve_until_silent()
        self.ask("0a")
        self.store.put("data/snowfabric/ask", "")
        self.set_free({9})
        deadline = time.monotonic() + TIMEOUT_S
        while self.states()[9] != 2 and time.monotonic() < deadline:
            self.store.serve_until_silent()
        self.assertEqual(self.states()[9], 2)

    def test_told_never_to_claim_it_does_not(self):
        self.ready("0")
        self.set_free({7})
        self.become_a_clone()
        self.store.serve_until_silent()
        self.assertEqual(set(self.states()), {0})

    def test_the_next_agent_takes_over_the_bitmap_of_a_killed_one(self):
        agent, first = self.ready("0")
        self.become_a_clone(present=[9])
        self.store.serve_until_silent()
        agent.kill()
        agent.wait()
        self.start("0")
        again = self.store.serve_one()  # it reads its size
        self.store.serve_until_silent()
        self.assertEqual(again, (READ, "memory/static-max"))
        self.assertEqual(self.states()[9], 3)
        self.assertEqual(self.store.nodes["data/snowfabric/bitmap"], first[:-1] + "77")

    def test_where_there_is_no_xen_it_says_so(self):
        done = subprocess.run([AGENT], env={"SF_XENBUS": str(self.dir / "nothing")}, capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("/dev/xen/xenbus: No such file", done.stderr)

    def test_arguments_that_are_none_are_refused(self):
        for args in (["x"], ["-1"], ["1", "2"]):
            self.assertEqual(subprocess.run([AGENT, *args], capture_output=True).returncode, 2)
        self.assertIn(b"CLAIM-MS", subprocess.run([AGENT, "--help"], capture_output=True).stdout)


if __name__ == "__main__":
    AGENT = sys.argv.pop(1)
    unittest.main()
