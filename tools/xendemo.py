# SPDX-License-Identifier: BSD-3-Clause
"""The demo of xen-testbed: a Xen guest is forked by memserver and memtap in dom0, on one machine or on two."""
import json
import pathlib
import tempfile
import time

import tablelib
import xenbed
from bootlib import VmError

HERE = pathlib.Path(__file__).resolve().parent
PROGRAMS = ("memserver-dpdk/memserver-dpdk", "memtap-dpdk/memtap-dpdk", "tools/sf-xen-clone")
MAC = "52:54:00:5f:ab:{:02x}"


def network(number, folder):
    """QEMU's arguments for a card on the wire between two machines, this being 0 or 1."""
    return ["-netdev", f"dgram,id=wire,local.type=unix,local.path={folder}/wire{number},"
                       f"remote.type=unix,remote.path={folder}/wire{1 - number}",
            "-device", f"virtio-net-pci,netdev=wire,mac={MAC.format(number)}"]


def files(build):
    """What a fork needs on /host."""
    return [*(build / program for program in PROGRAMS), HERE / "xenfork.py", HERE / "fleetlib.py",
            HERE.parent / "pmd-config/profiles/net_af_packet.toml"]


def add_files(bed, build, options):
    for path in files(build):
        bed.add_file(path)
    (bed.host / "fork.json").write_text(json.dumps(options))


def rows_of(bed):
    try:
        return json.loads((bed.host / "rows.json").read_text())
    except (OSError, ValueError):
        return []


def result_of(bed):
    path = bed.host / "result.json"
    if not path.exists():
        raise VmError(bed.output().strip()[-2000:] or bed.why_no_result())
    result = json.loads(path.read_text())
    if "error" in result:
        raise VmError(result["error"])
    return result


def has_failed(bed):
    status = bed.host / "job.status"
    return status.exists() and status.read_text().strip() != "0"


def fork(beds, job, seconds, logs):
    """Starts the machines and waits for their jobs. @return the result of each"""
    live = tablelib.Live()
    for bed in beds:
        bed.start(job, 3 * seconds)
    try:
        # One that failed leaves the others waiting.
        while any([bed.running() for bed in beds]) and not any(has_failed(bed) for bed in beds):
            live.show(tablelib.xen_clones([row for bed in beds for row in rows_of(bed)]))
            time.sleep(0.2)
    finally:
        live.end()
        for i, bed in enumerate(beds):
            bed.stop()
            if logs:
                bed.save_logs(logs / f"host{i}")
    failed = [bed for bed in beds if has_failed(bed)]
    return [result_of(bed) for bed in failed or beds]


def run(build, nb_clones, nb_hosts, seconds, logs):
    """@param seconds  for each of its waits, of which a good run has one that takes long
    @return (table, what is wrong with it in words)"""
    names = [f"clone{i}" for i in range(1, nb_clones + 1)]
    with tempfile.TemporaryDirectory(prefix="snowfabric-xen-") as tmp:
        job = pathlib.Path(tmp) / "job"
        job.write_text("exec python3 -B /host/xenfork.py\n")
        if nb_hosts == 1:
            with xenbed.Bed() as bed:
                add_files(bed, build, {"parent": True, "clones": names, "waits": False, "seconds": seconds})
                results = fork([bed], job, seconds, logs)
        else:
            with xenbed.Bed(network(0, tmp), tmp) as near, xenbed.Bed(network(1, tmp), tmp) as far:
                add_files(near, build, {"parent": True, "clones": [], "waits": True, "seconds": seconds})
                add_files(far, build, {"parent": False, "clones": names, "waits": False, "seconds": seconds})
                results = fork([near, far], job, seconds, logs)
    table = {**results[0], "hosts": nb_hosts, "clones": results[-1]["clones"],
             "complaints": [complaint for result in results for complaint in result["complaints"]]}
    return table, check(table, nb_clones)


def check(table, nb_clones):
    wrong = list(table["complaints"])
    if not table["parent"]["checksum_ok"]:
        wrong.append("the parent's memory is not what it wrote")
    if len(table["clones"]) != nb_clones:
        wrong.append(f"{len(table['clones'])} clones of {nb_clones}")
    for row in table["clones"]:
        if not row["checksum_ok"]:
            wrong.append(f"{row['clone']}: its memory is not the parent's")
    return wrong
