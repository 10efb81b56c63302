# SPDX-License-Identifier: BSD-3-Clause
"""Forks a running Linux VM to clones on virtual hosts, each of which fetches the pages it touches, and checks them.

Builds the programs, makes virtual hosts (network namespaces on a bridge), boots a VM with a web server, freezes it for
some milliseconds, starts one memserver, one memtap a host and the clones, has every clone answer an HTTP request and
check its memory, and prints what went over the wire. With --image the clones are processes that verify every byte of a
memory image instead. Needs root.
"""
import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time

import bootlib
import fleetlib
import forkdemo
import forklib
import lablib
import profilelib
import tablelib

TOOLS = pathlib.Path(__file__).resolve().parent
ROOT = TOOLS.parent
FRESH = pathlib.Path()  # --image without a file
ORDERS = ("sequential", "random", "hotset")


class DemoError(Exception):
    """Says what failed, on what, and what to do."""


def add_fork_options(group):
    group.add_argument("--vm-mb", type=int, default=192, metavar="N", help="memory of the parent (192)")
    group.add_argument("--fill-mb", type=int, default=64, metavar="N", help="memory of it that the clones check (64)")
    group.add_argument("--no-shim", action="store_true",
                       help="freeze the parent by QEMU's background snapshot, not by write protection")
    group.add_argument("--clone-memory", choices=["postcopy", "uffd"], default="postcopy",
                       help="how it comes into a clone: by migration to an unmodified QEMU, or by userfaultfd to one "
                            "with a preload library, whose clones share memory on a host (postcopy)")
    group.add_argument("--record", type=pathlib.Path, metavar="FILE",
                       help="start one clone ahead of all others, and write there which pages it had until it answered")
    group.add_argument("--working-set", type=pathlib.Path, metavar="FILE",
                       help="put the pages of this record into the descriptor, so that they come before clones ask; it "
                            "may be the one that --record writes")


def add_image_options(group):
    add = group.add_argument
    add("--image", type=pathlib.Path, nargs="?", const=FRESH, metavar="FILE",
        help="serve this file, or a fresh VM's memory, to processes instead of forking a VM")
    add("--image-mb", type=int, default=256, metavar="N", help="memory of the VM that is dumped (256)")
    add("--order", choices=["mixed", *ORDERS], default="mixed", help="in which clones touch pages (mixed)")
    add("--pcap", type=pathlib.Path, metavar="FILE", help="capture the server's port there")
    add("--timeout", type=float, default=900.0, metavar="SECONDS", help="give up on the clones (900)")
    add("--keep", action="store_true", help="leave the virtual hosts up at the end")


def choose_mode(parser, args):
    """An option of the image mode asks for it; one of the other mode would do nothing then."""
    def given(*names):
        return [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) != parser.get_default(name)]

    if not args.image and given("image_mb", "order", "pcap", "timeout", "keep"):
        args.image = FRESH
    if args.image and (useless := given("vm_mb", "fill_mb", "no_shim", "clone_memory", "record", "working_set")):
        parser.error(f"{useless[0]} does nothing where a memory image is served")


def arguments(argv=None):
    parser = argparse.ArgumentParser(prog="demo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--clones", type=int, default=8, metavar="N", help="clones in all, spread over the hosts (8)")
    add("--hosts", type=int, default=4, metavar="N", help="virtual hosts besides the server's (4)")
    add("--mtu", type=int, metavar="N", help="of the virtual wire (9000, or what the profile can)")
    add("--loss", type=float, default=0.0, metavar="PERCENT",
        help="drop each frame with this chance, at each receiving port on its own (0)")
    add("--seed", type=int, default=1, metavar="N", help="of loss and of the clones' orders (1)")
    add("--profile", default="net_af_packet", metavar="NAME", help="of pmd-config/profiles (net_af_packet)")
    add("--json", type=pathlib.Path, metavar="FILE", help="write the results there")
    add("--build-dir", type=pathlib.Path, default=ROOT / "build", metavar="DIR", help="(build)")
    add("--no-setup", action="store_true", help="do not look for missing packages")
    add_fork_options(parser.add_argument_group("the fork of a running VM"))
    add_image_options(parser.add_argument_group("a memory image instead (each of these asks for it)"))
    args = parser.parse_args(argv)
    choose_mode(parser, args)
    if args.clones < 1:
        parser.error(f"--clones {args.clones}: at least 1")
    if not 1 <= args.hosts <= lablib.MAX_HOSTS:
        parser.error(f"--hosts {args.hosts}: 1 to {lablib.MAX_HOSTS}")
    if not 0.0 <= args.loss < 100.0:
        parser.error(f"--loss {args.loss}: percent, 0 to below 100")
    return args


def step(text):
    print(f"demo: {text}", flush=True)


def build(build_dir):
    """Configures once, then builds what the demo runs."""
    programs = [fleetlib.SERVER, fleetlib.MEMTAP, fleetlib.GUEST, forklib.AGENT, forklib.SHIM,
                forklib.CLONE_SHIM, forklib.DESCRIPTOR]
    commands = [["ninja", "-C", str(build_dir), *programs]]
    if not (build_dir / "build.ninja").exists():
        commands.insert(0, ["meson", "setup", str(build_dir), str(ROOT), "-Dwerror=false"])
    step(f"building in {build_dir}")
    for command in commands:
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        except FileNotFoundError:
            raise DemoError(f"{command[0]} is missing: run tools/setup") from None
        if done.returncode != 0:
            raise DemoError(f"`{' '.join(command)}` failed:\n{done.stdout[-3000:]}")


def vm_image(build_dir, mb):
    """The VM's memory; made once for a size and a recipe."""
    recipe = hashlib.sha256((TOOLS / "vm-image").read_bytes()).hexdigest()[:8]
    image = build_dir / f"vm-{mb}m-{recipe}.img"
    if not image.exists():
        step(f"booting a {mb} MiB VM for its memory image (kept as {image})")
        if subprocess.run([TOOLS / "vm-image", image, "--mb", str(mb)]).returncode != 0:
            raise DemoError("no VM image; --image FILE serves one of yours")
    return image


def check_memory(args, image):
    need = (args.clones + args.hosts + 1) * os.path.getsize(image)  # each host keeps what came
    fields = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    if need > free:
        raise DemoError(f"{args.clones} clones of {image} need {need >> 20} MiB, {free >> 20} MiB are free: "
                        f"fewer --clones or --hosts, or a smaller --image-mb")


class Progress:
    """One line that says how far the clones are."""

    def __init__(self, fleet, nb_nonzero):
        self.fleet, self.nb_nonzero, self.began = fleet, nb_nonzero, time.monotonic()
        self.period_s = 1.0 if sys.stdout.isatty() else 5.0
        self.next = self.began + self.period_s

    def __call__(self, running):
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + self.period_s
        stats = self.fleet.server_stats()
        nb_done = len(self.fleet.guests) - len(running)
        line = (f"{time.monotonic() - self.began:6.1f} s  {nb_done}/{len(self.fleet.guests)} clones complete, "
                f"{stats.get('pages_sent_once', 0)}/{self.nb_nonzero} pages on the wire")
        print(f"\r{line}\x1b[K" if sys.stdout.isatty() else f"demo: {line}",
              end="" if sys.stdout.isatty() else "\n", flush=True)

    def end(self):
        if sys.stdout.isatty():
            print("\r\x1b[K", end="", flush=True)


def start_capture(fleet, lab, path):
    path.unlink(missing_ok=True)
    capture = fleet.start_other("capture", ["ip", "netns", "exec", lab.bridge_ns, "dumpcap", "-q", "-i", "h0",
                                            "-B", "256", "-f", "ether proto 0x88b5", "-w", path.absolute()])
    fleet.wait_for(capture, path.exists, "capturing", 20.0)
    return capture


def stop_capture(capture):
    if capture.status() is not None:
        raise DemoError(f"the capture ended early:\n{capture.tail()}")
    capture.stop()


def run_clones(args, fleet, nb_nonzero):
    """Starts the clones and waits for them; returns seconds it took."""
    with fleet.at_once():
        for i in range(args.clones):
            order = ORDERS[i % len(ORDERS)] if args.order == "mixed" else args.order
            fleet.start_guest(i, 1 + i % args.hosts, order)
    began = time.monotonic()
    progress = Progress(fleet, nb_nonzero)
    complete = fleet.wait_guests(args.timeout, each=progress)
    progress.end()
    if not complete:
        raise DemoError(f"clones not complete after {args.timeout:.0f} s (--timeout)")
    return time.monotonic() - began


def clone_row(fleet, guest):
    report = fleet.report(guest) or {}
    wanted = ("verified", "pages", "mismatches", "faults", "fault_us_p50", "fault_us_p99", "first_page_us",
              "complete_s")
    row = {"id": guest.id, "host": guest.host, "order": guest.order, "status": guest.status()}
    return row | {key: report.get(key) for key in wanted}


def results(args, fleet, image, nb_pages, nb_nonzero, seconds):
    """The table as it goes into --json."""
    server = fleet.server_stats()
    taps = [fleet.memtap_stats(host) for host in sorted(fleet.memtaps)]
    if not server or not all(taps):
        raise DemoError("a memserver or memtap did not answer telemetry after the run")
    unique = nb_nonzero * fleetlib.page_wire_bytes(args.mtu)
    return {
        "clones": [clone_row(fleet, guest) for guest in fleet.guests],
        "wire_bytes": server["tx_bytes"],
        "unique_bytes": unique,  # of frames with one page each
        "wire_ratio": server["tx_bytes"] / unique if unique else None,
        "multicast_pages": server["tx_pages_multicast"],
        "unicast_pages": server["tx_pages_unicast"],
        "never_sent_pages": nb_pages - server["pages_sent_once"],
        "zero_pages": nb_pages - nb_nonzero,
        "image_pages": nb_pages,
        "lockstep_hits": server["lockstep_hits"],
        "end_game_entered": server["end_game_entered"],
        "duplicates": sum(tap["rx_duplicates"] for tap in taps),
        "lost_frames": sum(tap["rx_lost"] for tap in taps),
        "mtu": args.mtu, "loss": args.loss, "hosts": args.hosts, "seed": args.seed, "order": args.order,
        "profile": args.profile, "image": str(image), "seconds": round(seconds, 3),
    }


def failed_clones(table, nb_pages):
    return [row for row in table["clones"]
            if row["status"] != 0 or row["verified"] is not True or row["pages"] != nb_pages]


def show_logs(fleet, only=None):
    for process in only or fleet.processes():
        print(process.tail(), file=sys.stderr)


def run_fleet(args, lab, image, profile):
    nb_pages, nb_nonzero = fleetlib.count_pages(image)
    options = fleetlib.Options(args.build_dir, image.absolute(), args.profile,
                               lablib.TAP if profile.tap else lablib.PORT, args.loss, args.seed)
    with fleetlib.Fleet(lab, options) as fleet:
        try:
            capture = start_capture(fleet, lab, args.pcap) if args.pcap else None
            step(f"serving {image} ({nb_pages} pages, {nb_pages - nb_nonzero} of them zero)")
            fleet.start_server()
            fleet.start_memtaps(range(1, args.hosts + 1))
            step(f"{args.clones} clones on {args.hosts} hosts, MTU {args.mtu}, loss {args.loss:g} %")
            seconds = run_clones(args, fleet, nb_nonzero)
            table = results(args, fleet, image, nb_pages, nb_nonzero, seconds)
            if capture:
                stop_capture(capture)
            if failed := failed_clones(table, nb_pages):
                show_logs(fleet)
            complaints = fleet.stop()
        except (DemoError, fleetlib.FleetError):
            show_logs(fleet)
            raise
    for complaint in complaints:
        print(f"demo: warning: {complaint}", file=sys.stderr)
    return table, failed


def fork_demo(args, profile):
    table, wrong = forkdemo.run(args, profile)
    if args.json:
        args.json.write_text(json.dumps(table, indent=2) + "\n")
    for what in wrong:
        print(f"demo: {what}", file=sys.stderr)
    return 1 if wrong else 0


def demo(args):
    lablib.require_root()
    profile = profilelib.load(args.profile)
    args.mtu = profile.mtu_for_lab(args.mtu)
    build(args.build_dir)
    if not args.image:
        return fork_demo(args, profile)
    image = vm_image(args.build_dir, args.image_mb) if args.image == FRESH else args.image
    check_memory(args, image)
    lab = lablib.Lab(f"sf-demo-{os.getpid()}", args.hosts, args.mtu, profile.tap)
    lab.up()
    try:
        table, failed = run_fleet(args, lab, image, profile)
    finally:
        if args.keep:
            step(f"virtual hosts left up; remove them with: tools/lab down --name {lab.name}")
        else:
            lab.down()
    tablelib.show(table)
    if args.json:
        args.json.write_text(json.dumps(table, indent=2) + "\n")
    for row in failed:
        print(f"demo: clone {row['id']} on host {row['host']}: status {row['status']}, verified {row['verified']}, "
              f"{row['pages']} pages, {row['mismatches']} mismatches", file=sys.stderr)
    return 1 if failed else 0


def main():
    args = arguments()
    lablib.exit_on_signals()
    try:
        return demo(args)
    except (DemoError, bootlib.VmError, fleetlib.FleetError, lablib.LabError, profilelib.ProfileError,
            OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
