"""What the engineer's steps hand each other."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sandbox.contract import Candidate, Device, Judgement, Record, Task

Operator = Literal["translate", "rewrite", "edit", "crossover", "repair", "simplify"]


class Message(Record):
    role: Literal["system", "user", "assistant"]
    content: str


class Plan(Record):
    """One bottleneck, one change."""

    bottleneck: Annotated[str, Field(min_length=1, max_length=200)]
    change: Annotated[str, Field(min_length=1, max_length=600)]
    why: Annotated[str, Field(min_length=1, max_length=600)]
    expected_speedup: Annotated[float, Field(ge=0.5, le=100, allow_inf_nan=False)]
    memory: Literal["direct", "shared", "async_copy", "tma", "registers"]
    tensor_cores: bool


class Idea(Record):
    """A plan that was tried, and what became of it."""

    plan: Plan
    candidate: str
    parent: str | None
    outcome: str
    """One line: `1.12x over its parent`, `slower: 0.8x`, `Incorrect: …`."""


class Exhibit(Record):
    """A kernel shown in a prompt with what became of it."""

    candidate: Candidate
    judgement: Judgement | None


class Context(Record):
    task: Task
    device: Device
    operator: Operator
    parents: tuple[Exhibit, ...]
    inspirations: tuple[Exhibit, ...] = ()
    ideas: tuple[Idea, ...] = ()
    plan: Plan | None = None
    notes: str = ""
