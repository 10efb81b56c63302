# SPDX-License-Identifier: BSD-3-Clause
"""What all benchmarks need: their programs, hugepages, a place in front of the machine's other work."""
import contextlib
import os
import pathlib
import platform
import re
import subprocess
import sys
import time

NODE = "tools/bench-node"
NB_HUGEPAGES = 96  # two mempools of 8191 mbufs, in pages of 2 MB
HUGEPAGES = pathlib.Path("/proc/sys/vm/nr_hugepages")


class BenchError(Exception):
    """Says what failed, on what, and what to do."""


def program(args, name):
    path = args.build_dir / name
    if not os.access(path, os.X_OK):
        raise BenchError(f"{path} is not there: meson setup --buildtype=release -Dtests=disabled {args.build_dir} && "
                         f"ninja -C {args.build_dir}")
    return path


def first_in_line():
    """Run by the child: what else this machine does is not to be measured. Of no effect without root or autogroups."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/autogroup").write_text("-20")


def raise_to_front(process):
    """The same for one that runs."""
    with contextlib.suppress(OSError):
        pathlib.Path(f"/proc/{process.pid}/autogroup").write_text("-20")


def meminfo(key):
    fields = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    return int(fields[key].split()[0])


@contextlib.contextmanager
def hugepages(nb_pages):
    before, free = int(HUGEPAGES.read_text()), meminfo("HugePages_Free")
    missing = max(0, nb_pages - free)
    if missing:
        HUGEPAGES.write_text(str(before + missing))
    try:
        if meminfo("HugePages_Free") < nb_pages:
            raise BenchError(f"only {meminfo('HugePages_Free')} of {nb_pages} hugepages could be reserved: memory is "
                             f"short or in pieces; --no-huge runs without")
        yield
    finally:
        if missing:
            HUGEPAGES.write_text(str(before))


def say_round(number, nb_rounds):
    print(f"fabric-bench: round {number} of {nb_rounds}", file=sys.stderr, flush=True)


def first_line(path):
    try:
        return pathlib.Path(path).read_text().splitlines()[0]
    except (OSError, IndexError):
        return None


def environment(args):
    """What a figure depends on, beside the program."""
    cpus = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                if ":" in line)
    governors = {first_line(path) for path in pathlib.Path("/sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_governor")}
    version = None
    with contextlib.suppress(OSError):  # what runs without bench-node may have none
        version = subprocess.run([args.build_dir / NODE, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return {"version": version, "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "cpu": cpus.get("model name", "?"), "cpus": len(os.sched_getaffinity(0)),
            "virtual": "hypervisor" in cpus.get("flags", "").split(), "governor": ", ".join(sorted(governors)) or "none",
            "kernel": platform.release(), "load": os.getloadavg()[0],
            "hugepages": f"{HUGEPAGES.read_text().strip()} of {meminfo('Hugepagesize')} kB"}
