"""Whether a source defines its kernels with the parameters of the contract.

Compared are the number of parameters and which of them are pointers: names, `const` and `__restrict__` are free, and
types may be written by other names. Not covered: definitions made by macros, which count as right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sandbox.contract import Task
from sandbox.duplicates import without_comments
from sandbox.plan import Plan
from sandbox.signature import prototype

_BODY = re.compile(r"\s*(?:\{|__attribute__|noexcept)")
_HEAD = re.compile(r'extern\s+"C"')


def definition_fault(source: str, task: Task, plan: Plan) -> str:
    """What is wrong with the first kernel that is not as the contract has it; empty where all are."""
    names = [launch.kernel for launch in plan.launches] if task.target == "cuda" else [task.name]
    maps = tuple(entry.name for entry in plan.tensormaps)
    code = without_comments(source)
    faults = (_fault(code, name, prototype(task, name, maps), task) for name in dict.fromkeys(names))
    return next((fault for fault in faults if fault), "")


def _fault(code: str, name: str, wanted: str, task: Task) -> str:
    head = f'extern "C" {"__global__ " if task.target == "cuda" else ""}{wanted}'
    if not _HEAD.search(code):
        return f'the source defines nothing as extern "C"; wanted {head}'
    found = list(_parameter_lists(code, name))
    if not found:
        return f"no definition of {name}; wanted {head}"
    shape = _shape(wanted[wanted.index("(") + 1 : -1])
    if any(_is_macro(parameters) or _shape(parameters) == shape for parameters in found):
        return ""
    return f"{name} has other parameters than the contract's; got ({' '.join(found[0].split())}), wanted {head}"


def _parameter_lists(code: str, name: str) -> Iterator[str]:
    """What stands in parentheses behind the name, wherever a body follows."""
    closings = _closings(code)
    for match in re.finditer(rf"\b{re.escape(name)}\s*\(", code):
        end = closings.get(match.end() - 1)
        if end is not None and _BODY.match(code, end + 1):
            yield code[match.end() : end]


def _closings(code: str) -> dict[int, int]:
    """Where each parenthesis that is opened is closed."""
    opened: list[int] = []
    closed: dict[int, int] = {}
    for match in re.finditer(r"[()]", code):
        if match[0] == "(":
            opened.append(match.start())
        elif opened:
            closed[opened.pop()] = match.start()
    return closed


def _is_macro(parameters: str) -> bool:
    return bool(re.fullmatch(r"\s*[A-Z_][A-Z0-9_]*\s*(\(.*\))?\s*", parameters, re.DOTALL))


def _shape(parameters: str) -> list[bool]:
    """For each parameter whether it is a pointer."""
    return ["*" in parameter or "[" in parameter for parameter in parameters.split(",")]
