#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Holds the sources to their one direction: who may include whom. A meson test.

usage: check_includes.py [ROOT]        check the tree
       check_includes.py --self-test   check that each rule finds its violation
"""
import pathlib
import re
import sys
import tempfile

# A folder may include its own headers and those of lower levels; folders of one level never include each other.
LEVELS = [
    ["fabric/base"],
    ["descriptor", "xen-glue", "fabric"],
    ["pmd-config"],
    ["memserver-dpdk", "memtap-dpdk"],
    ["library"],
    ["sim"],
    ["control"],
    ["tools"],
    ["tests"],
]
LEVEL_OF = {folder: level for level, folders in enumerate(LEVELS) for folder in folders}

# System headers that only some folders may include.
RESTRICTED = [
    (re.compile(r"rte_\w+\.h"), {"fabric", "pmd-config", "memserver-dpdk", "memtap-dpdk", "library", "tools", "tests"}),
    (re.compile(r"(xen|xencall|xenctrl|xenforeignmemory|xenevtchn|xenstore)[./].*|xen\w*\.h"), {"xen-glue"}),
    (re.compile(r"spdlog/.*"), {"pmd-config", "memserver-dpdk", "memtap-dpdk", "control", "tools", "tests"}),
]
# Calls that only some folders may make.
CALLS = [
    (re.compile(r"\brte_eal_init\s*\("), {"pmd-config", "tests"}),
    (re.compile(r"\brte_eth_dev_(configure|start|set_mtu|set_mc_addr_list)\s*\("), {"pmd-config", "tests"}),
]
# These and all they include must compile without DPDK.
PURE = ["fabric/wire.hpp", "fabric/server_engine.hpp", "fabric/client_engine.hpp", "library/serving.hpp", "library/fetching.hpp"]

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def folder_of(path):
    """The module a file or header path belongs to."""
    if path.startswith("fabric/base/"):
        return "fabric/base"
    return path.split("/")[0]


def sources(root):
    tops = {folder.split("/")[0] for folder in LEVEL_OF}
    for top in sorted(tops):
        for path in sorted((root / top).rglob("*")):
            if path.suffix in (".cpp", ".hpp", ".h", ".c"):
                yield path.relative_to(root).as_posix(), path.read_text(errors="replace")


def check_file(root, name, text):
    """Complaints about one file on its own."""
    own = folder_of(name)
    if not text.startswith("// SPDX-License-Identifier: BSD-3-Clause\n"):
        yield f"{name}: first line is not the SPDX line"
    if name.endswith(".hpp") and "#pragma once" not in text:
        yield f"{name}: no #pragma once"
    for kind, header in INCLUDE.findall(text):
        if kind == "<":
            for pattern, allowed in RESTRICTED:
                if pattern.fullmatch(header) and own not in allowed:
                    yield f"{name}: <{header}> belongs to {', '.join(sorted(allowed))}"
        else:
            yield from check_own_header(root, name, own, header)
    for pattern, allowed in CALLS:
        if own not in allowed and (call := pattern.search(text)):
            yield f"{name}: {call.group(0)}...) belongs to {', '.join(sorted(allowed))}"


def check_own_header(root, name, own, header):
    other = folder_of(header)
    if not (root / header).exists():
        yield f'{name}: "{header}" is not a path from the root'
    elif other not in LEVEL_OF:
        yield f'{name}: "{header}": folder {other} is not in the list of modules'
    elif other != own and LEVEL_OF[other] >= LEVEL_OF[own]:
        yield f'{name}: "{header}": {own} must not include {other}'


def check_pure(root, texts):
    """Follows the includes of the engines; none may reach DPDK."""
    for start in PURE:
        todo, seen = [start, start.replace(".hpp", ".cpp")], set()
        while todo:
            name = todo.pop()
            if name in seen or name not in texts:
                continue
            seen.add(name)
            for kind, header in INCLUDE.findall(texts[name]):
                if kind == "<" and header.startswith("rte_"):
                    yield f"{name}: <{header}>: {start} must compile without DPDK"
                elif kind == '"':
                    todo.append(header)


def check_tree(root):
    texts = dict(sources(root))
    complaints = [text for name in texts for text in check_file(root, name, texts[name])]
    return len(texts), complaints + list(check_pure(root, texts))


SPDX = "// SPDX-License-Identifier: BSD-3-Clause\n"
VIOLATIONS = {
    "fabric/a.hpp": ("#pragma once\n", "SPDX"),
    "fabric/b.hpp": (SPDX, "pragma once"),
    "fabric/c.cpp": (SPDX + '#include "pmd-config/ok.hpp"\n', "must not include"),
    "fabric/base/d.cpp": (SPDX + '#include "fabric/wire.hpp"\n', "must not include"),
    "memtap-dpdk/e.cpp": (SPDX + '#include "memserver-dpdk/ok.hpp"\n', "must not include"),
    "control/f.cpp": (SPDX + "#include <rte_mbuf.h>\n", "belongs to"),
    "fabric/g.cpp": (SPDX + "#include <xenctrl.h>\n", "belongs to"),
    "fabric/h.cpp": (SPDX + "#include <spdlog/spdlog.h>\n", "belongs to"),
    "memserver-dpdk/i.cpp": (SPDX + "int x = rte_eal_init(0, 0);\n", "belongs to"),
    "fabric/j.cpp": (SPDX + '#include "j.hpp"\n', "not a path from the root"),
    "fabric/server_engine.cpp": (SPDX + '#include "fabric/mbufs.hpp"\n', ""),
    "fabric/mbufs.hpp": (SPDX + "#pragma once\n#include <rte_mbuf.h>\n", "without DPDK"),
}
CLEAN = ["pmd-config/ok.hpp", "memserver-dpdk/ok.hpp", "fabric/wire.hpp"]


def self_test():
    with tempfile.TemporaryDirectory() as tmp:
        root = pathlib.Path(tmp)
        for name, text in [(n, t) for n, (t, _) in VIOLATIONS.items()] + [(n, SPDX + "#pragma once\n") for n in CLEAN]:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        _, complaints = check_tree(root)
    wanted = {name: what for name, (_, what) in VIOLATIONS.items() if what}
    missed = [name for name, what in wanted.items()
              if not any(c.startswith(f"{name}:") and what in c for c in complaints)]
    extra = [c for c in complaints if c.split(":")[0] not in wanted]
    for text in [f"rule not found broken in {name}" for name in missed] + extra:
        print(f"self-test: {text}", file=sys.stderr)
    return 1 if missed or extra else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent
    nb_files, complaints = check_tree(root)
    if nb_files == 0:
        complaints.append(f"{root}: no sources there")
    for text in complaints:
        print(text, file=sys.stderr)
    print(f"{nb_files} files, {len(complaints)} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
