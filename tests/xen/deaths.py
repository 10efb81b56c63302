# SPDX-License-Identifier: BSD-3-Clause
"""In dom0: one fork of a parent of many vCPUs, and deaths around it. usage: deaths.py domains | memtap
domains: the parent is destroyed, a clone while memtap serves it, and another while it waits for a page of a memtap that is dead.
memtap: it is killed twice while the clone's paging ring is full and its vCPUs wait for room, and then told to end; the clone
balloons, too.
Each time the clone claims free pages. Ends with status 0 if the one that is left goes on with its memory right."""
import ctypes
import mmap
import os
import re
import signal
import subprocess
import sys
import time

import xenfork

NB_VCPUS = 10  # two more than the paging ring has slots
NB_KILLS = 2
MIB, BALLOON_MIB = 192, 16
PAGES = range(0x800, MIB << 8, 512)  # of the clone, all over its memory
FAULTS_FIRST = 200  # that clones have had of a memtap when it dies
SETTINGS = (f"memory={MIB}", f"vcpus={NB_VCPUS}", "extra=\"console=hvc0 panic=-1 SF_MIB=40 SF_CLAIM_MS=100 SF_REST_MS=0 "
            f"SF_LOOKERS={NB_VCPUS} SF_CPUS={NB_VCPUS} maxcpus=1\"")


def faults(clones):
    return [row["faults"] or 0 for row in clones.rows()]


def wait_for_faults(clones):
    xenfork.wait_for("faults", lambda: min(faults(clones)) > FAULTS_FIRST, xenfork.PATIENCE_S, clones.tap,
                     *(clone.keeper for clone in clones.clones))


def ask_for_pages(domid):
    """By mapping many of them, as any tool of dom0 may: each that is missing takes a slot of the ring, as long as there are any.
    The call then waits for them, and so does not come back."""
    library = ctypes.CDLL("libxenforeignmemory.so.1", use_errno=True)
    library.xenforeignmemory_open.restype = library.xenforeignmemory_map.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(library.xenforeignmemory_open(None, 0))
    frames, errors = (ctypes.c_ulong * len(PAGES))(*PAGES), (ctypes.c_int * len(PAGES))()
    print("asking", flush=True)
    library.xenforeignmemory_map(handle, ctypes.c_uint32(domid), mmap.PROT_READ, ctypes.c_size_t(len(PAGES)), frames, errors)


def kill_memtap(clones):
    """While its clone's ring is full."""
    wait_for_faults(clones)
    os.kill(clones.tap.pid, signal.SIGSTOP)
    command = [sys.executable, "-B", __file__, "ask", xenfork.run("xl", "domid", "clone1").strip()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as asker:
        asker.stdout.readline()
        time.sleep(2)  # in which the vCPUs come to pages, too, and wait for room to ask
        asker.kill()
    clones.tap.kill()


def end_memtap(clones):
    """As its user does, while its clone runs; and starts the next. @return what was wrong, in words"""
    wait_for_faults(clones)
    complaints = xenfork.end([clones.tap], [])
    clones.start_tap()
    return "\n".join(complaints)


def nb_ends_while_pages_lacked(keeper):
    """How many memtaps have ended, in whatever way, before the clone had all its memory."""
    return keeper.tail(lines=1000).count("memtap is gone, and the clone waits for the next: it lacks")


def take_overs(keeper):
    """Of each memtap that ended: whether its ring was full."""
    return ["more vCPUs waited" in line for line in keeper.tail(lines=1000).splitlines() if "handed to the next memtap" in line]


def nb_pages(domid):
    """That a domain has, missing ones among them: of what Xen says of all domains when it is asked to."""
    xenfork.run("xl", "debug-keys", "q")
    said = re.findall(rf"General information for domain {domid}:.*?nr_pages=(\d+).*?paged_pages=(\d+)", xenfork.run("xl", "dmesg"),
                      re.DOTALL)
    return sum(map(int, said[-1])) if said else 0


def balloon(clones):
    """The clone gives pages back while it lacks others, and takes as many again."""
    domid = int(xenfork.run("xl", "domid", "clone1"))
    before = nb_pages(domid)
    for mib, done in ((MIB - BALLOON_MIB, lambda pages: pages <= before - (BALLOON_MIB << 7)), (MIB, lambda pages: pages >= before - 256)):
        xenfork.run("xl", "mem-set", "clone1", str(mib))
        xenfork.wait_for(f"{mib} MiB of clone1", lambda: done(nb_pages(domid)), xenfork.PATIENCE_S, clones.tap)
        print(f"ballooned to {nb_pages(domid)} pages of {before}", flush=True)


def destroy_last(clones):
    """A clone, whose keeper is to end well then. @return what was wrong, in words"""
    clone = clones.clones.pop()
    xenfork.run("xl", "destroy", clone.name)
    xenfork.wait_for(f"end of {clone.name}'s keeper", lambda: clone.keeper.status() is not None, xenfork.PATIENCE_S)
    return clone.keeper.status() != 0 and f"{clone.keeper.name} ended with {clone.keeper.status()}:\n{clone.keeper.tail()}"


def lose_domains(clones):
    """@return what was wrong, in words"""
    wait_for_faults(clones)
    xenfork.run("xl", "destroy", xenfork.PARENT)
    complaint = destroy_last(clones)
    if not complaint and "killed" in clones.tap.tail(lines=1000):
        complaint = f"memtap takes a clone that is destroyed for one in trouble:\n{clones.tap.tail()}"
    clones.tap.kill()
    complaint = complaint or destroy_last(clones)
    clones.start_tap()
    return complaint


def lose_memtaps(clones):
    """@return what was wrong, in words"""
    keeper = clones.clones[0].keeper
    for nb_kills in range(1, NB_KILLS + 1):
        kill_memtap(clones)
        clones.start_tap()
        xenfork.wait_for("take-over", lambda: len(take_overs(keeper)) == nb_kills, xenfork.PATIENCE_S, clones.tap, keeper)
        print(f"memtap killed {nb_kills} times; its ring was full: {take_overs(keeper)}", flush=True)
    if not all(take_overs(keeper)):
        return "the ring was not full when memtap died"
    if complaint := end_memtap(clones):
        return complaint
    xenfork.wait_for("take-over", lambda: len(take_overs(keeper)) == NB_KILLS + 1, xenfork.PATIENCE_S, clones.tap, keeper)
    if nb_ends_while_pages_lacked(keeper) != NB_KILLS + 1:
        return "a memtap ended when its clone had all its memory"
    balloon(clones)
    return ""


def main():
    names, lose = {"domains": (["clone1", "clone2", "clone3"], lose_domains), "memtap": (["clone1"], lose_memtaps)}[sys.argv[1]]
    xenfork.make_folders()
    xenfork.make_network()
    xenfork.SERVE.remove("--push")  # so that pages are missing to the end
    parent = xenfork.Parent(*SETTINGS)
    xenfork.run("xl", "pause", xenfork.PARENT)  # it would take the clones' CPU
    clones = xenfork.Clones(names)
    if complaint := lose(clones):
        print(complaint)
        return 1
    clones.wait(2 * xenfork.PATIENCE_S, len(xenfork.ticks("clone1")) + xenfork.GOOD_TICKS)
    row = clones.rows()[0]
    print(row)
    complaints = xenfork.end([*clones.processes(), parent.server], names)
    print("\n".join(complaints))
    return 0 if row["checksum_ok"] and not complaints else 1


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        ask_for_pages(int(sys.argv[2]))
    else:
        xenfork.script(main)
