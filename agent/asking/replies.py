"""What somebody hands in, as answers to asks: Markdown, a bare kernel, a JSON object, a JSON list, or JSON lines.

One answer that cannot be read does not cost the others. Not covered: whether there is a kernel in it (telling).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import Field, ValidationError, model_validator

from agent.asking.document import MARK
from sandbox.contract import Record
from sandbox.errors import BadInput

_MARK = re.compile(rf"^[ \t>*`/]*{re.escape(MARK)}[ \t*`]*([0-9a-f]+)[`* \t]*$", re.MULTILINE)
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?^ {0,3}\1[ \t]*$", re.MULTILINE | re.DOTALL)
_EDIT = re.compile(r"^\s*<{5,9} ?SEARCH\s*$.*?^\s*>{5,9} ?REPLACE\s*$", re.MULTILINE | re.DOTALL)
_LONG_FENCE = "~" * 12
_SOURCES = (".cpp", ".cu")
NOTE_LENGTH = 120


class Answer(Record):
    """An answer to an ask; in JSON files with these keys, `place` aside."""

    place: str = ""
    """Where it stands, for messages."""
    ask: str = Field(min_length=1)
    """Id of the ask, or the beginning of one."""
    reply: str = ""
    """As a model would reply: the kernel in a fenced block, or SEARCH/REPLACE edits of the parent."""
    source: str = ""
    """The whole kernel, in place of a reply."""
    tunables: dict[str, int] = {}
    """Values other than the source's own defaults."""
    note: str = ""
    """What was changed, in a sentence."""
    proposer: str = ""
    """Who wrote it."""

    @model_validator(mode="after")
    def _one_text(self) -> Answer:
        if bool(self.reply) == bool(self.source):
            raise ValueError("wanted either a reply or a source")
        if any("\ud800" <= character <= "\udfff" for text in self._texts() for character in text):
            raise ValueError("it holds a character that is none (a lone surrogate)")
        return self

    def _texts(self) -> tuple[str, ...]:
        return self.ask, self.reply, self.source, self.note, self.proposer

    @property
    def text(self) -> str:
        """As a reply."""
        return self.reply or f"{_LONG_FENCE}\n{self.source}\n{_LONG_FENCE}\n"

    @property
    def change(self) -> str:
        """The note, else the first line of prose in the reply; empty where there is none."""
        prose = "" if self.source else _EDIT.sub("", _FENCE.sub("", self.reply))
        lines = [line.strip(" \t#>*-") for line in (self.note or prose).splitlines()]
        return next((line for line in lines if line and MARK not in line), "")[:NOTE_LENGTH]


class Unreadable(Record):
    """An answer that is none."""

    place: str
    reason: str
    """One line."""


def read(name: str, text: str, ask: str | None = None) -> list[Answer | Unreadable]:
    """The answers in a text; `ask` says what it answers where the text does not. BadInput where there is none."""
    if not text.strip():
        raise BadInput(f"{name} is empty; wanted a reply")
    found = list(_from_json(name, text, ask) if _is_json(name, text) else _from_text(name, text, ask))
    if not found:
        raise BadInput(f"{name} holds no answer; wanted at least one")
    return found


def _is_json(name: str, text: str) -> bool:
    return name.endswith((".json", ".jsonl")) or bool(re.match(r"\s*(\{\s*\"|\[\s*(\{|\]))", text))


# ---------------------------------------------------------------- text


def _from_text(name: str, text: str, ask: str | None) -> Iterator[Answer | Unreadable]:
    """One answer, or one after each line that names an ask."""
    marks = list(_MARK.finditer(text))
    if not marks and ask is None:
        raise BadInput(f"{name} does not say which ask it answers; wanted a line `{MARK} ID` or --ask ID")
    if ask is not None and any(not _agree(mark[1], ask) for mark in marks):
        raise BadInput(f"{name} answers ask {marks[0][1]}, got --ask {ask}")
    if name.endswith(_SOURCES):
        yield answer_of(name, {"ask": ask or marks[0][1], "source": text})
        return
    if len(marks) < 2:
        yield answer_of(name, {"ask": ask or marks[0][1], "reply": _MARK.sub("", text)})
        return
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=True):
        line = text.count("\n", 0, mark.start()) + 1
        yield answer_of(f"{name} line {line}", {"ask": mark[1], "reply": text[mark.end() : end]})


def _agree(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


# ---------------------------------------------------------------- JSON


def _from_json(name: str, text: str, ask: str | None) -> Iterator[Answer | Unreadable]:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as exc:
        lines = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if len(lines) < 2 or not all(line.lstrip().startswith("{") for _, line in lines):
            raise BadInput(f"{name} is not JSON: {exc}") from exc
        for number, line in lines:
            yield _of_line(f"{name} line {number}", line, ask)
        return
    items = whole if isinstance(whole, list) else [whole]
    for number, item in enumerate(items, start=1):
        yield answer_of(f"{name} answer {number}" if len(items) > 1 else name, item, ask)


def _of_line(place: str, line: str, ask: str | None) -> Answer | Unreadable:
    try:
        return answer_of(place, json.loads(line), ask)
    except (ValueError, RecursionError) as exc:
        return Unreadable(place=place, reason=f"not JSON: {exc}")


def answer_of(place: str, found: Any, ask: str | None = None) -> Answer | Unreadable:
    """The answer of these keys, to `ask` where it does not say."""
    if not isinstance(found, dict):
        return Unreadable(place=place, reason=f"got {json.dumps(found)[:60]}, wanted an object with ask and reply")
    if ask is not None and not _agree(str(found.get("ask", ask)), ask):
        return Unreadable(place=place, reason=f"it answers ask {found['ask']}, got --ask {ask}")
    try:
        return Answer.model_validate(({"ask": ask} if ask else {}) | found | {"place": place})
    except ValidationError as exc:
        fault = exc.errors(include_url=False, include_context=False)[0]
        key = ".".join(map(str, fault["loc"]))
        return Unreadable(
            place=place, reason=f"{key + ': ' if key else ''}{fault['msg'].removeprefix('Value error, ')}"
        )
