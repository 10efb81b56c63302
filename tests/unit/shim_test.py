#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The preload library of a QEMU parent, in a program that maps shared memory. usage: shim_test.py LIBSF-SHIM

The test plays memserver: it takes the userfaultfd and protects, copies and releases pages by itself.
"""
import ctypes
import fcntl
import json
import os
import pathlib
import select
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from strangers import is_turned_away  # noqa: E402 (behind the path where it is)

SHIM = None
MIB = 1 << 20
PAGE = 4096
TIMEOUT_S = 20
QUIET_S = 0.3  # a writer that is not held writes within microseconds
UFFDIO_WRITEPROTECT = 0xC018AA06
PROTECTED = 1
FAULT_EVENT, FAULT_OF_WP = 0x12, 2
SYS_USERFAULTFD = {"x86_64": 323}.get(os.uname().machine, 282)
MAX_REGIONS = 8

# Does what it is told, line by line, and answers each with a line.
PROGRAM = """
import ctypes, mmap, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
fd = os.memfd_create("ram")
os.ftruncate(fd, 1 << 28)

def map(size, offset=0, flags=mmap.MAP_SHARED, protection=3):
  base = libc.mmap(None, size, protection, flags, fd, offset)
  assert base != 2**64 - 1, os.strerror(ctypes.get_errno())
  return base

def unmap(base, size): return libc.munmap(base, size)
def fill(base, size, byte): ctypes.memset(base, byte, size)
def nb_threads(): return len(os.listdir("/proc/self/task"))
def child_fds():
  child = ["python3", "-c", "import os; print(len(os.listdir('/proc/self/fd')))"]
  return int(subprocess.run(child, close_fds=False, capture_output=True, check=True).stdout)
def fork_a_child_that_exits():
  pid = os.fork()
  if pid == 0: sys.exit(0)
  return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def huge_pages_off(base):
  with open("/proc/self/smaps") as smaps: text = smaps.read()
  return " nh" in text[text.index(f"{base:x}-"):].split("VmFlags:", 1)[1].splitlines()[0]
for line in sys.stdin:
  print(eval(line), flush=True)
"""


def may_use_userfaultfd():
    fd = ctypes.CDLL(None).syscall(SYS_USERFAULTFD, os.O_CLOEXEC)
    if fd >= 0:
        os.close(fd)
    return fd >= 0


class Parent:
    """The program, with the library."""

    def __init__(self, shim_env):
        env = {key: value for key, value in os.environ.items() if not key.startswith("SF_SHIM")}
        self.child = subprocess.Popen([sys.executable, "-c", PROGRAM], text=True, stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                      env={**env, "LD_PRELOAD": SHIM, **shim_env})

    def begin(self, call):
        self.child.stdin.write(call + "\n")
        self.child.stdin.flush()

    def answered(self, timeout_s):
        return bool(select.select([self.child.stdout], [], [], timeout_s)[0])

    def answer(self):
        if not self.answered(TIMEOUT_S):
            raise TimeoutError("the program hangs")
        return eval(self.child.stdout.readline())

    def do(self, call):
        self.begin(call)
        return self.answer()

    def end(self):
        """Lets it exit. Returns what it said on stderr."""
        return self.child.communicate(timeout=TIMEOUT_S)[1]


class Memserver:
    """One connection: what was said, and the descriptors that came with it."""

    def __init__(self, path):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT_S)
            sock.connect(str(path))
            text, self.fds, _, _ = socket.recv_fds(sock, 65536, MAX_REGIONS + 2)
            self.closed_by_shim = sock.recv(1) == b""
        self.said = json.loads(text)

    def protect(self, start, size, mode=PROTECTED):
        fcntl.ioctl(self.fds[0], UFFDIO_WRITEPROTECT, struct.pack("=QQQ", start, size, mode))

    def fault(self):
        """The address of the next write, or None if there is none."""
        if not select.select([self.fds[0]], [], [], QUIET_S)[0]:
            return None
        event, flags, address = struct.unpack("=B7xQQ8x", os.read(self.fds[0], 32))
        assert event == FAULT_EVENT and flags & FAULT_OF_WP
        return address & -PAGE

    def read(self, region, offset, size):
        file_offset = self.said[region]["file_offset"]
        return os.pread(self.fds[region + 1], size, file_offset + offset)

    def die(self):
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class ShimTest(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="sf_shim"))
        self.path = self.dir / "sock"
        self.addCleanup(shutil.rmtree, self.dir)

    def parent(self, **more):
        return self.program({"SF_SHIM_SOCKET": str(self.path), **more})

    def program(self, shim_env):
        parent = Parent(shim_env)
        self.addCleanup(lambda: (parent.child.kill(), parent.child.communicate()))
        return parent

    def memserver(self):
        memserver = Memserver(self.path)
        self.addCleanup(memserver.die)
        return memserver


@unittest.skipUnless(may_use_userfaultfd(), "this user may not use userfaultfd")
class HandOver(ShimTest):
    def test_ram_comes_with_its_place_its_file_and_a_userfaultfd(self):
        parent = self.parent()
        base = parent.do(f"map({16 * MIB})")
        memserver = self.memserver()
        self.assertEqual(memserver.said, [{"base_host_virt_addr": base, "size": 16 * MIB, "offset": 0,
                                           "page_size": PAGE, "file_offset": 0}])
        self.assertEqual(len(memserver.fds), 2)
        self.assertTrue(memserver.closed_by_shim)
        parent.do(f"fill({base + PAGE}, {PAGE}, 7)")
        self.assertEqual(memserver.read(0, PAGE, PAGE), b"\7" * PAGE)

    @unittest.skipIf(os.geteuid() != 0, "becoming another user takes root")
    def test_another_user_gets_nothing_whatever_the_modes(self):
        parent = self.parent()
        parent.do(f"map({16 * MIB})")
        self.dir.chmod(0o711)
        self.path.chmod(0o666)
        self.assertTrue(is_turned_away(self.path, 65534))
        self.assertIn("of user 65534 was refused", parent.end())

    def test_regions_follow_each_other_in_the_image(self):
        parent = self.parent()
        first = parent.do(f"map({20 * MIB}, {32 * MIB})")
        second = parent.do(f"map({16 * MIB}, {64 * MIB})")
        memserver = self.memserver()
        self.assertEqual([[r["base_host_virt_addr"], r["size"], r["offset"], r["file_offset"]] for r in memserver.said],
                         [[first, 20 * MIB, 0, 32 * MIB], [second, 16 * MIB, 20 * MIB, 64 * MIB]])
        parent.do(f"fill({second}, {PAGE}, 9)")
        self.assertEqual(memserver.read(1, 0, PAGE), b"\x09" * PAGE)
        memserver.protect(second, 16 * MIB)
        parent.begin(f"fill({second}, 1, 1)")
        self.assertEqual(memserver.fault(), second)

    def test_a_write_waits_until_the_page_is_copied_and_released(self):
        parent = self.parent()
        base = parent.do(f"map({16 * MIB})")
        parent.do(f"fill({base}, {16 * MIB}, 1)")
        memserver = self.memserver()
        memserver.protect(base, 16 * MIB)
        parent.begin(f"fill({base + 5 * PAGE}, {PAGE}, 2)")
        self.assertEqual(memserver.fault(), base + 5 * PAGE)
        self.assertFalse(parent.answered(QUIET_S))
        self.assertEqual(memserver.read(0, 5 * PAGE, PAGE), b"\1" * PAGE)
        memserver.protect(base + 5 * PAGE, PAGE, mode=0)
        parent.answer()
        self.assertEqual(memserver.read(0, 5 * PAGE, PAGE), b"\2" * PAGE)

    def test_a_page_never_touched_is_protected_too(self):
        parent = self.parent()
        base = parent.do(f"map({16 * MIB})")
        memserver = self.memserver()
        memserver.protect(base, 16 * MIB)
        parent.begin(f"fill({base + PAGE}, 1, 2)")
        self.assertEqual(memserver.fault(), base + PAGE)
        self.assertFalse(parent.answered(QUIET_S))

    def test_a_dead_memserver_frees_its_parent_and_the_next_one_is_served(self):
        parent = self.parent()
        base = parent.do(f"map({16 * MIB})")
        for generation in range(3):
            memserver = self.memserver()
            memserver.protect(base, 16 * MIB)
            parent.begin(f"fill({base}, {16 * MIB}, {generation})")
            self.assertEqual(memserver.fault(), base)
            memserver.die()
            parent.answer()

    def test_only_one_memserver_holds_the_ram(self):
        parent = self.parent()
        base = parent.do(f"map({16 * MIB})")
        first, second = self.memserver(), self.memserver()
        self.assertIn("another memserver", second.said["error"])
        self.assertTrue(second.said["busy"])
        self.assertEqual(second.fds, [])
        first.protect(base, 16 * MIB)
        parent.begin(f"fill({base}, 1, 1)")
        self.assertEqual(first.fault(), base)

    def test_ram_unmapped_is_forgotten(self):
        parent = self.parent()
        kept, gone = parent.do(f"map({16 * MIB})"), parent.do(f"map({17 * MIB})")
        parent.do(f"unmap({gone}, {17 * MIB})")
        memserver = self.memserver()
        self.assertEqual([r["base_host_virt_addr"] for r in memserver.said], [kept])
        memserver.die()
        parent.do(f"unmap({kept}, {16 * MIB})")
        said = self.memserver().said
        self.assertIn("no RAM", said["error"])
        self.assertFalse(said["busy"])

    def test_a_mapping_over_ram_takes_its_place(self):
        parent = self.parent()
        base = parent.do(f"map({32 * MIB})")
        parent.do(f"libc.mmap({base}, {32 * MIB}, 3, mmap.MAP_SHARED | 0x10, fd, {64 * MIB})")
        self.assertEqual([[r["base_host_virt_addr"], r["file_offset"]] for r in self.memserver().said],
                         [[base, 64 * MIB]])

    def test_ram_in_too_many_parts_is_refused_not_shortened(self):
        parent = self.parent()
        for _ in range(MAX_REGIONS):
            parent.do(f"map({16 * MIB})")
        memserver = self.memserver()
        self.assertEqual(len(memserver.said), MAX_REGIONS)
        self.assertEqual(len(memserver.fds), MAX_REGIONS + 1)
        memserver.die()
        parent.do(f"map({16 * MIB})")
        self.assertIn("not all of the RAM", self.memserver().said["error"])
        self.assertIn("sf-shim: cannot hand over", parent.end())

    def test_huge_pages_are_refused(self):
        parent = self.parent()
        try:  # mapping without reserving needs no page of the pool
            parent.do(f"os.dup2(os.memfd_create('huge', os.MFD_HUGETLB), fd), os.ftruncate(fd, {16 * MIB})")
            parent.do(f"map({16 * MIB}, flags=mmap.MAP_SHARED | 0x4000)")
        except SyntaxError:  # the program ended: no answer
            self.skipTest("no huge pages here")
        self.assertIn("not all of the RAM", self.memserver().said["error"])
        self.assertIn("huge pages", parent.end())

    def test_a_file_that_takes_no_protection_is_refused_with_what_it_takes(self):
        parent = self.parent()
        parent.do(f"os.dup2(os.open({str(self.dir / 'ram')!r}, os.O_RDWR | os.O_CREAT), fd)")
        parent.do(f"os.ftruncate(fd, {16 * MIB})")
        parent.do(f"map({16 * MIB})")
        said = self.memserver().said
        if isinstance(said, list):
            self.skipTest("temporary files are in memory here")
        self.assertIn("memfd", said["error"])


class Neighbour(ShimTest):
    def test_a_program_without_the_variable_is_untouched(self):
        parent = self.program({})
        base = parent.do(f"map({16 * MIB})")
        self.assertEqual(parent.do("nb_threads()"), 1)
        self.assertFalse(parent.do(f"huge_pages_off({base})"))
        self.assertEqual(parent.end(), "")
        self.assertEqual(os.listdir(self.dir), [])

    def test_only_large_shared_writable_mappings_of_files_are_ram(self):
        parent = self.parent()
        parent.do(f"map({15 * MIB})")
        parent.do(f"map({64 * MIB}, flags=mmap.MAP_PRIVATE)")
        parent.do(f"map({64 * MIB}, protection=1)")
        parent.do(f"map({64 * MIB}, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)")
        self.assertEqual(parent.do("nb_threads()"), 1)
        self.assertFalse(self.path.exists())
        base = parent.do(f"map({16 * MIB})")
        self.assertEqual(parent.do("nb_threads()"), 2)
        self.assertTrue(parent.do(f"huge_pages_off({base})"))

    def test_what_is_ram_can_be_said(self):
        parent = self.parent(SF_SHIM_RAM_BYTES=str(32 * MIB))
        parent.do(f"map({31 * MIB})")
        self.assertFalse(self.path.exists())
        parent.do(f"map({32 * MIB})")
        self.assertTrue(self.path.is_socket())

    def test_the_socket_is_the_owners_alone_and_goes_with_the_program(self):
        parent = self.parent()
        parent.do(f"map({16 * MIB})")
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual(parent.do("fork_a_child_that_exits()"), 0)
        self.assertTrue(self.path.exists(), "a child took it away")
        self.assertEqual(parent.end(), "")
        self.assertFalse(self.path.exists())

    def test_huge_pages_stay_off_though_the_program_asks_for_them(self):
        parent = self.parent()
        base = parent.do(f"map({16 * MIB})")
        small = parent.do(f"map({4 * MIB})")
        for start, size in ((base, 16 * MIB), (small, 4 * MIB)):
            self.assertEqual(parent.do(f"libc.madvise(ctypes.c_void_p({start}), ctypes.c_size_t({size}), 14)"), 0)  # MADV_HUGEPAGE
        self.assertTrue(parent.do(f"huge_pages_off({base})"))
        self.assertFalse(parent.do(f"huge_pages_off({small})"))

    def test_its_children_inherit_nothing(self):
        parent = self.parent()
        before = parent.do("child_fds()")
        parent.do(f"map({16 * MIB})")
        self.assertEqual(parent.do("child_fds()"), before)

    def test_its_thread_takes_no_signals(self):
        parent = self.parent()
        parent.do(f"map({16 * MIB})")
        task, = set(os.listdir(f"/proc/{parent.child.pid}/task")) - {str(parent.child.pid)}
        status = pathlib.Path(f"/proc/{parent.child.pid}/task/{task}/status").read_text()
        blocked = int(status.split("SigBlk:")[1].split()[0], 16)
        for signal in range(1, 32):
            if signal not in (9, 19):  # SIGKILL, SIGSTOP
                self.assertTrue(blocked >> (signal - 1) & 1, signal)

    def test_its_own_failures_are_a_line_and_the_program_goes_on(self):
        self.path.write_text("mine")
        cases = {"a path in use": str(self.path), "no absolute path": "sock", "too long": "/" + "x" * 108}
        for name, path in cases.items():
            with self.subTest(name):
                parent = self.parent(SF_SHIM_SOCKET=path)
                base = parent.do(f"map({16 * MIB})")
                parent.do(f"fill({base}, {16 * MIB}, 1)")
                said = parent.end().splitlines()
                self.assertEqual([line.startswith("sf-shim: cannot listen") for line in said], [True])
        self.assertEqual(self.path.read_text(), "mine")

    def test_a_size_that_is_none_is_a_line_and_the_usual_one_holds(self):
        parent = self.parent(SF_SHIM_RAM_BYTES="192M")
        parent.do(f"map({16 * MIB})")
        self.assertTrue(self.path.is_socket())
        self.assertIn("sf-shim: SF_SHIM_RAM_BYTES=192M", parent.end())


if __name__ == "__main__":
    SHIM = os.path.abspath(sys.argv.pop(1))
    unittest.main()
