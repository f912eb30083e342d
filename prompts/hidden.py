"""Keeps held-out workloads out of every text that a model reads: their names, and the sizes only they have.

Verdicts and compiler messages are written for a person and name them. Not covered: what could be worked out from
other numbers of a compiler message, such as a trip count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sandbox.contract import Task, Workload

UNSHOWN = "a workload that is not shown"
BLANK = "…"

# Places in a source are no sizes: `line 12`, `kernel.cu(12)`, `kernel.cpp:12:5`, and the margin of a quoted line.
_PLACE = r"(?:\bline \d+|\w\.\w+\(\d+\)|\w\.\w+:\d+(?::\d+)?|^ *\d+ \|)"
_INTEGER = r"(?<![\w.])(?<![eE][-+])\d+(?=[uUlL]*(?!\w|\.\d))"
_PLACE_OR_INTEGER = re.compile(rf"(?P<place>{_PLACE})|(?P<integer>{_INTEGER})", re.MULTILINE)


def concealed(text: str, task: Task, source: str = "", thorough: bool = False) -> str:
    """`text` without held-out workloads; lines that quote `source` stay as they are.

    A `thorough` one has no integers at all, for texts about a held-out workload: others could be worked out from them.
    """
    for workload in sorted(task.held_out, key=lambda workload: -len(workload.name)):
        text = text.replace(workload.name, UNSHOWN)
    sizes = None if thorough else hidden_sizes(task)
    quotable = {line.strip() for line in source.splitlines() if line.strip()}
    return "\n".join(line if _is_quote(line, quotable) else _blanked(line, sizes) for line in text.split("\n"))


def names_hidden(text: str, task: Task) -> bool:
    """Whether a held-out workload is named."""
    return any(workload.name in text for workload in task.held_out)


def hidden_sizes(task: Task) -> set[int]:
    """Values of axes and int scalars that occur in held-out workloads only, and have more than one digit.

    A 3 in a compiler message tells nobody a size, and a message without its digits helps nobody either.
    """
    shown = {size for workload in task.workloads for size in _sizes(workload)}
    return {size for workload in task.held_out for size in _sizes(workload) if size > 9} - shown


def _sizes(workload: Workload) -> Iterator[int]:
    yield from workload.axes.values()
    yield from (value for value in workload.scalars.values() if isinstance(value, int))


def _is_quote(line: str, quotable: set[str]) -> bool:
    return re.sub(r"^ *\d* *\| ?", "", line).strip() in quotable


def _blanked(line: str, sizes: set[int] | None) -> str:
    def replaced(found: re.Match[str]) -> str:
        digits = found["integer"]
        hidden = digits and (sizes is None or (len(digits) < 20 and int(digits) in sizes))
        return BLANK if hidden else found[0]

    return _PLACE_OR_INTEGER.sub(replaced, line)
