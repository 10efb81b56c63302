#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Whether the simulator finds what it is for: each of these defects is planted into the engines, and must break something
within a number of seeds. Compiles only what a defect changes, beside a build that is there. Nothing in the tree changes.
With --check nothing is built: the text that each defect changes must be there, once."""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PROGRAM = "tools/fabric-sim"
# name: (file, text that is there once, what stands there instead)
DEFECTS = {
    "a stale epoch is taken": ("fabric/client_engine.cpp", "if (frame.epoch != identity_.epoch) return Drop::kStaleEpoch;", ""),
    "a foreign image is taken": ("fabric/client_engine.cpp", "if (frame.image_id != identity_.image_id) return Drop::kForeignImage;", ""),
    "a page's checksum is not looked at": ("fabric/client_engine.cpp", "crc32c(bytes) != frame.page.crc32c.host()", "false"),
    "a page's hash is not looked at": ("fabric/client_engine.cpp", "config_.tree != nullptr && !config_.tree->fits(", "false && !config_.tree->fits("),
    "a zero page need not be zero by its hash": ("fabric/client_engine.cpp", "return config_.tree->nb_zero(range);", "return range.nb_pages;"),
    "a timed-out page is not asked for again": ("fabric/client_engine.cpp", "flight.timed_out = flight.attempts > 0;\n  queue(id, now);", ""),
    "a fragment goes to the wrong place": ("fabric/reassembler.hpp", "body.fragment * wire::fragment_stride",
                                           "(body.fragment ^ 1U) % body.nb_fragments * wire::fragment_stride"),
    "a claim is always granted": ("fabric/base/presence.hpp", "return exchange(page, PageState::kAbsent, claimant);",
                                  "exchange(page, PageState::kAbsent, claimant);\n    return true;"),
    "a dead server is not given up": ("fabric/client_requests.cpp", "silent >= config_.give_up &&", "false &&"),
    "pages of a dead server are not failed": ("memtap-dpdk/host.cpp", "if (fail_page(pages[i])) engine_.forget(pages[i]);", ";"),
    "an install put off is not repeated": ("memtap-dpdk/host.cpp", "defer(deferred, Gfn{p});\n  }\n}\n\n// --- failure", "}\n}\n\n// --- failure"),
    "the lockstep window never ends": ("fabric/server_engine.cpp", "now - pages_.last_multicast(slot) < (retry ? retry_guard_ : window_)",
                                       "PageTable::was_multicast(slot)"),
    "a page once sent is never pending again": ("fabric/server_engine.cpp", "    slot.pending = true;\n", "    slot.pending = !PageTable::was_multicast(slot);\n"),
    "a zero run is one page too long": ("fabric/server_sending.cpp", "static_cast<std::uint32_t>(end - first)}", "static_cast<std::uint32_t>(std::min(end + 1, image_.nb_pages) - first)}"),
    "a page number is one off": ("fabric/server_sending.cpp", "out = {.dst = train_.dst, .range = {train_.page, 1}};",
                                 "out = {.dst = train_.dst, .range = {Gfn{train_.page.value == 77 ? 78 : train_.page.value}, 1}};"),
    "a repair has the bytes of the next page": ("fabric/repairs.cpp", "if (const auto bytes = source_->bytes(page_)) {",
                                                "if (const auto bytes = source_->bytes(Gfn{(page_.value + 1) % engine_.nb_pages()})) {"),
    "a sibling's page says that the server lives": ("fabric/client_engine.cpp", "if (by_sibling) return on_sibling(frame);",
                                                    "if (by_sibling) {\n  if (frame.type != FrameType::kRequest) hear(last_heard_ + std::chrono::seconds{1});\n  return on_sibling(frame);\n}"),
    "the end game sends to the first client": ("fabric/server_sending.cpp", "clients_[slot.last_client].mac : group_", "clients_[0].mac : group_"),
}


class DefectError(Exception):
    """The test itself cannot be done."""


def planted_text(name):
    """The file in which the defect is planted."""
    file, old, new = DEFECTS[name]
    text = (ROOT / file).read_text()
    if text.count(old) != 1:
        raise DefectError(f"{name}: {file} has {text.count(old)} times what is to be changed")
    return text.replace(old, new)


def check(names):
    """Says of each defect that can no longer be planted why. @return how many those are"""
    nb_rotten = 0
    for name in names:
        try:
            planted_text(name)
        except (DefectError, OSError) as error:
            nb_rotten += 1
            print(f"planted_defects: {error}", file=sys.stderr)
    return nb_rotten


class Build:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder).absolute()
        commands = self.folder / "compile_commands.json"
        if not commands.exists() or not (self.folder / PROGRAM).exists():
            raise DefectError(f"{self.folder / PROGRAM} is not there: build first")
        parts = ("fabric/libengine.a.p/", "memtap-dpdk/libmemtap_guest.a.p/", "sim/libsim.a.p/")
        self.units = [unit for unit in json.loads(commands.read_text()) if unit["output"].startswith(parts)]
        self.depends = self._depends()
        self.link = self._ninja("-t", "commands", PROGRAM).splitlines()[-1]

    def _ninja(self, *args):
        return subprocess.run(["ninja", "-C", self.folder, *args], capture_output=True, text=True, check=True).stdout

    def _depends(self):
        """output -> the text of all it was made of"""
        found = {}
        for block in self._ninja("-t", "deps", *(unit["output"] for unit in self.units)).split("\n\n"):
            output, _, rest = block.partition(":")
            found[output.strip()] = rest
        return found

    def with_defect(self, name, tmp):
        """A simulator in which the defect is planted."""
        file = DEFECTS[name][0]
        planted = tmp / "overlay" / file
        planted.parent.mkdir(parents=True)
        planted.write_text(planted_text(name))
        objects = [self._compile(unit, file, planted, tmp) for unit in self.units
                   if file.endswith(".hpp") and file in self.depends.get(unit["output"], "") or unit["file"].endswith(file)]
        program = tmp / "fabric-sim"
        words = [word for word in shlex.split(self.link.split("&&")[-1] if "&&" in self.link else self.link)]
        words[words.index("-o") + 1] = str(program)
        at = words.index("-o") + 2
        self._run(words[:at] + objects + words[at:], name)  # before the libraries, whose own are not taken then
        return program

    def _compile(self, unit, file, planted, tmp):
        words = shlex.split(unit["command"])
        out = str(tmp / re.sub(r"\W", "_", unit["output"])) + ".o"
        words[words.index("-o") + 1] = out
        for flag in ("-MF", "-MQ"):
            words[words.index(flag) + 1] = out + ".d"
        words.insert(2 if "ccache" in words[0] else 1, f"-I{tmp / 'overlay'}")  # a header is found there first
        words.insert(words.index("-o"), "-Wno-error")
        if unit["file"].endswith(file):
            words[-1] = str(planted)
        self._run(words, unit["output"])
        return out

    def _run(self, words, what):
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise DefectError(f"{what}: {done.stderr[-2000:]}")


def find(build, name, nb_seeds):
    """@return what the simulator says of it, or None: it finds nothing"""
    with tempfile.TemporaryDirectory(prefix="snowfabric-defect-") as folder:
        program = build.with_defect(name, pathlib.Path(folder))
        done = subprocess.run([program, "run", "--seeds", f"1:{nb_seeds}"], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"it dies of signal {-done.returncode}"
    seed = re.search(r"^seed (\d+):\n +(.*)", done.stdout, re.MULTILINE)
    return f"seed {seed.group(1)}: {seed.group(2)}" if seed else done.stdout[:200]


def main():
    parser = argparse.ArgumentParser(prog="planted_defects.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", nargs="?", metavar="BUILD-DIR", help="with tools/fabric-sim")
    parser.add_argument("--check", action="store_true", help="only whether each defect can still be planted; builds nothing")
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="within which a defect must be found (1000)")
    parser.add_argument("--only", metavar="TEXT", help="defects whose name has it")
    args = parser.parse_args()
    names = [name for name in DEFECTS if not args.only or args.only in name]
    if args.check:
        return 1 if check(names) else 0
    if args.build is None:
        parser.error("BUILD-DIR is missing")
    nb_missed = 0
    try:
        build = Build(args.build)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for name, said in zip(names, pool.map(lambda name: find(build, name, args.seeds), names)):
                nb_missed += said is None
                print(f"{'MISSED' if said is None else 'found '} {name}{'' if said is None else ': ' + said}", flush=True)
    except DefectError as error:
        print(f"planted_defects: {error}", file=sys.stderr)
        return 2
    print(f"{len(names) - nb_missed} of {len(names)} planted defects found within {args.seeds} seeds")
    return 1 if nb_missed else 0


if __name__ == "__main__":
    sys.exit(main())
