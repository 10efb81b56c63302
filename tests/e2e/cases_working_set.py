# SPDX-License-Identifier: BSD-3-Clause
"""What one clone had is put into the descriptor: the clones of a fork get it before they ask, by one multicast."""
from forking import check_memory, family
from lib import case, check

NB_HOSTS, NB_CLONES = 4, 8
# A memtap that waits 10 ms for a CPU among its clones' QEMUs loses frames at full rate, and has them sent again.
RATE = ("--rate-gbps", "1", "--max-rate-gbps", "1")


def start_clone(vms, clone_id):
    """Returns the clone and its faults until it answered."""
    clone = vms.settle(vms.spawn(clone_id, 1 + clone_id % NB_HOSTS))
    return clone, vms.guest_counters(clone)["faults"]


# Four memtaps that ask each for itself cost four times the bytes. A memserver that waits long for a CPU takes requests made before
# an answer for such made after it, and answers again: no more than this of them.
MOST = 2.0


@case(240)
def working_set_crosses_the_wire_once(context):
    """Though the memtaps do not join in one instant, and each has clones of its own that need it."""
    with family(context, nb_hosts=NB_HOSTS, server_args=RATE) as vms:
        vms.fork(NB_CLONES + 1)
        record = vms.fleet.dir / "record"
        faults_of_first = vms.record_first_clone(record)
        sent_for_first = vms.fleet.server_stats()["tx_bytes"]
        vms.add_working_set(record)
        vms.fleet.start_memtaps(range(1, NB_HOSTS + 1))
        jobs = [vms.pool.submit(start_clone, vms, 2 + i) for i in range(NB_CLONES)]
        clones, faults = zip(*(job.result() for job in jobs))
        ratio = vms.fleet.server_stats()["tx_bytes"] / sent_for_first - 1
        for clone in clones:
            check_memory(clone.vm)
        check(ratio <= MOST, f"{NB_CLONES} clones cost {ratio:.2f} x the bytes of the first")
        left = sum(faults) / NB_CLONES
        check(left <= 0.1 * faults_of_first, f"{faults} faults with the working set, {faults_of_first} without")
        return f"{ratio:.2f} x the bytes of the first clone, {left:.0f} of {faults_of_first} faults a clone"
