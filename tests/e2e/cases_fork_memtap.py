# SPDX-License-Identifier: BSD-3-Clause
"""Cases of forks in which a memtap waits, or ends under its clones: killed, or stopped by a signal as an upgrade does."""
import os
import signal
import time

import vmlib
from forking import check_memory, check_parent, check_verified, family, start_memtaps
from lib import case, check, seconds_since, wait_until

CLONES = ((1, 1, True), (2, 1, False), (3, 1, False), (4, 2, True))  # id, host, and whether by postcopy


def kill_memtap(fleet):
    fleet.memtaps[1].kill()


def stop_memtap(fleet):
    """It ends as asked, and its server is told."""
    check(fleet.server_stats()["leaves"] == 0, "a memtap has left before")
    check(fleet.memtaps[1].stop() is None and fleet.memtaps[1].status() == 0, "memtap did not end as asked")
    wait_until(lambda: fleet.server_stats()["leaves"] == 1, "BYE has reached the server", 5.0)


@case(240)
def fork_memtap_waits_while_the_memserver_scans(context):
    """A memserver stands still after its descriptor, as if it scanned: memtap says that it waits, then joins."""
    with family(context, nb_hosts=1) as vms:
        vms.fork(1)
        server, log = vms.fleet.server, vms.fleet.dir / "memtap1.log"
        os.kill(server.pid, signal.SIGSTOP)

        def go_on():
            try:
                wait_until(lambda: log.exists() and "it may be scanning the memory still" in log.read_text(),
                           "memtap says that it waits")
            finally:
                os.kill(server.pid, signal.SIGCONT)

        said = vms.pool.submit(go_on)
        vms.fleet.start_memtap(1)
        said.result()
        vms.fleet.wait_server()
        check_memory(vms.settle(vms.spawn(1, 1)).vm)


def check_clones_wait_for_the_next(context, end_memtap):
    """One that QEMU migrates pauses until it is handed to the next memtap, which sends what it lacks, and nothing twice.
    Those that share memory find that memtap themselves: their preload library keeps the userfaultfd, so that no page
    reads as zeros. One of another host takes no note. @return a line about it"""
    with family(context) as vms:
        vms.fork(4)
        start_memtaps(vms)
        clones = [vms.spawn(clone_id, host, postcopy) for clone_id, host, postcopy in CLONES]
        migrated, *sharing, other = [vms.settle(clone) for clone in clones]
        end_memtap(vms.fleet)
        for clone in (migrated, *sharing):
            clone.vm.channel.send("VERIFY")
        migrated.vm.wait_migration("postcopy-paused")
        check_memory(other.vm)
        time.sleep(0.5)  # those that share come to pages they lack
        check(all(clone.vm.is_running() for clone in clones), "a clone has ended with its memtap")
        began = time.monotonic()
        vms.fleet.start_memtap(1)
        wait_until(lambda: vms.fleet.memtap_stats(1).get("guests") == len(sharing), "the next memtap has those that share")
        took_sharing = seconds_since(began)
        vms.recover(migrated)
        took = seconds_since(began)
        for clone in (migrated, *sharing):
            check_verified(clone.vm, vmlib.fields(clone.vm.channel.expect("VERIFIED", 120.0)))
            check(vms.guest_counters(clone)["installed_pages"] > 0, f"VM {clone.vm.name} lacked nothing: this shows nothing")
        check_parent(vms)
        return f"the next memtap has those that share memory after {took_sharing}, the other after {took}"


@case(240)
def fork_memtap_killed_clones_wait_for_the_next(context):
    return check_clones_wait_for_the_next(context, kill_memtap)


@case(240)
def fork_memtap_stopped_clones_wait_for_the_next(context):
    return check_clones_wait_for_the_next(context, stop_memtap)
