#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""tools/doctor against made-up hosts and profiles."""
import argparse
import contextlib
import importlib.machinery
import importlib.util
import io
import json
import os
import re
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tools"))  # as for a script that is run
loader = importlib.machinery.SourceFileLoader("doctor", str(ROOT / "tools/doctor"))
doctor = importlib.util.module_from_spec(importlib.util.spec_from_loader("doctor", loader))
loader.exec_module(doctor)

UP = doctor.IFF_UP | doctor.IFF_RUNNING | doctor.IFF_MULTICAST


class FakeHost(doctor.Host):
    """Everything is fine here unless a test says otherwise."""

    def __init__(self, root):
        super().__init__(root)
        self.links = {"veth0": (9000, UP)}
        self.nb_cpus, self.memlock, self.caps, self.uffd = 4, None, {"net_raw", "net_admin"}, True
        for driver in ("af_packet", "af_xdp", "ring", "memif", "tap", "ice", "mlx5"):
            self.write(f"usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0/librte_net_{driver}.so", "")
        self.write("proc/meminfo", "HugePages_Total:   4\nHugepagesize:    2048 kB\n")
        self.write("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "4\n")

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def bind(self, address, driver):
        device = self.root / "sys/bus/pci/devices" / address
        device.mkdir(parents=True)
        target = self.root / "sys/bus/pci/drivers" / driver
        target.mkdir(parents=True, exist_ok=True)
        (device / "driver").symlink_to(target)

    def link(self, iface):
        return self.links.get(iface)

    def cpus(self):
        return self.nb_cpus

    def memlock_bytes(self):
        return self.memlock

    def capable(self, name):
        return name in self.caps

    def userfaultfd(self):
        return self.uffd


class DoctorTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = Path(folder.name) / "profiles"
        self.dir.mkdir()
        self.host = FakeHost(Path(folder.name) / "host")
        os.environ["SNOWFABRIC_PROFILE_DIR"] = str(self.dir)
        os.environ["XDG_CONFIG_HOME"] = folder.name + "/none"

    def profile(self, name, content):
        (self.dir / f"{name}.toml").write_text(content)
        return doctor.profilelib.load_profile(name)

    def examine(self, profile, iface=None, mtu=None, netns=None):
        opt = argparse.Namespace(iface=iface, mtu=mtu, netns=netns)
        if isinstance(profile, str):
            profile = doctor.profilelib.load_profile(profile)
        return {check["name"]: check for check in doctor.examine(self.host, profile, opt)}

    def failed(self, *args, **kwargs):
        checks = self.examine(*args, **kwargs)
        return {name for name, check in checks.items() if check["status"] == "fail"}

    def test_a_good_host_passes_and_nothing_is_to_be_typed(self):
        checks = self.examine("net_af_packet", "veth0")
        self.assertEqual({check["status"] for check in checks.values()}, {"ok"})
        self.assertEqual({check["mend"] for check in checks.values()}, {""})
        self.assertIn("one frame", checks["mtu"]["found"])

    def test_each_fault_fails_its_own_check_and_says_what_to_type(self):
        self.host.links["veth0"] = (1500, doctor.IFF_UP)
        self.host.uffd, self.host.caps = False, set()
        checks = self.examine("net_af_packet", "veth0", mtu=9000, netns="host1")
        failed = {name for name, check in checks.items() if check["status"] == "fail"}
        self.assertEqual(failed, {"rights", "interface", "mtu", "multicast", "userfaultfd"})
        self.assertEqual(checks["mtu"]["mend"], "ip -n host1 link set dev veth0 mtu 9000")
        self.assertIn("multicast on", checks["multicast"]["mend"])
        self.assertIn("cap_net_raw", checks["rights"]["mend"])
        self.assertIn("vm.unprivileged_userfaultfd=1", checks["userfaultfd"]["mend"])

    def test_an_unknown_interface_fails_and_none_is_only_skipped(self):
        self.assertEqual(self.failed("net_af_packet", "veth9"), {"interface"})
        self.assertEqual(self.examine("net_af_packet")["interface"]["status"], "skipped")

    def test_xdp_refuses_a_large_mtu(self):
        self.assertEqual(self.failed("net_af_xdp", "veth0"), {"xdp_mtu"})
        self.host.links["veth0"] = (3000, UP)
        self.assertEqual(self.failed("net_af_xdp", "veth0"), set())

    def test_a_busy_poller_needs_a_second_cpu(self):
        self.host.nb_cpus = 1
        self.assertEqual(self.failed("net_ring"), {"cpus"})
        self.assertEqual(self.failed("net_af_packet", "veth0"), set())

    def test_a_missing_driver_is_named(self):
        checks = self.examine("virtio")
        self.assertEqual(checks["driver"]["status"], "fail")
        self.assertIn("librte_net_virtio.so", checks["driver"]["found"])

    def test_hugepages_missing_are_counted_into_the_command(self):
        check = self.examine("ice")["hugepages"]
        self.assertEqual(check["status"], "fail")
        self.assertEqual(check["mend"], "sysctl -w vm.nr_hugepages=256")  # 4 there, 252 more

    def test_a_pci_device_needs_vfio_an_iommu_and_memlock(self):
        self.host.write("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "256\n")
        self.host.bind("0000:03:00.0", "ice")
        self.host.memlock = 8 << 20
        self.assertEqual(self.failed("ice", "0000:03:00.0"), {"pci", "iommu", "memlock"})
        self.host.bind("0000:03:00.1", "vfio-pci")
        self.host.write("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n")
        self.host.caps.add("ipc_lock")
        self.assertEqual(self.failed("ice", "0000:03:00.1"), set())
        self.host.bind("0000:04:00.0", "mlx5_core")  # stays with its kernel driver
        self.assertEqual(self.failed("mlx5", "0000:04:00.0"), set())
        self.assertEqual(self.failed("ice", "0000:09:00.0"), {"pci"})

    def test_a_stale_memif_socket_is_found(self):
        path = self.dir / "m.sock"
        self.assertEqual(self.failed("net_memif", str(path)), set())
        path.touch()
        self.assertEqual(self.failed("net_memif", str(path)), {"socket"})

    def test_base_is_inherited_as_the_programs_do(self):
        mine = self.profile("mine", 'base = "ice"\nhugepages_mb = 8\n')
        self.assertEqual((mine["hugepages_mb"], mine["device"], mine["name"], mine["root"]),
                         (8, "pci", "mine", "ice"))
        self.assertEqual(self.examine(mine)["driver"]["status"], "ok")  # looked up as ice
        own = self.profile("net_af_packet", 'base = "net_af_packet"\nidle = "busy"\n')
        self.assertEqual((own["idle"], own["mtu_by"]), ("busy", "kernel"))
        self.profile("parent", 'base = "net_tap"\nnb_rxd = 64\n')
        child = self.profile("child", 'base = "./parent.toml"\n')
        self.assertEqual((child["nb_rxd"], child["mtu_by"]), (64, "ethdev"))

    def test_mistakes_in_a_profile_name_file_line_and_key(self):
        wrong = {"\nnb_rdx = 5\n": r"p\.toml:2: nb_rdx: unknown key",
                 "nb_rxd = 1\n": r"p\.toml:1: nb_rxd: 1 is not within 32\.\.32768",
                 "zero_copy = 1\n": r"p\.toml:1: zero_copy: must be true or false",
                 'cannot = [1]\n': r"must be an array of strings",
                 "nb_rxd =\n": r"p\.toml", 'base = "p"\n': r"no profile 'p'",
                 'base = "./p.toml"\n': r"leads back"}
        for content, message in wrong.items():
            with self.subTest(content), self.assertRaisesRegex(doctor.profilelib.ProfileError, message):
                self.profile("p", content)

    def test_its_keys_are_those_of_the_programs_and_of_the_manual(self):
        source = (ROOT / "pmd-config/profile_keys.cpp").read_text()
        self.assertEqual(set(re.findall(r'^ +\{"(\w+)",', source, re.M)), set(doctor.profilelib.KEYS))
        manual = (ROOT / "docs/operations.md").read_text()
        for key in doctor.profilelib.KEYS:
            self.assertIn(f"| `{key}` |", manual)

    def test_every_shipped_profile_loads(self):
        names = sorted(file.stem for file in (ROOT / "pmd-config/profiles").glob("*.toml"))
        self.assertGreaterEqual(len(names), 10)
        for name in names:
            self.assertEqual(doctor.profilelib.load_profile(name)["name"], name)

    def run_main(self, *argv):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = doctor.main(list(argv))
            except SystemExit as end:
                status = end.code
        return status, out.getvalue()

    def test_exit_status_and_json(self):
        old = doctor.Host
        self.addCleanup(setattr, doctor, "Host", old)
        doctor.Host = lambda: self.host
        status, out = self.run_main("--iface", "veth0", "--json", "-")
        self.assertEqual((status, json.loads(out)["ok"]), (0, True))
        self.host.uffd = False
        file = self.dir / "out.json"
        status, out = self.run_main("--iface", "veth0", "--json", str(file))
        self.assertEqual(status, 1)
        self.assertIn("-> run as root", out)
        self.assertFalse(json.loads(file.read_text())["ok"])
        self.assertEqual(self.run_main("--profile", "no_such")[0], 2)
        self.assertEqual(self.run_main("--netns", "no_such_namespace")[0], 2)
        self.assertEqual(self.run_main("--bogus")[0], 2)
        self.assertEqual(self.run_main("--version")[0], 0)


if __name__ == "__main__":
    unittest.main()
