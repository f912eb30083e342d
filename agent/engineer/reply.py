"""What a model replied, as a plan or as a source; or `Unusable`, which says in one line why it is neither.

Nothing here raises, whatever the text. Sources are read and never run; the compiler and the judge have the last word.
Not covered: asking again (the engineer does, with the reason).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from json import JSONDecoder
from typing import Any

from pydantic import ValidationError

from agent.engineer.edits import apply_edits, has_edits
from agent.engineer.prototypes import definition_fault
from agent.engineer.records import Plan
from sandbox import plan as launch_plan
from sandbox.contract import Candidate, Record, Task
from sandbox.duplicates import fingerprint
from sandbox.errors import PlanError

MOST_BYTES = 200_000
"""More than any kernel needs."""
MOST_PLAN_CHARACTERS = 100_000
MOST_OBJECTS = 200
"""Places looked at for the start of one; those of a text that only opens braces are not worth the time."""
REASON_LENGTH = 300

_OBJECT = re.compile(r"\{(?=\s*[\"}])")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*?)[ \t]*$")


class Unusable(Record):
    """A reply that nothing can be made of."""

    reason: str
    """One line, fit to be shown to the model."""


def read_plan(text: str) -> Plan | Unusable:
    """The plan in a reply: bare JSON, JSON in a fence, or JSON within prose. Of several the last that is valid."""
    if not text.strip():
        return _unusable("the reply is empty")
    if len(text) > MOST_PLAN_CHARACTERS:
        return _unusable(f"the reply has {len(text)} characters, wanted a plan")
    objects = list(_objects(text))
    if not objects:
        return _unusable("no JSON object in the reply")
    read = [_plan(found) for found in objects]
    return next((plan for plan in reversed(read) if isinstance(plan, Plan)), read[-1])


def plan_schema() -> dict[str, Any]:
    """The JSON schema of a plan, of what strict modes know: types, choices and names, no bounds."""
    whole = Plan.model_json_schema()
    known = ("type", "enum")
    fields = {name: {k: v for k, v in field.items() if k in known} for name, field in whole["properties"].items()}
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def read_source(text: str, task: Task, parent: str | None, finish: str) -> str | Unusable:
    """The source in a reply: a fenced block, or edits of `parent`; `finish` is why the model stopped.

    Of several blocks the one that defines the task's kernels counts, of several such the longest.
    """
    if finish == "length":
        return _unusable("the reply was cut off at the token limit")
    if not text.strip():
        return _unusable("the reply is empty")
    text = text.replace("\r\n", "\n")
    found = _edited(text, parent) if has_edits(text) else _block(text, task)
    if isinstance(found, Unusable):
        return found
    source = found.strip("\n") + "\n"
    if fault := source_fault(source, task):
        return _unusable(fault)
    if parent is not None and _same(source, parent, task):
        return _unusable("the source is that of its parent, comments and blanks aside")
    return source


def source_fault(source: str, task: Task) -> str:
    """Why a source cannot be a candidate, before any compiler sees it; empty where it can."""
    try:
        count = len(source.encode())
    except UnicodeEncodeError:
        return "the source holds a character that is none (a lone surrogate)"
    if count > MOST_BYTES:
        return f"the source has {count} bytes, at most {MOST_BYTES} are taken"
    if not source.strip():
        return "the source is empty"
    if "\0" in source:
        return "the source holds a NUL character"
    try:
        plan = launch_plan.parse(source, task)
        launch_plan.settle(plan, {})
    except PlanError as exc:
        return f"launch plan: {exc}"
    return definition_fault(source, task, plan)


def _unusable(reason: str) -> Unusable:
    line = " ".join(reason.encode(errors="replace").decode().split())
    return Unusable(reason=line if len(line) <= REASON_LENGTH else f"{line[: REASON_LENGTH - 1]}…")


# ---------------------------------------------------------------- plans


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every JSON object in the text that is not part of another."""
    decoder, end = JSONDecoder(), 0
    for start in islice(_OBJECT.finditer(text), MOST_OBJECTS):
        if start.start() < end:
            continue
        try:
            found, end = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        yield found


def _plan(found: dict[str, Any]) -> Plan | Unusable:
    """A plan of the keys that a plan has; others are passed over."""
    try:
        return Plan.model_validate({key: value for key, value in found.items() if key in Plan.model_fields})
    except ValidationError as exc:
        fault = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        got = json.dumps(found.get(str(fault["loc"][0]), "nothing"))[:60]
        return _unusable(f"plan: {fault['loc'][0]}: {fault['msg']}, got {got}")


# ---------------------------------------------------------------- sources


def _edited(text: str, parent: str | None) -> str | Unusable:
    if parent is None:
        return _unusable("the reply has SEARCH/REPLACE edits, but there is no parent to edit; wanted the whole file")
    try:
        return apply_edits(text, parent)
    except ValueError as exc:
        return _unusable(str(exc))


def _block(text: str, task: Task) -> str | Unusable:
    blocks, closed = _fenced(text)
    if not closed:
        return _unusable("the last code block is not closed: the reply looks cut off")
    if not blocks:
        return text if _looks_bare(text) else _unusable("no fenced code block in the reply")
    if len(blocks) == 1:
        return blocks[0]
    valid = list(dict.fromkeys(block for block in blocks if not source_fault(block, task)))
    if not valid:
        return max(blocks, key=len)
    longest = max(map(len, valid))
    chosen = [block for block in valid if len(block) == longest]
    if len(chosen) > 1:
        return _unusable(f"{len(chosen)} code blocks could each be the kernel; wanted one")
    return chosen[0]


def _looks_bare(text: str) -> bool:
    """A source without a fence around it starts with its header; `# Title` is Markdown."""
    return bool(re.match(r"\s*(//|/\*|#(include|define|ifndef|if|pragma)\b)", text))


def _fenced(text: str) -> tuple[list[str], bool]:
    """The contents of fenced blocks, and whether the last of them is closed."""
    blocks: list[str] = []
    lines: list[str] = []
    fence = ""
    for line in text.split("\n"):
        match = _FENCE.match(line)
        if not fence and match:
            fence, lines = match[1], []
        elif fence and match and not match[2] and match[1].startswith(fence):
            blocks.append("\n".join(lines))
            fence = ""
        elif fence:
            lines.append(line)
    return blocks, not fence


def _same(source: str, parent: str, task: Task) -> bool:
    return source.strip() == parent.strip() or _mark(source, task) == _mark(parent, task)


def _mark(source: str, task: Task) -> str:
    """What is the same for sources that differ in comments and blanks; the source itself where its plan has a fault."""
    try:
        plan = launch_plan.parse(source, task)
    except PlanError:
        return source
    candidate = Candidate(task=task.name, target=task.target, source=source, operator="propose", proposer="")
    return fingerprint(candidate, plan, launch_plan.settle(plan, {}))
