# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark of xen-testbed: freeze and page faults of a Xen domain, as ratios to what Xen itself takes in the same run."""
import json
import pathlib
import statistics
import tempfile

import xenbed
import xendemo
from bootlib import VmError

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = "tools/xen-bench"


def median(rounds, name):
    return statistics.median(round_[name] for round_ in rounds)


def median_ratio(rounds, limit, name):
    """Of those of each round: what slows a round slows both."""
    return statistics.median(round_[limit] / round_[name] for round_ in rounds)


def ratios(measured):
    """What a user compares, of the medians; of copies the median of each round's ratio."""
    rounds, faults = measured["freezes"], {kind: statistics.median(rates) for kind, rates in measured["faults"].items()}
    seconds = {name: median(rounds, name) / 1e6 for name in rounds[0] if name.endswith("_us")}
    extra_s = max(0.0, seconds["pause_us"] - seconds["bare_pause_us"])
    return {
        "copy_rate": rounds[0]["pages"] / seconds["copy_us"], "copy_limit": rounds[0]["pages"] / seconds["bare_copy_us"],
        "copy_ratio": median_ratio(rounds, "bare_copy_us", "copy_us"),
        "first_copy_ratio": median_ratio(rounds, "bare_copy_us", "first_copy_us"),
        "descriptor_ratio": (seconds["suspend_us"] + seconds["pause_us"]) / (seconds["bare_suspend_us"] + seconds["bare_pause_us"]),
        "pause_ms": 1e3 * seconds["pause_us"], "bare_pause_ms": 1e3 * seconds["bare_pause_us"],
        "extra_pause_to_copy_ratio": extra_s / seconds["bare_copy_us"],
        "descriptor_bytes": measured["descriptor_bytes"], "ram_bytes": rounds[0]["pages"] * 4096,
        "faults_limit": faults["bare"], "faults_fabric": faults["fabric"], "faults_kept": faults["kept"],
        "faults_pushed": faults["pushed"],
        "pushed_share": statistics.median(came / nb_pages for came, nb_pages in measured["pushed_pages"]),
        **{f"{kind}_ratio": faults[kind] / faults["bare"] for kind in ("fabric", "kept", "pushed")},
    }


def show(result):
    print(f"copy of a running domain {result['copy_rate']:9.0f} pages/s, bare loop {result['copy_limit']:9.0f}: "
          f"{result['copy_ratio']:.2f}; with the getting of memory for it {result['first_copy_ratio']:.2f}\n"
          f"suspend and state         {result['descriptor_ratio']:.2f} x that of suspend and HVM record alone\n"
          f"pause                    {result['pause_ms']:9.1f} ms, bare {result['bare_pause_ms']:.1f} ms: the rest is "
          f"{result['extra_pause_to_copy_ratio']:.2f} x of copying all memory\n"
          f"descriptor               {result['descriptor_bytes']:9} bytes, 1/{result['ram_bytes'] / result['descriptor_bytes']:.0f} of the memory\n"
          f"faults over the fabric   {result['faults_fabric']:9.0f} /s, bare pager {result['faults_limit']:.0f}: "
          f"{result['fabric_ratio']:.2f}\n"
          f"faults on kept pages     {result['faults_kept']:9.0f} /s: {result['kept_ratio']:.2f}\n"
          f"faults on pushed pages   {result['faults_pushed']:9.0f} /s: {result['pushed_ratio']:.2f}; the push had brought "
          f"{result['pushed_share']:.1%} of all pages but zeros", flush=True)


def run(build, rounds, vm_mb, seconds, logs):
    with xenbed.Bed(vm_mb=vm_mb) as bed, tempfile.TemporaryDirectory(prefix="snowfabric-xen-") as tmp:
        job = pathlib.Path(tmp) / "job"
        job.write_text("exec python3 -B /host/xenmeasure.py\n")
        for path in (*xendemo.files(build), build / PROGRAM, HERE / "xenmeasure.py"):
            bed.add_file(path)
        (bed.host / "bench.json").write_text(json.dumps({"rounds": rounds, "vm_mb": vm_mb}))
        status = bed.run(job, seconds)
        if logs:
            bed.save_logs(logs)
        result = bed.host / "result.json"
        if status != 0 or not result.exists():
            raise VmError(bed.output().strip()[-2000:] or bed.why_no_result())
        measured = json.loads(result.read_text())
    return {**ratios(measured), "measured": measured}
