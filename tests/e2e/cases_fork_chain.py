# SPDX-License-Identifier: BSD-3-Clause
"""Cases in which a clone is forked again, whether it has all its memory by then or not."""
from forking import check_answer, check_memory, check_parent, family, second_fleet_of, start_memtaps
from lib import case, check, check_no_leftovers

GIVE_UP_S = 3


def nb_missing(vms, clone):
    counters = vms.guest_counters(clone)
    return vms.fleet.info["images"][0]["pages"] - counters["installed_pages"] - counters["zero_pages"]


def check_grandchildren(first, second, clone, ids):
    """Forks the clone, and has its children of both kinds show that they are the clone's."""
    counter = first.ask_web(clone.identity)["counter"]
    second.fork(8)
    start_memtaps(second)
    children = [second.spawn(i, 1 + i % 2, postcopy=i % 2 == 0) for i in ids]
    for child in [second.settle(child) for child in children]:
        check_answer(child)
        check(child.answer["counter"] == counter + 1, f"VM {child.vm.name} answers {child.answer}, not {counter + 1}")
        check_memory(child.vm)
    check(first.ask_web(clone.identity)["id"] == clone.identity.id, f"VM {clone.vm.name} is no longer itself")


@case(400)
def fork_a_clone_that_is_completed_for_it(context):
    """A clone of each kind, without most of its memory: its memtap fetches that first, and lets go of the clone. So it
    can be forked, and once more when the memserver it came from is gone. All three generations go on."""
    found, fleets = [], []
    with family(context) as first:
        first.fork(2)
        start_memtaps(first)
        clones = [first.settle(first.spawn(i, i, postcopy=i == 1, forkable=True)) for i in (1, 2)]
        for clone in clones:
            found.append(nb_missing(first, clone))
            check(found[-1] > 0, "nothing is missing: this shows nothing")
            with second_fleet_of(first, context, clone) as second:
                check_grandchildren(first, second, clone, (3, 4))
                check(not first.guest_counters(clone), "a complete clone is a guest of its memtap still")
                second.end_fork()
                check_grandchildren(first, second, clone, (5,))
                check_memory(clone.vm)
            fleets.append(second.fleet)
        check_parent(first)
    for fleet in fleets:
        check_no_leftovers(first.lab, fleet)
    return f"{found} pages were missing"


@case(240)
def fork_a_clone_whose_memserver_is_gone_is_refused(context):
    """It cannot be completed. It lives on as far as its pages go."""
    with family(context, memtap_args=("--give-up", GIVE_UP_S)) as first:
        first.fork(1)
        start_memtaps(first)
        clone = first.settle(first.spawn(1, 1, forkable=True))
        with second_fleet_of(first, context, clone) as second:
            clone.vm.ask_fork(1)
            first.fleet.server.kill()
            server = second.launch_server()
            check(server.wait(60.0) == 1, f"memserver: {server.status()}")
            check("cannot be completed: the memserver" in server.log.read_text(), server.tail())
            second.fleet.server = None
            check(clone.vm.qmp("query-status")["status"] == "running", "the clone does not run")
    check_no_leftovers(first.lab, second.fleet)
