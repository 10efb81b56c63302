# SPDX-License-Identifier: BSD-3-Clause
"""Cases with real VMs that go against each other: several parents, parents that change, and that are gone."""
import pathlib
import re
import time
from concurrent.futures import ThreadPoolExecutor

import vmlib
from forking import (NB_DIRTY_PAGES, NB_PATTERN_PAGES, check_answer, check_memory, check_parent, check_verified, family,
                     fork, parent_in, second_fleet_of, start_memtaps, vm_lab)
from lib import Failed, case, check, check_no_leftovers, seconds_since, wait_until

LARGE_VM_MB, LARGE_FILL_MB = 192, 64


@case(300)
def fork_two_parents_at_once_on_the_same_hosts(context):
    """Each has its own memserver, and a memtap on every host: on the wire, and on the ports, both families meet."""
    # A process dies with the thread that started it: the pool outlives the fleets.
    with ThreadPoolExecutor(2) as pool, vm_lab() as lab:
        with parent_in(lab, context) as first, parent_in(lab, context, number=1) as second:
            families = (first, second)
            counters = []
            for vms, nb_requests in zip(families, (1, 3)):
                counters.append([vms.ask_web(vms.identity(0)) for _ in range(nb_requests)][-1]["counter"])
            for vms, counter, clones in zip(families, counters, pool.map(lambda vms: fork(vms, 2), families)):
                for clone in clones:
                    check_answer(clone)
                    check(clone.answer["counter"] == counter + 1, f"VM {clone.vm.name} answers {clone.answer}")
            for done in [pool.submit(check_memory, clone.vm) for vms in families for clone in vms.clones]:
                done.result()
            for vms in families:
                check_parent(vms)
            foreign = [vms.fleet.memtap_stats(host)["rx_drop_foreign_image"] for vms in families for host in (1, 2)]
    for vms in families:
        check_no_leftovers(lab, vms.fleet)
    return f"{foreign} frames of the other family came to the memtaps"


@case(240)
def fork_is_asked_for_by_a_program_in_the_guest(context):
    """It hears first that there is none, and asks again. Then it goes on in parent and clones: each says its number."""
    with family(context) as vms:
        program = 'n=$(sf-clone 2 2>&1); echo "program: $n of $(hostname)"'
        vms.parent.channel.ask(f"RUN {program}", "RUNNING")
        check(vms.parent.wait_clone_call() == 2, "the guest wants another number of clones")
        vms.parent.cancel_fork("not now")
        vms.parent.wait_console("program: sf-clone: Operation canceled of sf0-0", 20.0)
        vms.parent.channel.ask(f"RUN {program}", "RUNNING")
        nb_clones = vms.fork_for_guest()
        check(nb_clones == 2, f"the guest wants {nb_clones} clones")
        start_memtaps(vms)
        vms.parent.wait_console("program: 0 of sf0-0", 20.0)
        for clone in [vms.settle(vms.spawn(i, i)) for i in range(1, nb_clones + 1)]:
            clone.vm.wait_console(f"program: {clone.identity.id} of {clone.identity.hostname}", 20.0)
            check_answer(clone)
            check_memory(clone.vm)
        check_parent(vms)


def rewrite_all(vm, nb_pages=NB_PATTERN_PAGES):
    """Has the guest rewrite all of its pattern as fast as it can. @return pages it has rewritten until now"""
    return vmlib.fields(vm.channel.ask(f"DIRTY {nb_pages}", "DIRTYING"))["rewritten"]


def anonymous_pages(process):
    """Pages of a process that are no file's: in a memserver, those that it set aside, and a constant."""
    text = pathlib.Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    return int(re.search(r"^Anonymous: +(\d+) kB", text, re.MULTILINE).group(1)) // 4


@case(300)
def fork_parent_rewrites_everything_while_clones_read_it(context):
    """Both go through the same pages at the same time, most of which no clone has yet: each clone has all as it was."""
    nb_pages = LARGE_FILL_MB * 256
    with family(context, mb=LARGE_VM_MB, fill_mb=LARGE_FILL_MB) as vms:
        vms.fork(3)
        start_memtaps(vms)
        clones = [vms.settle(vms.spawn(clone_id, clone_id)) for clone_id in (1, 2)]
        alone = anonymous_pages(vms.fleet.server)
        for clone in clones:
            clone.vm.channel.send("VERIFY")
        before = rewrite_all(vms.parent, nb_pages)
        for clone in clones:
            check_verified(clone.vm, vmlib.fields(clone.vm.channel.expect("VERIFIED", 120.0)), nb_pages)
        during = rewrite_all(vms.parent, nb_pages) - before
        check(during > 0, "the parent wrote nothing while its clones read")
        wait_until(lambda: rewrite_all(vms.parent, nb_pages) - before >= nb_pages, "the parent has rewritten all", 60.0)
        aside = anonymous_pages(vms.fleet.server) - alone
        check(aside >= 0.9 * (nb_pages - NB_DIRTY_PAGES), f"memserver set {aside} pages aside")
        check_memory(vms.settle(vms.spawn(3, 1)).vm, nb_pages)
        check_parent(vms, nb_pages)
        return f"{during} pages rewritten while the clones read {nb_pages}; memserver set {aside} aside"


def stop_at(vms, came_so_far, extra=()):
    """Starts to fork and stops memserver when `came_so_far` says so of it. @return what it logged, and how long it took to end"""
    vms.parent.ask_fork(1)
    server = vms.launch_server(extra)
    wait_until(lambda: came_so_far(server), "memserver is at work", 60.0)
    began = time.monotonic()
    complaint = server.stop()
    took = seconds_since(began)
    check(not complaint and server.status() == 0, f"memserver: {complaint or server.status()}")
    vms.parent.channel.send("FAIL the memserver was stopped")
    vms.parent.channel.line(30.0)  # the agent's ERROR about its FORK
    return server.log.read_text(), took


def check_forkable(vms):
    for clone in fork(vms, 1):
        check_answer(clone)
        check_memory(clone.vm)
    check_parent(vms)


@case(300)
def fork_memserver_stopped_while_it_scans(context):
    """Its descriptor goes with it, and the parent, which ran on, can be forked again."""
    with family(context) as vms:
        for attempt in range(1, 6):
            said, took = stop_at(vms, lambda _: vms.descriptor.exists(), ("--detach",))
            if "stopped before anything was served" in said:
                break
            vms.descriptor.unlink()
        else:
            raise Failed("memserver served its image before it could be stopped, each time")
        check(not vms.descriptor.exists(), f"{vms.descriptor} is there still")
        check_forkable(vms)
        return f"ended after {took}, in attempt {attempt}"


@case(300)
def fork_memserver_stopped_during_a_background_snapshot(context):
    """QEMU would hang if the snapshot were broken off."""
    with family(context, shim=False) as vms:
        said, took = stop_at(vms, lambda server: "freezing the parent" in server.log.read_text())
        check("stopped before anything was served" in said, f"memserver says {said}")
        check(not vms.descriptor.exists(), f"{vms.descriptor} is there")
        check_forkable(vms)
        return f"ended after {took}"


@case(300)
def fork_clones_begin_long_after_the_parent_is_gone(context):
    """Nobody has read a page when the parent, which went on and changed everything, is killed: what memserver holds is
    a checkpoint. Clones of both kinds have the memory of the instant, and answer as if it were now."""
    with family(context) as vms:
        counter = vms.ask_web(vms.identity(0))["counter"]
        vms.fork(4)
        vms.fleet.wait_server()
        before = rewrite_all(vms.parent)
        wait_until(lambda: rewrite_all(vms.parent) - before >= NB_PATTERN_PAGES, "the parent has rewritten all", 60.0)
        check(vms.ask_web(vms.identity(0))["counter"] == counter + 1, "the parent does not count on")
        vms.parent.process.kill()
        start_memtaps(vms)
        clones = [vms.spawn(i, 1 + i % 2, postcopy=i <= 2) for i in (1, 2, 3, 4)]
        for clone in [vms.settle(clone) for clone in clones]:
            check_answer(clone)
            check(clone.answer["counter"] == counter + 1, f"VM {clone.vm.name} answers {clone.answer}")
            check_memory(clone.vm)


@case(300)
def fork_checkpoints_of_one_parent_are_served_at_once(context):
    """The first memserver has copied the parent's memory and let go of it, so a second one can freeze the parent. The
    clones of each have the memory of their instant, also those that begin when the parent is gone."""
    with family(context, server_args=("--detach",)) as first, second_fleet_of(first, context) as second:
        counters = {}
        for vms in (first, second):
            counters[vms] = first.ask_web(first.identity(0))["counter"]
            vms.fork(6)
            start_memtaps(vms)
        check(counters[first] != counters[second], f"both checkpoints are of one instant: {counters.values()}")
        settled = [(vms, vms.settle(vms.spawn(clone_id, host)))
                   for vms, clone_id, host in ((first, 1, 1), (second, 2, 1), (first, 3, 2), (second, 4, 2))]
        first.parent.process.kill()
        settled += [(vms, vms.settle(vms.spawn(clone_id, 2, postcopy=False)))
                    for vms, clone_id in ((first, 5), (second, 6))]
        for vms, clone in settled:
            check_answer(clone)
            check(clone.answer["counter"] == counters[vms] + 1, f"VM {clone.vm.name} answers {clone.answer}")
            check_memory(clone.vm)
    check_no_leftovers(first.lab, second.fleet)
