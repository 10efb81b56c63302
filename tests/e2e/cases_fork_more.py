# SPDX-License-Identifier: BSD-3-Clause
"""Cases with real VMs that go against each other: several parents, parents that change, and that are gone."""
from concurrent.futures import ThreadPoolExecutor

from forking import check_answer, check_memory, check_parent, fork, parent_in, vm_lab
from lib import case, check, check_no_leftovers


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
