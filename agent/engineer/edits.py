"""SEARCH/REPLACE blocks: lines of a parent and what stands in their place.

Anchors are whole lines, looked for as they are and then without regard to blanks. Not covered: other forms of diff.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

_SEARCH = re.compile(r"^\s*<{5,9} ?SEARCH\s*$")
_DIVIDER = re.compile(r"^\s*={5,9}\s*$")
_REPLACE = re.compile(r"^\s*>{5,9} ?REPLACE\s*$")

Edit = tuple[list[str], list[str]]
"""Lines to look for, lines to put there."""


def has_edits(text: str) -> bool:
    return any(_SEARCH.match(line) for line in text.split("\n"))


def apply_edits(text: str, parent: str) -> str:
    """The parent with all edits of the text made, in their order; ValueError in one line says which cannot be made."""
    lines = parent.split("\n")
    for number, (wanted, replacement) in enumerate(_edits(text), start=1):
        at, count = _place(lines, wanted, f"edit {number}")
        lines[at : at + count] = replacement
    return "\n".join(lines)


def _edits(text: str) -> Iterator[Edit]:
    rest = iter(text.split("\n"))
    number = 0
    for line in rest:
        if _SEARCH.match(line):
            number += 1
            wanted = _until(rest, _DIVIDER, f"edit {number} has no ======= line")
            yield wanted, _until(rest, _REPLACE, f"edit {number} has no >>>>>>> REPLACE line")


def _until(rest: Iterator[str], end: re.Pattern[str], fault: str) -> list[str]:
    lines: list[str] = []
    for line in rest:
        if end.match(line):
            return lines
        if _SEARCH.match(line):
            break
        lines.append(line)
    raise ValueError(fault)


def _place(lines: list[str], wanted: list[str], edit: str) -> tuple[int, int]:
    """Where the wanted lines stand, and how many they are."""
    trimmed = _without_blank_ends(wanted)
    if not trimmed:
        raise ValueError(f"{edit}: its SEARCH part is empty; wanted lines of the parent")
    found = _matches(lines, wanted, lambda line: line)
    if not found:
        found, wanted = _matches(lines, trimmed, lambda line: "".join(line.split())), trimmed
    if len(found) == 1:
        return found[0], len(wanted)
    first = trimmed[0].strip()[:60]
    fault = f"stand {len(found)} times" if found else "do not stand"
    raise ValueError(f"{edit}: its SEARCH lines, from {first!r} on, {fault} in the parent")


def _matches(lines: list[str], wanted: list[str], form: Callable[[str], str]) -> list[int]:
    whole, part = [form(line) for line in lines], [form(line) for line in wanted]
    return [i for i in range(len(whole) - len(part) + 1) if part and whole[i : i + len(part)] == part]


def _without_blank_ends(lines: list[str]) -> list[str]:
    kept = [i for i, line in enumerate(lines) if line.strip()]
    return lines[kept[0] : kept[-1] + 1] if kept else []
