# SPDX-License-Identifier: BSD-3-Clause
"""The demo's fork of a running VM."""
import os
import sys
import time

import fleetlib
import forklib
import lablib
import tablelib
import vmlib


def step(text):
    print(f"demo: {text}", flush=True)


def start_clone(family, clone_id, host, postcopy):
    clone = family.spawn(clone_id, host, postcopy)
    family.settle(clone)
    clone.before = family.guest_counters(clone)
    return clone


def wait_for_clones(family, jobs):
    """Shows how far they are until each has answered."""
    live = tablelib.Live()
    while not all(job.done() for job in jobs):
        rows = [live_row(family, clone) for clone in sorted(family.clones, key=lambda c: c.identity.id)]
        live.show(tablelib.fork_progress(rows))
        time.sleep(0.2)
    live.end()
    return [job.result() for job in jobs]


def live_row(family, clone):
    counters = family.guest_counters(clone)
    state = next((state for mark, state in (("first_answer", "answers"), ("ready", "is itself"), ("handed_over", "runs"))
                  if mark in clone.times_ms), "starts")
    return {"id": clone.identity.id, "host": clone.host, "state": state, "pages": counters.get("installed_pages"),
            "faults": counters.get("faults"), **fault_times(counters), "first_answer_ms": clone.times_ms.get("first_answer")}


def fault_times(counters):
    """Microseconds; None while there was no fault."""
    return {f"fault_us_{p}": counters[f"fault_ns_{p}"] / 1000 if counters.get(f"fault_ns_{p}") else None
            for p in ("p50", "p99")}


def clone_row(family, clone):
    check_program(clone.vm, clone.identity.id)
    after = family.guest_counters(clone)
    try:
        found = forklib.verify(clone.vm)
    except vmlib.VmError as error:
        raise clone.vm.failure(str(error)) from error
    installed = clone.before.get("installed_pages")
    return {
        "id": clone.identity.id, "host": clone.host, "answered_id": clone.answer.get("id"),
        "counter": clone.answer.get("counter"), "hostname": clone.answer.get("hostname"),
        "first_answer_ms": clone.times_ms.get("first_answer"), "ready_ms": clone.times_ms.get("ready"),
        **fault_times(clone.before), "pages_before_answer": installed, "faults_before_answer": clone.before.get("faults"),
        "pages": after.get("installed_pages"), "memory_ok": found["bad"] == 0 and found["pages"] > 0,
        "checked_pages": found["pages"],
    }


def results(args, family, fleet, rows, parent, seconds):
    server = fleet.server_stats()
    freeze = fleet.info["freeze"]
    return {
        "clones": rows, "parent": parent,
        "parent_pause_ms": freeze["pause_us"] / 1000, "descriptor_ms": freeze["descriptor_ms"],
        "freeze_ms": freeze["total_ms"],
        "descriptor_bytes": forklib.descriptor_bytes(family.descriptor),
        "guest_ram_bytes": args.vm_mb << 20, "avoided_pages": freeze["avoided_pages"],
        "image_pages": fleet.info["images"][0]["pages"], "zero_pages": fleet.info["images"][0]["zero_pages"],
        "wire_bytes": server.get("tx_bytes"), "multicast_pages": server.get("tx_pages_multicast"),
        "unicast_pages": server.get("tx_pages_unicast"), "lockstep_hits": server.get("lockstep_hits"),
        "mtu": args.mtu, "loss": args.loss, "hosts": args.hosts, "seconds": round(seconds, 3),
    }


def check(table, nb_clones):
    """What is wrong with the outcome, in words."""
    wrong = []
    for row in table["clones"]:
        if row["answered_id"] != row["id"]:
            wrong.append(f"clone {row['id']} answers as {row['answered_id']}")
        if row["counter"] != table["parent"]["counter_at_fork"] + 1:
            wrong.append(f"clone {row['id']} counts {row['counter']}, not {table['parent']['counter_at_fork'] + 1}")
        if not row["memory_ok"]:
            wrong.append(f"clone {row['id']}: its memory is not the parent's")
    if len(table["clones"]) != nb_clones:
        wrong.append(f"{len(table['clones'])} clones of {nb_clones}")
    if table["parent"]["answered_id"] != 0 or not table["parent"]["memory_ok"]:
        wrong.append(f"the parent is not what it was: {table['parent']}")
    return wrong


def fork_for_program(family, nb_clones):
    """A program in the guest calls sf_clone; what it gets in each VM it says on the console."""
    family.parent.channel.ask(f'RUN echo "the program is $(sf-clone {nb_clones})"', "RUNNING")
    wanted = family.fork_for_guest()
    if wanted != nb_clones:
        raise vmlib.VmError(f"the program in the guest asks for {wanted} clones, not {nb_clones}")


def check_program(vm, vm_id):
    vm.wait_console(f"the program is {vm_id}\n", 20.0)


def fork(args, family, fleet):
    step(f"booting the parent: {args.vm_mb} MiB")
    parent = family.boot()
    parent.channel.ask(f"FILL {args.fill_mb}", "FILLED", 120.0)
    for _ in range(3):
        counter = family.ask_web(family.identity(0))["counter"]
    parent.channel.ask("DIRTY 4096", "DIRTYING")  # it is frozen in the middle of writing, and clones wake in it
    step(f"forking it to {args.clones} clones on {args.hosts} hosts, MTU {args.mtu}")
    began = time.monotonic()
    fork_for_program(family, args.clones)
    parent.channel.ask(f"DIRTY {args.fill_mb << 8}", "DIRTYING")  # while clones fetch it, the parent rewrites all
    if args.record:
        faults = family.record_first_clone(args.record.absolute(), args.clone_memory == "postcopy")
        step(f"a clone ahead of all had {faults} faults until it answered: {args.record}")
    if args.working_set:
        family.add_working_set(args.working_set.absolute())
    fleet.start_memtaps(range(1, args.hosts + 1))
    fleet.wait_server()
    freeze = fleet.info["freeze"]
    how = "write protection" if freeze["by_shim"] else "background snapshot"
    step(f"frozen by {how}: paused for {freeze['pause_us'] / 1000:.0f} ms, descriptor written after "
         f"{freeze['descriptor_ms']} ms, image complete after {freeze['total_ms']} ms")
    jobs = [family.pool.submit(start_clone, family, i, 1 + (i - 1) % args.hosts, args.clone_memory == "postcopy")
            for i in range(1, args.clones + 1)]
    clones = wait_for_clones(family, jobs)
    seconds = time.monotonic() - began
    step("every clone answers; checking their memory")
    rows = [clone_row(family, clone) for clone in clones]
    parent.channel.ask("DIRTY 0", "DIRTYING")
    check_program(parent, 0)
    answer = family.ask_web(family.identity(0))
    parent_row = {"answered_id": answer["id"], "counter_at_fork": counter, "counter": answer["counter"],
                  "memory_ok": forklib.verify(parent)["bad"] == 0}
    return results(args, family, fleet, rows, parent_row, seconds)


def run(args, profile):
    """@return (table, what is wrong)"""
    options = fleetlib.Options(args.build_dir, None, args.profile, lablib.TAP if profile.tap else lablib.PORT,
                               args.loss, args.seed)
    lab = lablib.Lab(f"sf-demo-{os.getpid()}", args.hosts, args.mtu, profile.tap)
    with lab, fleetlib.Fleet(lab, options) as fleet:
        lab.add_vm_net(vmlib.HOST_IP)
        try:
            with forklib.Family(lab, fleet, mb=args.vm_mb, shim=not args.no_shim) as family:
                table = fork(args, family, fleet)
            complaints = fleet.stop()
        except Exception:
            for process in fleet.processes():
                print(process.tail(), file=sys.stderr)
            raise
    for complaint in complaints:
        print(f"demo: warning: {complaint}", file=sys.stderr)
    tablelib.show_fork(table)
    return table, check(table, args.clones)
