# SPDX-License-Identifier: BSD-3-Clause
"""Cases with real VMs: a running QEMU is frozen, its clones are unmodified QEMUs, the guests check their own memory."""
import json
import os
import pathlib
import re
import sys
import time

import fleetlib
import forklib
import lablib
import vmlib
from forking import VM_MB, check_memory, check_parent, family, fork, start_memtaps
from lib import Failed, check, check_no_leftovers, check_told, case, key_file, lab_name, seconds_since, wait_until

SMALL_VM_MB = 192
NB_VM_PAGES = VM_MB * 256
# The page cache takes what the device returns: zeros, without an end. It would be emptied when nobody had that open.
PRESSURE = ("insmod /modules/brd.ko rd_nr=1 rd_size=1048576; exec 8</dev/ram0; "
            "while :; do cat /dev/ram0 >/dev/null; done")
GIVE_UP_S = 3


def said(vm, command):
    """What a shell command prints in the guest."""
    before = len(vm.console.read_text(errors="replace"))
    vm.channel.ask(f"RUN {{ {command}; echo end of it; }} >/dev/console", "RUNNING")
    text = lambda: vm.console.read_text(errors="replace")[before:]  # noqa: E731 (local, one line)
    wait_until(lambda: "end of it" in text(), f"the guest has done {command}")
    return text()


def free_kb(vm):
    """MemFree as the guest says it now."""
    return int(re.search(r"MemFree: +(\d+) kB", said(vm, "grep MemFree /proc/meminfo"))[1])


def nb_reclaimed(vm):
    """Pages that the guest's kernel has taken back because there were too few."""
    return sum(map(int, re.findall(r"pgsteal_(?:kswapd|direct) (\d+)", said(vm, "grep pgsteal /proc/vmstat"))))


def wait_until_full(vm):
    """Until the guest's kernel has reclaimed as much as there is: what was free before is in use."""
    before = nb_reclaimed(vm)
    wait_until(lambda: nb_reclaimed(vm) - before > NB_VM_PAGES, "the guest's kernel reclaims", 60.0)


def churn(vm, mb):
    """Has the guest take and give back memory, and waits until it holds most of what it shall hold at a time."""
    free_before = free_kb(vm)
    vm.channel.ask(f"CHURN {mb}", "CHURNING")
    wait_until(lambda: free_kb(vm) < free_before - 0.8 * mb * 1024, f"the guest holds {mb} MiB more")


def check_churn(vm):
    """Has the guest check all it holds, after what it has checked since it began."""
    found = vmlib.fields(vm.channel.ask("CHURN 0", "CHURNING", 120.0))
    check(found["bad"] == 0 and found["verified"] > 0, f"VM {vm.name}: {found}")


@case(240)
def fork_clones_answer_as_themselves(context):
    """With frames lost, pages in fragments, sealed by a key and checked by a hash tree, both of the descriptor: each clone
    has the parent's memory and counter, and its own id. The descriptor is small."""
    args = ("--key", key_file(context), "--hash-tree")
    with family(context, mb=SMALL_VM_MB, mtu=1500, loss=3.0, server_args=args) as vms:
        counter = vms.ask_web(vms.identity(0))["counter"]
        clones = fork(vms, 3)
        for says in ("frames sealed", "nodes fetched and checked"):
            check(says in vms.fleet.memtaps[1].tail(1000), f"memtap does not say: {says}")
        nb_bytes = forklib.descriptor_bytes(vms.descriptor)
        check(nb_bytes * 500 <= SMALL_VM_MB << 20, f"a descriptor of {nb_bytes} bytes for {SMALL_VM_MB} MiB")
        for clone in clones:
            freeze = vms.fleet.info["freeze"]
            check(freeze["by_shim"] == 1, "not frozen by write protection")
            check(freeze["descriptor_ms"] <= freeze["total_ms"], f"the descriptor came last: {freeze}")
            check(clone.answer == {"id": clone.identity.id, "counter": counter + 1, "hostname": clone.identity.hostname},
                  f"clone {clone.identity.id} answers {clone.answer}")
            check_memory(clone.vm)
        drawn = {vm.channel.ask("RANDOM", "RANDOM") for vm in (vms.parent, *(clone.vm for clone in clones))}
        check(len(drawn) == 1 + len(clones), f"clones have the random numbers of others: {drawn}")
        check_parent(vms)
        return f"{nb_bytes} bytes of descriptor, 1/{(SMALL_VM_MB << 20) // nb_bytes} of the memory"


def frames_sent(vm):
    """By its network card, as the host's end of it counts them."""
    nic = vm.nic
    stats = json.loads(lablib.run(["ip", *(["-n", nic.netns] if nic.netns else []), "-s", "-j", "link", "show", nic.tap]))
    return stats[0]["stats64"]["rx"]["packets"]


@case(240)
def fork_clone_sends_nothing_until_it_is_somebody(context):
    """It runs, and still takes itself for its parent, whose address it is asked for: its link is down until it has its own."""
    with family(context, nb_hosts=1) as vms:
        vms.fork(2)
        start_memtaps(vms)
        clones = [vms.spawn(1, 1), vms.spawn(2, 1, postcopy=False)]
        before = [vms.ask_web(vms.identity(0)) for _ in range(5)]  # with the parent's address on every card
        check(len(before) == 5, "the parent does not answer")
        for clone in clones:
            wait_until(lambda c=clone: vms.guest_counters(c).get("faults", 0) > 0, "the clone runs")
        time.sleep(1.0)
        sent = [frames_sent(clone.vm) for clone in clones]
        check(sent == [0, 0], f"frames sent by clones that are nobody: {sent}")
        for clone in clones:
            vms.settle(clone)
        sent = [frames_sent(clone.vm) for clone in clones]
        check(all(sent), f"frames sent by clones that are somebody: {sent}")


def fork_with_free_pages(vms, check_clone):
    """Forks to two clones that check what they hold. @return what memserver says of the freeze"""
    clones = fork(vms, 2)
    freeze = vms.fleet.info["freeze"]
    check(freeze["avoided_pages"] <= min(freeze["free_pages"], vms.fleet.info["images"][0]["zero_pages"]),
          f"{vms.fleet.info}")
    for clone in clones:
        check_clone(clone.vm)
        check_memory(clone.vm)
    vms.end_fork()
    return freeze


def forks_under_pressure(vms, nb_forks):
    """While a few per cent of the memory are free, other ones all the time. @return a line about it"""
    freezes, reclaimed = [], [nb_reclaimed(vms.parent)]
    for _ in range(nb_forks):
        freezes.append(fork_with_free_pages(vms, check_churn))
        reclaimed.append(nb_reclaimed(vms.parent))
        print(f"    {reclaimed[-1]} pages reclaimed: {freezes[-1]}", file=sys.stderr)
        check(reclaimed[-1] > reclaimed[-2], "the guest's kernel does not reclaim any more")
        check(freezes[-1]["free_pages"] <= 0.1 * NB_VM_PAGES, f"too many pages are free: {freezes[-1]}")
    # MemFree is another one by the time it is known, and what was free is written before the freeze.
    free, avoided = (sum(freeze[key] for freeze in freezes) for key in ("free_pages", "avoided_pages"))
    check(avoided > 0.5 * free, f"{avoided} pages avoided, and the guest called {free} free, in all forks")
    most = max(freeze["free_pages"] for freeze in freezes)
    return (f"{nb_forks} forks with at most {100 * most / NB_VM_PAGES:.1f} % free, {100 * avoided / free:.0f} % of it "
            f"avoided, {reclaimed[-1] - reclaimed[0]} pages reclaimed")


def least_free_kb(vm):
    """Less is not free while the guest takes and gives back the same again and again: MemFree counts what it just gave back."""
    samples = []
    for _ in range(10):
        samples.append(free_kb(vm))
        time.sleep(0.1)
    return min(samples)


def fork_avoids_what_is_free(vms, check_clone=lambda vm: None):
    """Nearly all that is free at any time is left out. @return a line about it"""
    free_pages = least_free_kb(vms.parent) // 4
    avoided = fork_with_free_pages(vms, check_clone)["avoided_pages"]
    check(avoided > 0.8 * free_pages, f"{avoided} pages avoided, and {free_pages} were free")
    return f"{avoided} pages avoided, and at least {free_pages} were free"


@case(240, round_s=60)
def fork_never_avoids_a_page_in_use(context):
    """While the guest takes, checks and gives back memory, and rewrites other: what was free is not fetched, and no
    clone misses a page. Also while it reads a device larger than its memory, so that its kernel reclaims all the
    time, and when that stands still and leaves little free."""
    with family(context, cpus=2, spare_modules=("brd",)) as vms:
        churn(vms.parent, 8)
        notes = [fork_avoids_what_is_free(vms, check_churn)]
        check_churn(vms.parent)
        churn(vms.parent, 20)
        reader = vms.parent.channel.ask(f"RUN {PRESSURE}", "RUNNING")
        wait_until_full(vms.parent)
        notes.append(forks_under_pressure(vms, context.rounds))
        check_churn(vms.parent)
        wait_until_full(vms.parent)
        said(vms.parent, f"kill -STOP {reader}; killall -STOP cat")
        check(free_kb(vms.parent) < 0.1 * NB_VM_PAGES * 4, "more than a tenth of the memory is free")
        notes.append(fork_avoids_what_is_free(vms))
        check_parent(vms)
        return "; ".join(notes)


@case(240)
def fork_avoids_nothing_where_the_agent_refuses(context):
    """As it does under page_poison=1, even where the kernel, as Debian's for clouds, knows nothing of that."""
    with family(context, mb=SMALL_VM_MB, kernel_args=("page_poison=1",)) as vms:
        for clone in fork(vms, 1):
            avoided = vms.fleet.info["freeze"]["avoided_pages"]
            check(avoided == 0, f"{avoided} pages avoided")
            check("page_poison=1" in vms.fleet.server.tail(1000), "memserver does not say why no page was avoided")
            check_memory(clone.vm)
        check_parent(vms)


@case(300)
def fork_avoids_free_pages_behind_the_hole_for_devices(context):
    """Of a guest with more memory than fits below 4 GiB, where frames and pages have different numbers."""
    with family(context, mb=5120) as vms:
        free_pages = free_kb(vms.parent) // 4
        for clone in fork(vms, 1):
            avoided = vms.fleet.info["freeze"]["avoided_pages"]
            check(avoided > 0.9 * free_pages, f"{avoided} pages avoided, and {free_pages} were free")
            check_memory(clone.vm)
        check_parent(vms)
        return f"{avoided} of {free_pages} pages"


@case(240)
def fork_late_clones_cost_neither_wire_nor_faults(context):
    """On a host that has the pages a late clone costs the wire nothing; with the working set of an earlier clone it
    does not even ask."""
    with family(context) as vms:
        vms.fork(3)
        record = vms.fleet.dir / "working-set"
        vms.fleet.start_memtap(1, extra=("--record", record))
        vms.fleet.wait_server()
        first = vms.settle(vms.spawn(1, 1))
        faults, sent = vms.guest_counters(first)["faults"], vms.fleet.server_stats()["tx_bytes"]
        vms.settle(vms.spawn(2, 1))
        more = vms.fleet.server_stats()["tx_bytes"] - sent
        check(more <= 0.2 * sent, f"a second clone on the same host cost {more} bytes, the first {sent}")
        wait_until(lambda: len(record.read_text().splitlines()) > 0, "the working set is recorded")
        vms.fleet.start_memtap(2, extra=("--working-set", record))
        loaded = vms.settle(vms.spawn(3, 2))
        left = vms.guest_counters(loaded)["faults"]
        check(left <= 0.1 * faults, f"{left} faults with the working set, {faults} without")
        check_memory(loaded.vm)
        return f"{more / sent:.3f} of the bytes, {left} of {faults} faults"


@case(240)
def fork_without_the_shim_takes_a_snapshot(context):
    with family(context, shim=False) as vms:
        for clone in fork(vms, 2):
            freeze = vms.fleet.info["freeze"]
            check((freeze["by_shim"], freeze["avoided_pages"]) == (0, 0), f"not a background snapshot of all: {freeze}")
            check_memory(clone.vm)
        stopped = vms.parent.qmp.wait_event("STOP", 5.0)["timestamp"]
        stopped_ns = (stopped["seconds"] * 10**6 + stopped["microseconds"]) * 1000
        frozen_ns = forklib.show(context.build, vms.descriptor)["frozen_at_ns"]
        check(frozen_ns == stopped_ns, f"QEMU stopped the VM at {stopped_ns}, the descriptor is of {frozen_ns}")
        check_parent(vms)


@case(240)
def fork_a_vm_with_a_balloon_takes_a_snapshot(context):
    """What the balloon gives back would be gone from memory that stays in place."""
    with family(context, devices=("virtio-balloon-pci,addr=0x5",)) as vms:
        for clone in fork(vms, 1):
            check(vms.fleet.info["freeze"]["by_shim"] == 0, "frozen by write protection")
            check_memory(clone.vm)
        check("balloon" in vms.fleet.server.log.read_text(), "memserver does not say why")
        check_parent(vms)


def thread_cpus(process, name):
    """The CPUs on which each thread of that name may run, by thread id."""
    tasks = pathlib.Path(f"/proc/{process.pid}/task").iterdir()
    return {int(t.name): os.sched_getaffinity(int(t.name)) for t in tasks if (t / "comm").read_text().strip() == name}


@case(240)
def fork_outlives_its_parent(context):
    """With a memserver that polls on one CPU: the thread on which the parent's writes wait has all of them."""
    cpus = os.sched_getaffinity(0)
    with family(context, server_args=("--lcores", f"0@{min(cpus)}")) as vms:
        clones = fork(vms, 2)
        check(list(thread_cpus(vms.fleet.server, "sf-cow").values()) == [cpus],
              "the thread that sets pages aside is pinned")
        check(os.sched_getaffinity(vms.fleet.server.pid) == {min(cpus)}, "the lcore is not pinned")
        vms.parent.process.kill()
        for clone in clones:
            check_memory(clone.vm)


@case(240)
def fork_clones_of_a_host_share_memory(context):
    """Clones that map memtap's image: after equal work three need little more memory than one."""
    with family(context, nb_hosts=1) as vms:
        vms.fork(3)
        vms.fleet.start_memtap(1)
        vms.fleet.wait_server()
        clones = []
        for clone_id in (1, 2, 3):
            clones.append(vms.settle(vms.spawn(clone_id, 1, postcopy=False)))
            check_memory(clones[-1].vm)
            check(clones[-1].answer["id"] == clone_id, f"clone {clone_id} answers {clones[-1].answer}")
            if clone_id == 1:
                alone = forklib.settled_ram_pss_kib(clones)
        ratio = forklib.settled_ram_pss_kib(clones) / alone
        check(1.0 < ratio <= 1.5, f"three clones need {ratio:.2f} x the memory of one, {alone} KiB")
        check_parent(vms)
        return f"{ratio:.2f} x the memory of one"


@case(240)
def fork_memserver_killed_parent_runs_on_and_clones_pause(context):
    with family(context, memtap_args=("--give-up", GIVE_UP_S)) as vms:
        clones = fork(vms, 2)
        vms.fleet.server.kill()
        for clone in clones:
            clone.vm.channel.send("VERIFY")
        began = time.monotonic()
        for clone in clones:
            clone.vm.wait_migration("postcopy-paused", timeout_s=GIVE_UP_S + 15.0)  # its page cannot be had
        took = seconds_since(began)
        for host in vms.fleet.memtaps:
            check_told(vms.fleet, host, ("pauses",))
        check_parent(vms)
        return f"both are paused after {took}"


@case(240)
def fork_goes_on_from_its_checkpoint(context):
    """memserver is killed under its clones, and another serves what it had written of the parent, which runs on meanwhile."""
    with family(context) as vms:
        checkpoint = vms.fleet.dir / "checkpoint"
        vms.fleet.opt.server_args = ("--checkpoint", checkpoint)
        clones = fork(vms, 2)
        wait_until(checkpoint.exists, "the checkpoint is complete", 60.0)
        vms.fleet.server.kill()
        began = time.monotonic()
        vms.fleet.opt.server_args = ()
        vms.fleet.start_server(extra=("--restore", checkpoint, "--descriptor", vms.descriptor))
        took = seconds_since(began)
        for clone in clones:
            check_memory(clone.vm)
        check_parent(vms)
        return f"served again after {took}"


@case(120)
def parent_with_a_writable_disk_is_refused(context):
    lab = lablib.Lab(lab_name(), 1)
    disk = context.workdir / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    with lab, fleetlib.Fleet(lab, fleetlib.Options(context.build, None)) as fleet:
        monitor = fleet.dir / "qmp.sock"
        qemu = fleet.start_other("qemu", [vmlib.QEMU, *vmlib.machine_args(nic=False), "-S", "-chardev", "null,id=console",
                                          "-chardev", "null,id=agent", "-chardev", "null,id=free", "-drive",
                                          f"file={disk},format=raw,if=virtio", "-qmp", f"unix:{monitor},server=on,wait=off"])
        fleet.wait_for(qemu, monitor.exists, "listening", 20.0)
        descriptor = fleet.dir / "parent.descriptor"
        try:
            fleet.start_server(30.0, extra=("--qemu", monitor, "--descriptor", descriptor))
        except fleetlib.FleetError as error:
            check("is writable" in str(error), f"refused for another reason: {error}")
        else:
            raise Failed("a parent with a writable disk was frozen")
        check(not descriptor.exists(), "a descriptor was left behind")
    check_no_leftovers(lab, fleet)
