# SPDX-License-Identifier: BSD-3-Clause
"""Cases in which a freeze is broken off amid the pause or the snapshot: the parent runs on, with its settings as before."""
import contextlib
import os
import pathlib
import signal
import time

from cases_fork_more import check_forkable
from forking import family
from lib import Failed, case, check, seconds_since, wait_until
from vmlib import VmTimeout

ATTEMPTS = 8
CAPABILITIES = ("x-ignore-shared", "pause-before-switchover")  # the one a freeze needs itself, and one that would hold it up


def choose_settings(vm):
    """Settings as only somebody who has chosen them has."""
    vm.qmp("migrate-set-capabilities", capabilities=[{"capability": name, "state": True} for name in CAPABILITIES])
    vm.qmp("migrate-set-parameters", **{"max-bandwidth": 0})


def settings_of(vm):
    return {"capabilities": vm.qmp("query-migrate-capabilities"), "parameters": vm.qmp("query-migrate-parameters")}


def guard_of(server):
    """The process id of a memserver's guard."""
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            if (name, int(rest.split()[1])) == ("sf-guard", server.pid):
                return int(folder.name)
    raise Failed("memserver has no guard")


def has_ended(pid):
    try:
        return not pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()  # a zombie has none
    except OSError:
        return True


def came(vm, event, timeout_s):
    try:
        return bool(vm.qmp.wait_event(event, timeout_s))
    except VmTimeout:
        return False


def strike_amid(vms, victim_of, is_amid):
    """Forks until SIGSTOP meets a process - `victim_of` of the memserver - at a moment in which `is_amid` holds, which
    waits for the moment first. @return (memserver, its guard), the victim stopped still"""
    for _ in range(ATTEMPTS):
        vms.parent.qmp.events.clear()
        vms.parent.ask_fork(1)
        server = vms.launch_server()
        if is_amid(lambda: os.kill(victim_of(server).pid, signal.SIGSTOP)):
            return server, guard_of(server)
        os.kill(victim_of(server).pid, signal.SIGCONT)
        vms.fleet.wait_for(server, vms.descriptor.exists, "frozen", 60.0, host=0)
        vms.parent.go_on()
        vms.end_fork()
        vms.descriptor.unlink(missing_ok=True)  # memserver takes it along if it was not serving yet
    raise Failed(f"the freeze was over too soon, {ATTEMPTS} times")


def in_pause(vms):
    def is_amid(strike):
        vms.parent.qmp.wait_event("STOP", 60.0)
        strike()
        return not came(vms.parent, "RESUME", 0.3)
    return is_amid


def in_snapshot(vms, is_still=None):
    """@param is_still  whether it is not over, if QEMU itself cannot be asked"""
    def is_amid(strike):
        status = lambda: vms.parent.qmp("query-migrate").get("status")  # noqa: E731 (local, one line)
        wait_until(lambda: status() == "active" or vms.descriptor.exists(), "a snapshot is under way", 60.0)
        strike()
        time.sleep(0.3)  # what has been sent has come by then
        return is_still() if is_still else status() == "active"
    return is_amid


def check_set_back(vms, guard, settings):
    """@return how long the guard took from now on"""
    began = time.monotonic()
    wait_until(lambda: has_ended(guard), "the guard ends", 60.0)
    took = seconds_since(began)
    check(vms.parent.qmp("query-status")["status"] == "running", "the parent stands still")
    check(settings_of(vms.parent) == settings, f"the parent's settings are not as before: {settings_of(vms.parent)}")
    vms.parent.cancel_fork("the freeze was broken off")
    check(not vms.descriptor.exists(), f"{vms.descriptor} is there")
    check_forkable(vms)
    check(settings_of(vms.parent) == settings, f"a fork changes the parent's settings: {settings_of(vms.parent)}")
    return took


@case(300)
def fork_memserver_killed_in_the_pause(context):
    """Its guard lets the parent run on."""
    with family(context) as vms:
        choose_settings(vms.parent)
        settings = settings_of(vms.parent)
        server, guard = strike_amid(vms, lambda server: server, in_pause(vms))
        server.kill()
        began = time.monotonic()
        check(came(vms.parent, "RESUME", 20.0), "the parent does not run on")
        took = seconds_since(began)
        check_set_back(vms, guard, settings)
        return f"the parent runs on after {took}"


@case(300)
def fork_goes_on_without_its_guard(context):
    """It is killed amid the pause; memserver, which lives, ends the freeze as ever."""
    with family(context) as vms:
        settings = settings_of(vms.parent)
        server, guard = strike_amid(vms, lambda server: server, in_pause(vms))
        os.kill(guard, signal.SIGKILL)
        os.kill(server.pid, signal.SIGCONT)
        began = time.monotonic()
        check(came(vms.parent, "RESUME", 20.0), "the parent does not run on")
        took = seconds_since(began)
        vms.fleet.wait_server()
        check(vms.descriptor.exists(), "there is no descriptor")
        vms.parent.go_on()
        vms.end_fork()
        vms.descriptor.unlink()
        check_forkable(vms)
        check(settings_of(vms.parent) == settings, f"the parent's settings are not as before: {settings_of(vms.parent)}")
        return f"the parent runs on after {took}"


@case(300)
def fork_memserver_killed_during_a_background_snapshot(context):
    """Its guard takes the rest of the snapshot, for else QEMU would hang."""
    with family(context, shim=False) as vms:
        choose_settings(vms.parent)
        settings = settings_of(vms.parent)
        server, guard = strike_amid(vms, lambda server: server, in_snapshot(vms))
        server.kill()
        return f"all is set back after {check_set_back(vms, guard, settings)}"


@case(300)
def fork_parent_stalls_in_the_pause(context):
    """memserver gives up; its guard waits until QEMU goes on, and then lets the VM run."""
    with family(context) as vms:
        settings = settings_of(vms.parent)
        server, guard = strike_amid(vms, lambda _: vms.parent.process, in_pause(vms))
        check(server.wait(60.0) == 1, f"memserver, whose parent stalls, has status {server.status()}")
        said = [line for line in server.log.read_text().splitlines() if " error " in line]
        vms.fleet.ended.append(server)
        vms.fleet.server = None
        check(not has_ended(guard), "the guard has ended too soon")
        os.kill(vms.parent.process.pid, signal.SIGCONT)
        began = time.monotonic()
        check(came(vms.parent, "RESUME", 20.0), "the parent does not run on")
        took = seconds_since(began)
        check_set_back(vms, guard, settings)
        return f"{said[-1].partition(' error ')[2]}; the parent runs on {took} after QEMU does"


@case(300)
def fork_parent_falls_silent_in_a_background_snapshot(context):
    """memserver would give up after 60 s, and ends before when it is told to; its guard takes the rest, should it come."""
    with family(context, shim=False) as vms:
        settings = settings_of(vms.parent)
        server, guard = strike_amid(vms, lambda _: vms.parent.process, in_snapshot(vms, lambda: not vms.descriptor.exists()))
        check(server.status() is None, f"memserver ended with status {server.status()} at once")
        complaint = server.stop(30.0)
        check(not complaint and server.status() == 0, complaint or f"memserver ended with status {server.status()}, not 0")
        vms.fleet.ended.append(server)
        vms.fleet.server = None
        check(not has_ended(guard), "the guard has ended too soon")
        os.kill(vms.parent.process.pid, signal.SIGCONT)
        return f"all is set back {check_set_back(vms, guard, settings)} after QEMU goes on"
