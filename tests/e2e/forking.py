# SPDX-License-Identifier: BSD-3-Clause
"""What the cases with VMs that fork share: parents on a bridge, forks of them, and checks of their guests."""
import contextlib
import sys

import fleetlib
import forklib
import lablib
import vmlib
from lib import Failed, check, check_no_leftovers, lab_name

VM_MB, FILL_MB = 128, 24
NB_PATTERN_PAGES = FILL_MB * 256
NB_DIRTY_PAGES = 1024  # of these: what a parent rewrites all the time


@contextlib.contextmanager
def vm_lab(nb_hosts=2, mtu=9000):
    """Hosts on one bridge, and another for VMs."""
    lab = lablib.Lab(lab_name(), nb_hosts, mtu)
    with lab:
        lab.add_vm_net(vmlib.HOST_IP)
        yield lab


@contextlib.contextmanager
def parent_in(lab, context, *, number=0, mb=VM_MB, cpus=1, shim=True, devices=(), spare_modules=(),
              kernel_args=(), fill_mb=FILL_MB, **options):
    """A booted parent with a pattern in its memory, which it goes on rewriting. Several with different numbers may be
    in one lab.
    @param options  of the fleet"""
    options = fleetlib.Options(context.build, None, seed=context.seed, name=f"f{number}", **options)
    with fleetlib.Fleet(lab, options) as fleet:
        try:
            with forklib.Family(lab, fleet, number=number, mb=mb, cpus=cpus, shim=shim, devices=devices,
                                spare_modules=spare_modules, kernel_args=kernel_args) as vms:
                boot(vms, fill_mb)
                yield vms
            complaints = fleet.stop()
            check(not complaints, "; ".join(complaints))
        except Exception as error:
            for process in fleet.processes():
                print(process.tail(), file=sys.stderr)
            if isinstance(error, (vmlib.VmError, fleetlib.FleetError)):
                raise Failed(str(error)) from error
            raise


@contextlib.contextmanager
def second_fleet_of(vms, context, clone=None, **options):
    """A family whose parent is that of `vms`, with a memserver and memtaps of its own.
    @param clone  the parent is this clone, spawned forkable; options: of the fleet"""
    options = fleetlib.Options(context.build, None, seed=context.seed, name="second", **options)
    with fleetlib.Fleet(vms.lab, options) as fleet, forklib.Family(vms.lab, fleet, mb=vms.mb, cpus=vms.cpus) as second:
        second.parent, second.freezer, second.shim = vms.parent, vms.freezer, vms.shim
        if clone:
            second.parent, second.freezer, second.shim = clone.vm, clone.freezer, False
            second.memtap = vms.fleet.socket_path(clone.host)
        try:
            yield second
        finally:
            second.parent = None  # it ends with its own family
        second.end_clones()
        complaints = fleet.stop()
        check(not complaints, "; ".join(complaints))


@contextlib.contextmanager
def family(context, nb_hosts=2, mtu=9000, **how):
    """A parent in a lab of its own; at the end, that nothing is left of both. @param how  as parent_in"""
    with vm_lab(nb_hosts, mtu) as lab, parent_in(lab, context, **how) as vms:
        yield vms
    check_no_leftovers(lab, vms.fleet)


def boot(vms, fill_mb=FILL_MB):
    vms.boot()
    vms.parent.channel.ask(f"FILL {fill_mb}", "FILLED", 60.0)
    vms.parent.channel.ask(f"DIRTY {NB_DIRTY_PAGES}", "DIRTYING")


def start_memtaps(vms):
    vms.fleet.start_memtaps(range(1, vms.lab.nb_hosts + 1))
    vms.fleet.wait_server()


def fork(vms, nb_clones):
    """Forks to that many clones, one a host in turn; all are up when it returns."""
    vms.fork(nb_clones)
    start_memtaps(vms)
    clones = [vms.spawn(i, 1 + (i - 1) % vms.lab.nb_hosts) for i in range(1, nb_clones + 1)]
    return [vms.settle(clone) for clone in clones]


def check_memory(vm, nb_pages=NB_PATTERN_PAGES):
    check_verified(vm, forklib.verify(vm), nb_pages)


def check_verified(vm, found, nb_pages=NB_PATTERN_PAGES):
    check(found["bad"] == 0 and found["pages"] == nb_pages, f"VM {vm.name}: {found}")


def check_answer(clone):
    """It answered as itself."""
    said = {key: clone.answer.get(key) for key in ("id", "hostname")}
    check(said == {"id": clone.identity.id, "hostname": clone.identity.hostname}, f"VM {clone.vm.name} answers {said}")


def check_parent(vms, nb_pages=NB_PATTERN_PAGES):
    vms.parent.channel.ask("DIRTY 0", "DIRTYING")
    check_memory(vms.parent, nb_pages)
    check(vms.ask_web(vms.identity(0))["id"] == 0, "the parent does not answer as the parent")
