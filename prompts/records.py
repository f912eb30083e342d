"""What a prompt is made of, and the plan that answers the first of two.

Not covered: how a model is asked (the engineer), and the text itself (templates).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sandbox.contract import Candidate, Device, Judgement, Record, Task

Operator = Literal["translate", "rewrite", "edit", "crossover", "fuse", "repair", "simplify"]
"""What is asked of the model. `translate` makes a first kernel of the reference, `fuse` one of the kernels of the
task's parts; the others start from a parent."""

PARENTS: dict[Operator, int] = {
    "translate": 0,
    "rewrite": 1,
    "edit": 1,
    "crossover": 2,
    "fuse": 0,
    "repair": 1,
    "simplify": 1,
}
"""How many parents an operator needs at least."""


class Message(Record):
    role: Literal["system", "user", "assistant"]
    content: str


class Plan(Record):
    """One bottleneck and one change, settled before any code is written."""

    bottleneck: str = Field(min_length=1, max_length=200)
    """What limits the parent, and how that shows."""
    change: str = Field(min_length=1, max_length=600)
    why: str = Field(min_length=1, max_length=600)
    expected_speedup: float = Field(ge=0.5, le=100, allow_inf_nan=False)
    """Over the parent."""
    memory: Literal["direct", "shared", "async_copy", "tma", "registers"]
    """How data reaches the arithmetic once the change is made."""
    tensor_cores: bool


class Idea(Record):
    """A plan that was carried out, and what became of it."""

    plan: Plan
    candidate: str
    parent: str | None
    outcome: str
    """One line, in words: `1.12x over its parent`, `slower: 0.8x`, `Incorrect: …`."""


class Exhibit(Record):
    """A kernel shown in a prompt, with what became of it."""

    candidate: Candidate
    judgement: Judgement | None
    elsewhere: Task | None = None
    """The task that it was written for and judged on; None for the one at hand."""


class Foreign(Record):
    """A kernel of another task: what it does and how well, and no size of that task's."""

    task: str
    summary: str
    candidate: Candidate
    speedup: float
    """Over eager."""


class PartExhibit(Record):
    """A kernel of a task that is part of the one at hand."""

    task: Task
    exhibit: Exhibit


class Context(Record):
    """Everything a prompt may draw on."""

    task: Task
    device: Device
    operator: Operator
    parents: tuple[Exhibit, ...]
    inspirations: tuple[Exhibit, ...] = ()
    foreign: tuple[Foreign, ...] = ()
    ideas: tuple[Idea, ...] = ()
    """Tried on this lineage, oldest first."""
    lessons: tuple[str, ...] = ()
    """What was changed on this lineage and what came of it, a line each, oldest first; where there are no plans."""
    parts: tuple[PartExhibit, ...] = ()
    """For `fuse`: the best kernel of each part, in the order in which they run."""
    glue: tuple[str, ...] = ()
    """What lies between the parts, in words."""
    plan: Plan | None = None
    """What the code prompt asks to carry out."""
    notes: str = ""
