"""Candidates that differ in nothing a compiler sees: a verdict once found holds for all of them.

Not covered: texts that compile to the same code by another way.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

from sandbox.contract import Candidate
from sandbox.plan import Plan

_STRING_OR_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
_BLANKS = re.compile(r"[ \t]+")


def fingerprint(candidate: Candidate, plan: Plan, tunables: dict[str, int]) -> str:
    """The same for sources that differ in comments and blanks only, given the same plan and values of the tunables."""
    lines = (_BLANKS.sub(" ", line).strip() for line in without_comments(candidate.source).splitlines())
    parts = [
        candidate.target,
        _joined(line for line in lines if line),
        _without_lines(plan.model_dump()),
        sorted(tunables.items()),
    ]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def without_comments(source: str) -> str:
    """The source with a blank in place of each comment; strings, which may hold assembly, stay."""
    return _STRING_OR_COMMENT.sub(lambda found: found[1] or " ", source)


def _joined(lines: Iterable[str]) -> list[str]:
    """Where a line ends matters to directives, and to nothing else."""
    joined: list[str] = []
    directive = True
    for line in lines:
        if directive or line.startswith("#"):
            joined.append(line)
        else:
            joined[-1] += " " + line
        directive = line.startswith("#") or (directive and joined[-1].endswith("\\"))
    return joined


def _without_lines(value: Any) -> Any:
    """A dumped plan without the numbers of the lines it was read from."""
    if isinstance(value, dict):
        return {key: _without_lines(item) for key, item in value.items() if key != "line"}
    return [_without_lines(item) for item in value] if isinstance(value, list | tuple) else value
