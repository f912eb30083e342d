"""Candidates that are the same to a compiler, or that it makes the same code of: a verdict found once holds for all.

Compilers put neither times nor places into what they make (seen of NVRTC 13 and g++ 12): equal code has equal bytes.
Not covered: code that differs in the order of instructions or the names of registers only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sandbox.contract import Artifact, Candidate, Device, Task
from sandbox.errors import PlanError
from sandbox.plan import Plan, resolve

_STRING_OR_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*")|//[^\n]*|/\*.*?(?:\*/|\Z)', re.DOTALL)
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


def compiled(
    task: Task, plan: Plan, tunables: Mapping[str, int], artifacts: Mapping[str, Artifact], device: Device
) -> str:
    """The same for kernels that run the same code in the same launches on every workload; empty where one cannot."""
    try:
        parts = [
            (
                workload.name,
                artifacts[workload.name].sha256,
                resolve(plan, task, workload, tunables, device).model_dump(),
            )
            for workload in (*task.workloads, *task.held_out)
        ]
    except PlanError:
        return ""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def without_comments(source: str) -> str:
    """The source with a blank in place of every comment."""
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
