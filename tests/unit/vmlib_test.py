#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""tools/vmlib.py and tools/bootlib.py without a VM."""
import contextlib
import json
import pathlib
import socket
import sys
import tempfile
import threading
import unittest
import unittest.mock

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tools"))
import bootlib
import vmlib
from bootlib import VmError

NIC = vmlib.Nic("tap9", "02:53:47:00:00:09", "ns9", "br0")


class CommandLineTest(unittest.TestCase):
    def vm(self, name, **kwargs):
        return vmlib.Vm(name, "/folder", **kwargs)

    def test_the_machine_is_in_each_command_line_to_the_letter_and_names_no_file(self):
        machine = vmlib.machine_args(256, 2)
        self.assertNotIn("/", " ".join(machine))
        self.assertNotIn("mac=", " ".join(machine))
        parent = self.vm("p", machine=machine, boot=["-kernel", "/k"], nic=NIC)
        clone = self.vm("c", machine=machine, nic=NIC)
        for vm in (parent, clone):
            at = vm.args.index(vmlib.QEMU) + 1
            self.assertEqual(vm.args[at:at + len(machine)], machine)
        self.assertEqual(machine, json.loads(json.dumps(machine)))  # as the descriptor keeps it

    def test_a_clone_can_map_an_image_and_then_takes_no_memory_by_migration(self):
        args = vmlib.machine_args(192, image="/run/tap.sock.image")
        self.assertIn("memory-backend-file,id=pc.ram,size=192M,mem-path=/run/tap.sock.image,share=off", args)
        self.assertIn("pc,memory-backend=pc.ram", args)
        instance = vmlib.instance_args("c", "/run/c", incoming=True, postcopy=False)
        self.assertNotIn("migration.x-postcopy-ram=on", instance)
        self.assertIn("migration.x-events=on", instance)

    def test_a_clone_boots_nothing_and_waits_for_its_state_in_postcopy(self):
        args = self.vm("c", machine=vmlib.machine_args(nic=False)).args
        self.assertNotIn("-kernel", args)
        self.assertEqual(args[args.index("-incoming") + 1], "unix:/folder/c/incoming.sock")
        self.assertIn("migration.x-postcopy-ram=on", args[:args.index("-incoming")])
        self.assertNotIn("-incoming", self.vm("p", machine=vmlib.machine_args(nic=False), boot=[]).args)

    def test_a_vm_with_a_nic_runs_in_its_namespace_behind_its_prefix(self):
        args = self.vm("c", machine=vmlib.machine_args(), nic=NIC, prefix=["env", "A=1"], extra=["-x"]).args
        self.assertEqual(args[:7], ["ip", "netns", "exec", "ns9", "env", "A=1", vmlib.QEMU])
        self.assertEqual(args[-1], "-x")
        self.assertIn("virtio-net-device.mac=02:53:47:00:00:09", args)
        self.assertTrue(any("ifname=tap9" in arg for arg in args))

    def test_machine_and_nic_must_agree(self):
        with self.assertRaisesRegex(VmError, "has a network card, so a Nic is needed"):
            self.vm("c", machine=vmlib.machine_args())
        with self.assertRaisesRegex(VmError, "has no network card, so a Nic is not possible"):
            self.vm("c", machine=vmlib.machine_args(nic=False), nic=NIC)

    def test_less_memory_than_the_guest_needs_is_refused(self):
        with self.assertRaisesRegex(VmError, f"{vmlib.MIN_MB - 1} MiB"):
            vmlib.machine_args(vmlib.MIN_MB - 1)


class IdentityTest(unittest.TestCase):
    def test_no_two_vms_share_a_mac_an_ip_or_a_hostname(self):
        all_of_them = [vmlib.identity_of(family, vm_id)
                       for family in (0, 1, 63) for vm_id in (0, 1, 254, 255, 256, 4096)]
        for key in ("mac", "ip", "hostname", "seed"):
            self.assertEqual(len({getattr(one, key) for one in all_of_them}), len(all_of_them), key)
        self.assertNotIn(vmlib.HOST_IP, [one.ip for one in all_of_them])

    def test_it_is_the_same_each_time_but_for_the_seed(self):
        first, again = vmlib.identity_of(2, 300), vmlib.identity_of(2, 300)
        self.assertEqual((first.hostname, first.mac, first.ip), ("sf2-300", "02:53:47:02:01:2c", "10.66.1.45/10"))
        self.assertEqual((first.mac, first.address), (again.mac, "10.66.1.45"))
        self.assertNotEqual(first.seed, again.seed)
        self.assertNotIn(first.seed, repr(first))  # nor in a log

    def test_the_longest_line_fits_the_channel(self):
        self.assertLess(len(vmlib.identity_of(63, 4096).ret()), 512)

    def test_a_vm_without_a_network_is_told_of_none(self):
        line = vmlib.identity_of(0, 1).ret(has_network=False)
        self.assertRegex(line, "^RET 1 hostname=sf0-1 seed=[0-9a-f]{128}$")

    def test_limits(self):
        for family, vm_id in ((-1, 0), (64, 0), (0, -1), (0, 4097)):
            with self.assertRaisesRegex(VmError, "are possible"):
                vmlib.identity_of(family, vm_id)


class ModulesTest(unittest.TestCase):
    NEEDS = {"net": ["failover", "ring"], "failover": ["core"], "ring": ["virtio"], "console": ["ring"]}

    def test_each_comes_once_and_after_what_it_needs(self):
        order = bootlib.load_order(["net", "console"], lambda name: self.NEEDS.get(name, []))
        self.assertEqual(sorted(order), sorted(set(order)))
        for name, needs in self.NEEDS.items():
            for need in needs:
                self.assertLess(order.index(need), order.index(name))

    def test_a_circle_is_an_error(self):
        with self.assertRaisesRegex(VmError, "a -> b -> a"):
            bootlib.load_order(["a"], lambda name: {"a": ["b"], "b": ["a"]}[name])

    def test_built_in_modules_are_left_out_and_missing_ones_named(self):
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "modules.builtin").write_text("kernel/drivers/virtio/virtio-pci.ko\n")
            self.assertEqual(bootlib.module_files(folder, ["virtio_pci"]), [])
            with self.assertRaisesRegex(VmError, "no kernel module virtio_net"):
                bootlib.module_files(folder, ["virtio_net"])

    def test_a_folder_without_a_kernel_or_an_agent_is_named(self):
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaisesRegex(VmError, "no boot/vmlinuz"):
                vmlib.boot_args(folder, "initramfs")
            with self.assertRaisesRegex(VmError, "build first"):
                bootlib.make_agent_initramfs(folder, folder + "/sf-agent", folder + "/out")


class SocketTest(unittest.TestCase):
    """A peer thread plays the other end: it is given a connected socket."""

    def listen(self, peer):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = pathlib.Path(folder.name) / "s"
        server = socket.socket(socket.AF_UNIX)
        self.addCleanup(server.close)
        server.bind(str(path))
        server.listen()

        def serve():
            with server.accept()[0] as client:
                peer(client)

        thread = threading.Thread(target=serve)
        thread.start()
        self.addCleanup(thread.join)
        return path

    def open(self, kind, peer):
        end = kind(self.listen(peer), 5)
        self.addCleanup(end.close)
        return end

    def test_lines_may_come_in_pieces_and_several_at_once(self):
        end = self.open(vmlib.LineSocket, lambda s: [s.sendall(part) for part in (b"o", b"ne\ntwo\r\nth", b"ree\n")])
        self.assertEqual([end.line(5) for _ in range(3)], ["one", "two", "three"])
        with self.assertRaisesRegex(VmError, "was closed"):
            end.line(5)

    def test_silence_is_an_error_and_what_came_is_kept(self):
        go_on = threading.Event()

        def peer(client):
            client.sendall(b"ha")
            go_on.wait(5)
            client.sendall(b"lf\n")

        end = self.open(vmlib.LineSocket, peer)
        with self.assertRaisesRegex(VmError, "no line came from"):
            end.line(0.05)
        go_on.set()
        self.assertEqual(end.line(5), "half")

    def chatter(self, data):
        """A peer that says this until it is closed."""
        def peer(client):
            with contextlib.suppress(OSError):
                while True:
                    client.sendall(data)
        return peer

    def test_a_line_without_an_end_is_refused_and_not_gathered(self):
        end = self.open(vmlib.Channel, self.chatter(b"x" * 100))
        for _ in range(2):
            with self.assertRaisesRegex(VmError, "a line longer than 511 bytes"):
                end.line(5)
        self.assertLessEqual(len(end.pending), 511 + 65536)

    def test_the_longest_line_is_taken_and_one_longer_is_not(self):
        end = self.open(vmlib.Channel, lambda s: s.sendall(b"x" * 511 + b"\n" + b"y" * 512 + b"\n"))
        self.assertEqual(end.line(5), "x" * 511)
        with self.assertRaisesRegex(VmError, "a line longer than 511 bytes"):
            end.line(5)

    def test_who_goes_on_talking_does_not_put_off_the_deadline(self):
        end = self.open(vmlib.LineSocket, lambda s: None)
        with unittest.mock.patch.object(end, "sock", wraps=end.sock) as talker:
            talker.recv = lambda _: b"x"
            with self.assertRaisesRegex(vmlib.VmTimeout, "no line came from"):
                end.line(0.01)

    def test_connecting_gives_up_in_time_or_when_the_other_end_is_dead(self):
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaisesRegex(VmError, "cannot connect to"):
                vmlib.LineSocket(pathlib.Path(folder) / "none", 0.02)
            with self.assertRaisesRegex(VmError, "cannot connect to"):
                vmlib.LineSocket(pathlib.Path(folder) / "none", 60, alive=lambda: False)

    def test_a_path_too_long_for_a_socket_is_named(self):
        with self.assertRaisesRegex(VmError, "too long for a unix socket"):
            vmlib.LineSocket(pathlib.Path("/tmp/" + "x" * 103), 1)

    def test_the_channel_takes_the_expected_answer_and_names_others(self):
        def peer(client):
            for answer in (b"PONG 3", b"PONG", b"PONGS 3", b"ERROR no such page"):
                client.recv(100)
                client.sendall(answer + b"\n")

        end = self.open(vmlib.Channel, peer)
        self.assertEqual(end.ask("PING", "PONG", 5), "3")
        self.assertEqual(end.ask("PING", "PONG", 5), "")
        with self.assertRaisesRegex(VmError, "says 'PONGS 3', not PONG"):
            end.ask("PING", "PONG", 5)
        with self.assertRaisesRegex(VmError, "no such page"):
            end.ask("PING", "PONG", 5)

    def open_qmp(self, *answers, capabilities="[]"):
        """A Qmp whose peer gives these answers in turn, after it said hello; and what it was asked."""
        asked = []

        def peer(client):
            lines = client.makefile("rw")
            lines.write('{"QMP": {"capabilities": %s}}\n' % capabilities)
            for answer in ('{"return": {}, "id": 1}\n', *answers):
                lines.flush()
                asked.append(json.loads(lines.readline()))
                lines.write(answer)
            lines.flush()

        return self.open(vmlib.Qmp, peer), asked

    def test_qmp_keeps_events_and_raises_refusals(self):
        qmp, asked = self.open_qmp('{"event": "STOP"}\n{"event": "RESUME"}\n{"return": 7, "id": 2}\n',
                                   '{"error": {"desc": "no"}, "id": 3}\n{"event": "STOP"}\n')
        self.assertEqual(qmp("stop", all=1), 7)
        with self.assertRaisesRegex(VmError, "QEMU refused cont: no"):
            qmp("cont")
        self.assertEqual([qmp.wait_event("RESUME", 5)["event"], qmp.wait_event("STOP", 5)["event"]], ["RESUME", "STOP"])
        self.assertEqual(qmp.wait_event("STOP", 5)["event"], "STOP")
        self.assertEqual(asked[0]["arguments"], {})
        self.assertEqual(asked[1], {"execute": "stop", "arguments": {"all": 1}, "id": 2})

    def test_qmp_keeps_the_latest_events_and_gives_up_in_the_middle_of_them(self):
        hello = b'{"QMP": {}}\n{"return": {}, "id": 1}\n'
        qmp = self.open(vmlib.Qmp, lambda s: (s.sendall(hello), self.chatter(b'{"event": "RTC_CHANGE"}\n' * 500)(s)))
        qmp.timeout_s = 0.3
        with self.assertRaises(vmlib.VmTimeout):
            qmp("query-status")
        with self.assertRaises(vmlib.VmTimeout):
            qmp.wait_event("STOP", 0.1)
        self.assertEqual(len(qmp.events), qmp.MAX_EVENTS)

    def test_qmp_passes_over_an_answer_that_was_given_up(self):
        qmp, _ = self.open_qmp("", '{"return": "late", "id": 2}\n{"return": "mine", "id": 3}\n')
        qmp.timeout_s = 0.05
        with self.assertRaises(vmlib.VmTimeout):
            qmp("query-status")
        qmp.timeout_s = 5
        self.assertEqual(qmp("query-migrate"), "mine")

    def test_qmp_goes_ahead_of_a_main_loop_that_waits(self):
        qmp, asked = self.open_qmp('{"return": {}, "id": 2}\n', capabilities='["oob"]')
        qmp("migrate-recover", ahead=True, uri="unix:x")
        self.assertEqual(asked[0]["arguments"], {"enable": ["oob"]})
        self.assertEqual(asked[1], {"exec-oob": "migrate-recover", "arguments": {"uri": "unix:x"}, "id": 2})

    def test_qmp_follows_a_migration_by_its_events(self):
        def migration(status):
            return '{"event": "MIGRATION", "data": {"status": "%s"}}\n' % status
        qmp, _ = self.open_qmp(migration("active") + migration("postcopy-paused") + '{"return": {}, "id": 2}\n')
        qmp("query-status")
        self.assertTrue(qmp.wait_migration(("postcopy-paused",), 5))
        with self.assertRaisesRegex(VmError, "was closed"):
            qmp.wait_migration(("completed",), 5)

    def test_fields(self):
        self.assertEqual(vmlib.fields("bad=0 first=-1 who=a=b odd"), {"bad": 0, "first": -1, "who": "a=b"})


class WebTest(unittest.TestCase):
    def ask(self, *pieces, timeout_s=5.0):
        """What is made of a web server that sends these, and waits a little between them."""
        ours, theirs = socket.socketpair()
        enough = threading.Event()

        def serve():
            with theirs, contextlib.suppress(OSError):
                theirs.recv(4096)
                for piece in pieces:
                    theirs.sendall(piece)
                    enough.wait(0.05)
        server = threading.Thread(target=serve)
        server.start()
        try:
            with ours:
                return vmlib.ask_web(ours, "1.2.3.4", timeout_s)
        finally:
            enough.set()
            server.join()

    def test_its_answer_is_a_dict_however_it_comes(self):
        self.assertEqual(self.ask(b"HTTP/1.0 200 OK\r\nX: 1\r\n\r", b'\n{"id":', b"3}\n"), {"id": 3})

    def test_what_is_no_such_answer_is_an_error(self):
        for body in (b"[]", b"7", b"", b"{", b"\xff", b"[" * 3000):
            with self.assertRaises(ValueError, msg=body[:9]):
                self.ask(b"HTTP/1.0 200 OK\r\n\r\n" + body)

    def test_one_without_end_is_given_up(self):
        with self.assertRaisesRegex(ValueError, "more than 4096 bytes"):
            self.ask(b"x" * 4097)
        with self.assertRaises(TimeoutError):
            self.ask(*[b"x"] * 100, timeout_s=0.2)


if __name__ == "__main__":
    unittest.main()
