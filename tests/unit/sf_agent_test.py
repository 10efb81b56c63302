#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""sf-agent and sf-clone as programs of this host, with a pseudo terminal for the port. usage: sf_agent_test.py SF-AGENT

They run in a user namespace, with hostname and network of their own and no right to the host's random numbers: what
makes a clone out of a VM fails there before it has changed anything.
"""
import json
import os
import pathlib
import pty
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tty
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tools"))
import vmlib

AGENT = None
APART = ["unshare", "--map-root-user", "--uts", "--net"]
TIMEOUT_S = 20
CLIENT = """import socket, sys
with socket.create_connection(("127.0.0.1", 8080)) as sock:
  sock.sendall(sys.argv[1].encode())
  try: print(sock.makefile().read(), end="")
  except ConnectionResetError: pass
"""


class Port:
    """The host's end of a port, and the path of the guest's."""

    def __init__(self):
        self.host, self.guest = pty.openpty()
        tty.setraw(self.guest)
        self.path, self.pending = os.ttyname(self.guest), b""

    def send(self, line):
        data = line if isinstance(line, bytes) else line.encode()
        os.write(self.host, data + b"\n")

    def line(self, timeout_s=TIMEOUT_S):
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self.pending:
            ready, _, _ = select.select([self.host], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no line; so far {self.pending!r}")
            self.pending += os.read(self.host, 4096)
        line, _, self.pending = self.pending.partition(b"\n")
        return line.decode()

    def ask(self, line):
        self.send(line)
        return self.line()

    def close(self):
        os.close(self.host)
        os.close(self.guest)


class AgentTest(unittest.TestCase):
    def setUp(self):
        self.port = Port()
        self.addCleanup(self.port.close)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = pathlib.Path(folder.name)
        shutil.copy2(AGENT, self.dir / "sf-agent")
        (self.dir / "sf-clone").symlink_to("sf-agent")
        self.env = {**os.environ, "SF_PORT": self.port.path, "SF_AGENT_SOCKET": str(self.dir / "agent.sock")}

    def spawn(self, *args):
        process = subprocess.Popen([*APART, self.dir / args[0], *args[1:]], env=self.env, text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def agent(self):
        process = self.spawn("sf-agent", "8080")
        self.assertEqual(self.port.line(), "HELLO 1")
        return process

    def clone(self, n, expect=0):
        process = self.spawn("sf-clone", str(n))
        if expect == 0:
            self.assertEqual(self.port.line(), f"CLONE {n}")
        return process

    def ended(self, process):
        out, err = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, out, err


class ForkTest(AgentTest):
    def test_the_parent_of_a_fork_gets_0_through_the_agent(self):
        self.agent()
        process = self.clone(3)
        self.assertEqual(self.port.ask("RET 0"), "READY 0")
        self.assertEqual(self.ended(process), (0, "0\n", ""))

    def test_without_an_agent_the_port_is_used_itself(self):
        process = self.clone(2)
        self.assertEqual(self.port.ask("RET 0"), "READY 0")
        self.assertEqual(self.ended(process), (0, "0\n", ""))

    def test_a_fork_refused_by_the_host_is_an_error_and_the_next_one_is_served(self):
        self.agent()
        process = self.clone(1)
        self.port.send("FAIL no room")
        status, out, err = self.ended(process)
        self.assertEqual((status, out), (1, ""))
        self.assertIn("canceled", err)
        process = self.clone(1)
        self.port.ask("RET 0")
        self.assertEqual(self.ended(process)[0], 0)

    def test_programs_that_fork_at_the_same_time_take_turns(self):
        self.agent()
        first = self.clone(1)
        second = self.spawn("sf-clone", "2")
        self.assertEqual(self.port.ask("RET 0"), "READY 0")
        self.assertEqual(self.port.line(), "CLONE 2")
        self.assertEqual(self.port.ask("RET 0"), "READY 0")
        self.assertEqual((self.ended(first)[:2], self.ended(second)[:2]), ((0, "0\n"), (0, "0\n")))

    def test_the_host_may_ask_for_a_fork(self):
        self.agent()
        self.assertEqual(self.port.ask("FORK 2"), "CLONE 2")
        self.assertEqual(self.port.ask("RET 0"), "READY 0")
        for wrong in ("FORK", "FORK 0", "FORK 4097", "FORK -1", "FORK x"):
            self.assertIn("ERROR FORK needs", self.port.ask(wrong))

    def test_a_wrong_number_of_clones_asks_nobody(self):
        for wrong in ("0", "4097", "-1", "x", "1x", ""):
            self.assertEqual(self.ended(self.clone(wrong, expect=None))[0], 2)
        self.assertEqual(self.port.pending, b"")

    def test_without_a_port_there_is_an_error(self):
        del self.env["SF_PORT"]
        status, _, err = self.ended(self.clone(1, expect=None))
        self.assertEqual((status, "No such device" in err), (1, True))


class AnswerTest(AgentTest):
    """What RET may say. Each refusal leaves the fork waiting for a better answer."""

    GOOD = vmlib.identity_of(0, 1).ret()

    def setUp(self):
        super().setUp()
        self.agent()
        self.assertEqual(self.port.ask("FORK 2"), "CLONE 2")

    def tearDown(self):
        self.assertEqual(self.port.ask("RET 0"), "READY 0")  # whatever came before

    def test_each_mistake_is_named(self):
        seed = "seed=" + "0" * 128
        wrong = {"RET": "id from 0 to 2", "RET x": "id from 0 to 2", "RET 3": "id from 0 to 2",
                 "RET -1": "id from 0 to 2", "RET 1": "needs hostname", "RET 1 hostname=a": "needs seed", "PING": "waiting for RET",
                 f"RET 1 hostname=-a {seed}": "cannot be used", f"RET 1 hostname={'a' * 64} {seed}": "cannot be used",
                 f"RET 1 hostname=a {seed}0": "cannot be used", f"RET 1 hostname=a seed={'0' * 127}g": "cannot be used",
                 f"RET 1 hostname=a hostname=a {seed}": "twice", f"RET 1 junk hostname=a {seed}": "cannot be used"}
        for mac in ("01:00:00:00:00:01", "00:00:00:00:00:00", "02:00:00:00:00", "02-00-00-00-00-01", "2:0:0:0:0:1"):
            wrong[f"RET 1 hostname=a mac={mac} ip=10.0.0.1/8 {seed}"] = "cannot be used"
        for ip in ("10.0.0.1", "10.0.0.1/0", "10.0.0.1/31", "10.0.0/8", "0.0.0.0/8", "10.0.0.1/8x", "::1/8"):
            wrong[f"RET 1 hostname=a mac=02:00:00:00:00:01 ip={ip} {seed}"] = "cannot be used"
        wrong[f"RET 1 hostname=a mac=02:00:00:00:00:01 {seed}"] = "both mac= and ip="
        wrong[f"RET 1 hostname=a mac=02:00:00:00:00:01 ip=10.0.0.1/8 {seed}"] = "this VM no eth0"
        for line, reason in wrong.items():
            with self.subTest(line[:80]):
                answer = self.port.ask(line)
                self.assertTrue(answer.startswith("ERROR "), answer)
                self.assertIn(reason, answer)

    def test_what_cannot_be_set_is_an_error(self):
        answer = self.port.ask(f"RET 1 hostname=a later=1 seed={'0' * 128}")
        self.assertEqual(answer, "ERROR RNDADDENTROPY failed: Operation not permitted")

    def test_every_prefix_of_an_answer_is_refused(self):
        for length in range(1, len(self.GOOD)):
            answer = self.port.ask(self.GOOD[:length])
            self.assertTrue(answer.startswith("ERROR "), (length, answer))

    def test_every_flipped_bit_is_survived(self):
        good = self.GOOD.encode()
        for bit in range(len(good) * 8):
            line = bytearray(good)
            line[bit // 8] ^= 1 << bit % 8
            if b"\n" in line:  # two lines, each with its answer
                self.port.send(bytes(line))
                self.assertTrue(self.port.line().startswith("ERROR "), bit)
                self.assertTrue(self.port.line().startswith("ERROR "), bit)
                continue
            answer = self.port.ask(bytes(line))
            if answer == "READY 0":  # '1' became '0'
                self.assertEqual(self.port.ask("FORK 2"), "CLONE 2")
            else:
                self.assertTrue(answer.startswith("ERROR "), (bit, answer))

    def test_a_line_too_long_is_dropped_whole(self):
        for length in (512, 513, 1024, 5000):
            self.assertIn("longer than 511", self.port.ask("RET 0" + "x" * (length - 5)))
        self.assertIn("waiting for RET", self.port.ask("x" * 511))


class WorkloadTest(AgentTest):
    def dirty(self, nb_pages):
        answer = self.port.ask(f"DIRTY {nb_pages}")
        self.assertTrue(answer.startswith("DIRTYING "), answer)
        return vmlib.fields(answer)

    def test_memory_is_verified_while_it_is_rewritten(self):
        self.agent()
        self.assertIn("ERROR VERIFY before FILL", self.port.ask("VERIFY"))
        self.assertIn("ERROR DIRTY before FILL", self.port.ask("DIRTY 1"))
        self.assertEqual(self.port.ask("FILL 4"), "FILLED pages=1024")
        self.assertEqual(self.dirty(100)["pages"], 100)
        for _ in range(20):
            self.assertEqual(self.port.ask("VERIFY"), "VERIFIED bad=0 pages=1024 first=-1")
        stopped = self.dirty(0)["rewritten"]
        self.assertGreater(stopped, 0)
        self.assertEqual(self.dirty(0), {"pages": 0, "rewritten": stopped})
        again = self.dirty(5000)  # the writer may have begun before the answer was made
        self.assertEqual(again["pages"], 5000)
        self.assertGreaterEqual(again["rewritten"], stopped)
        self.assertEqual(self.port.ask("FILL 1"), "FILLED pages=256")
        self.assertEqual(self.dirty(0), {"pages": 0, "rewritten": 0})
        self.assertEqual(self.port.ask("VERIFY"), "VERIFIED bad=0 pages=256 first=-1")

    def test_a_page_that_is_not_right_is_found(self):
        agent = self.agent()
        self.port.ask("FILL 4")
        self.spoil(agent.pid, 7)
        self.assertEqual(self.port.ask("VERIFY"), "VERIFIED bad=1 pages=1024 first=7")

    def spoil(self, pid, page):
        """Zeroes one word of a page in the agent's pattern memory: its one private mapping of 4 MiB."""
        for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            if end - start == 4 << 20:
                with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
                    memory.seek(start + page * 4096 + 2048)
                    memory.write(bytes(8))
                return
        self.fail("no mapping of 4 MiB")

    def test_too_much_memory_is_refused_and_nothing_lost(self):
        self.agent()
        self.port.ask("FILL 1")
        self.assertIn("ERROR FILL 1048576: Cannot allocate", self.port.ask("FILL 1048576"))
        for wrong in ("FILL", "FILL 0", "FILL x", "FILL 1048577", "FILL 99999999999999999999"):
            self.assertIn("ERROR FILL needs", self.port.ask(wrong))
        self.assertEqual(self.port.ask("VERIFY"), "VERIFIED bad=0 pages=256 first=-1")

    def test_small_commands(self):
        self.agent()
        self.assertEqual(self.port.ask("PING"), "PONG 0")
        self.assertEqual(self.port.ask("COUNTER"), "COUNTER 0")
        self.assertRegex(self.port.ask("RANDOM"), r"^RANDOM [0-9a-f]{16}$")
        self.assertNotEqual(self.port.ask("RANDOM"), self.port.ask("RANDOM"))
        self.assertEqual(self.port.ask("NO\x07SUCH"), 'ERROR unknown command "NO?SUCH"')
        self.assertIn("ERROR unknown", self.port.ask(""))

    def test_a_shell_command_runs_beside_the_agent(self):
        self.agent()
        done = self.dir / "done"
        self.assertRegex(self.port.ask(f"RUN sleep 0.1; echo yes > {done}"), r"^RUNNING \d+$")
        self.assertEqual(self.port.ask("PING"), "PONG 0")
        deadline = time.monotonic() + TIMEOUT_S
        while not (done.exists() and done.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertEqual(done.read_text(), "yes\n")

    def test_a_command_may_come_in_pieces_and_two_in_one(self):
        self.agent()
        os.write(self.port.host, b"PI")
        time.sleep(0.05)
        os.write(self.port.host, b"NG\nCOUN")
        self.assertEqual(self.port.line(), "PONG 0")
        self.assertEqual(self.port.ask("TER"), "COUNTER 0")


class WebServerTest(AgentTest):
    def get(self, agent, request):
        return subprocess.run(["nsenter", "-t", str(agent.pid), "-U", "-n", sys.executable, "-c", CLIENT, request],
                              capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout

    def test_it_counts_what_it_answers_and_says_who_it_is(self):
        agent = self.agent()
        subprocess.run(["nsenter", "-t", str(agent.pid), "-U", "-n", "ip", "link", "set", "lo", "up"], check=True)
        for counter in (1, 2):
            head, _, body = self.get(agent, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").partition("\n\n")
            self.assertTrue(head.startswith("HTTP/1.0 200 OK"), head)
            self.assertEqual(json.loads(body), {"id": 0, "counter": counter, "hostname": socket.gethostname()})
        self.assertIn("404 Not Found", self.get(agent, "GET /x HTTP/1.1\r\n\r\n"))
        self.assertIn("404 Not Found", self.get(agent, "POST / HTTP/1.1\r\n\r\n"))
        self.assertEqual(self.get(agent, "x" * 5000), "")  # longer than any request we know
        self.assertEqual(self.port.ask("COUNTER"), "COUNTER 2")


def main():
    global AGENT
    AGENT = pathlib.Path(sys.argv.pop(1))
    if subprocess.run([*APART, "true"], capture_output=True).returncode != 0:
        print("no user namespaces here")
        sys.exit(77)  # meson: skipped
    unittest.main()


if __name__ == "__main__":
    main()
