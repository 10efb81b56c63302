#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Writes tests/fuzz/corpus/wire from the examples of docs/wire-format.md (or checks it: --check).

A seed is what follows the Ethernet header: the input of wire::parse().
"""
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))
from wire_examples import read_examples  # noqa: E402

ETHERNET_HEADER_BYTES = 14


def main() -> int:
    corpus = HERE / "corpus" / "wire"
    seeds = {e.name: e.frame[ETHERNET_HEADER_BYTES:] for e in read_examples()}
    if sys.argv[1:] == ["--check"]:
        have = {path.name: path.read_bytes() for path in corpus.iterdir()}
        if have == seeds:
            return 0
        print("tests/fuzz/corpus/wire differs from docs/wire-format.md: run make_corpus.py")
        return 1
    corpus.mkdir(parents=True, exist_ok=True)
    for old in corpus.iterdir():
        old.unlink()
    for name, seed in seeds.items():
        (corpus / name).write_bytes(seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
