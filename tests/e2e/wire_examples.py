# SPDX-License-Identifier: BSD-3-Clause
"""Reads the examples of docs/wire-format.md: their fields and their bytes."""
import dataclasses
import pathlib

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "wire-format.md"
FENCE = "```frame "


@dataclasses.dataclass
class Example:
    name: str
    fields: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    frame: bytearray = dataclasses.field(default_factory=bytearray)
    repeat: bool = False

    def number(self, field: str) -> int:
        return int(self.fields[field][0], 0)

    def add_line(self, line: str) -> None:
        if line == "*":
            self.repeat = True
        elif "=" in line:
            for word in line.split():
                key, value = word.split("=")
                self.fields.setdefault(key, []).append(value)
        else:
            self.add_row(line)

    def add_row(self, line: str) -> None:
        offset, *octets = line.split()
        while self.repeat and len(self.frame) < int(offset, 16):
            self.frame += self.frame[-16:]
        self.repeat = False
        if len(self.frame) != int(offset, 16):
            raise ValueError(f"{self.name}: row {offset} out of place")
        self.frame += bytes.fromhex("".join(octets))


def read_examples(document: pathlib.Path = DOCUMENT) -> list[Example]:
    examples: list[Example] = []
    inside = False
    for line in document.read_text().splitlines():
        if line.startswith(FENCE):
            examples.append(Example(line.removeprefix(FENCE)))
            inside = True
        elif line == "```":
            inside = False
        elif inside:
            examples[-1].add_line(line)
    return examples
