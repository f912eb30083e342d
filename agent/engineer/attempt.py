"""One attempt at a kernel: a model is asked for a plan, then for the code, and what it writes becomes a candidate.

Attempts may be under way side by side: they share the archive, the ledger and the clients, and nothing else. Not
covered: who is asked to do what with which kernels (engineer), how a model is reached (models), what prompts say
(prompts).
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from agent.engineer import ideas, memory
from agent.engineer.bandit import Arm
from agent.engineer.records import Context, Message, Operator, Plan
from agent.engineer.reply import Unusable, read_plan, read_source
from agent.engineer.retrieval import Related
from agent.models.endpoint import Failed, Price, Reply
from agent.models.ledger import Ledger, OverCap
from agent.models.prices import cost, reserve
from agent.models.recording import Recorded
from agent.steps import Asking, Event, Judged, Unused, trajectory
from archive import Archive
from prompts.render import render_code, render_plan
from sandbox import contract, plan
from sandbox.contract import Candidate, Device, Task
from sandbox.duplicates import fingerprint
from sandbox.errors import PlanError

PLANNED: tuple[Operator, ...] = ("rewrite", "edit", "crossover")
"""Operators that carry out a plan."""
UNREACHED = 2
"""Requests to an address that never answered, each tried several times, after which the model is taken to be absent."""
RECORDED_AS: Mapping[str, contract.Operator] = {
    "translate": "translate",
    "crossover": "crossover",
    "fuse": "compose",
    "repair": "repair",
}


@dataclass(frozen=True)
class Writer:
    """A model, and what a request may cost."""

    model: Recorded
    price: Price | None
    max_tokens: int
    planner: Recorded | None = None
    """The same model, asked for plans in the shape of a plan; None where it knows of none."""


@dataclass(frozen=True)
class Desk:
    """What the engineer works with."""

    task: Task
    seeds: Sequence[Candidate]
    device: Device
    rng_seed: int
    archive: Archive
    run_id: str
    writers: Sequence[Writer]
    ledger: Ledger
    budget_evals: int
    report: Callable[[Event], None]
    """Called from any thread."""
    budget_seconds: float = math.inf
    """Of the run, over all resumptions."""
    templates: Path | None = None
    """A folder of the user's own templates."""
    related: Sequence[Related] = ()
    """Kernels of other tasks, the most telling first."""
    slots: int = 1
    """Attempts under way at a time."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """No request is begun once it is set."""
    recording: threading.Lock = field(default_factory=threading.Lock)
    """Held by whoever compares a candidate with those on record and adds it."""


@dataclass(frozen=True)
class Attempt:
    """Who is asked, to do what, with which kernels."""

    number: int
    """Counted through the run."""
    writer: Writer
    operator: Operator
    parents: tuple[Judged, ...]
    context: Context
    rng: random.Random

    @property
    def arm(self) -> Arm:
        return Arm(model=self.writer.model.name, operator=self.operator)


@dataclass(frozen=True)
class Vain:
    """An attempt that came to nothing, and what that means for the next ones."""

    model: str
    unreachable: str = ""
    """Why the model will not answer in this process any more."""
    over_budget: str = ""
    """Why no further call can be paid for."""


class _InVain(Exception):
    """A request came to nothing; the reason in one line."""

    def __init__(self, purpose: str, reason: str, for_good: bool = False) -> None:
        super().__init__(reason)
        self.purpose, self.for_good = purpose, for_good


class _OverBudget(Exception):
    """A request was not made, because of what it may cost."""


class _Stopped(Exception):
    """A request was not made, because the search is over."""


def carry_out(desk: Desk, attempt: Attempt) -> Vain | None:
    """Ask for a candidate and put it on record with the exchanges that made it; Vain where none came of it."""
    name = attempt.writer.model.name
    asked: list[Recorded] = []
    try:
        context = attempt.context
        if attempt.operator in PLANNED:
            context = context.model_copy(update={"plan": _planned(desk, attempt, asked)})
        source = _written(desk, attempt, context, asked)
        _keep(desk, attempt, _candidate(desk, attempt, context, source), asked)
    except _InVain as vain:
        end = f"; {name} is not asked again" if vain.for_good else ""
        desk.report(Unused(name, vain.purpose, f"{vain}{end}"))
        return Vain(name, unreachable=str(vain) if vain.for_good else "")
    except _OverBudget as over:
        return Vain(name, over_budget=str(over))
    except _Stopped:
        return Vain(name)
    return None


# ---------------------------------------------------------------- plan and code


def _planned(desk: Desk, attempt: Attempt, asked: list[Recorded]) -> Plan:
    purpose = f"{memory.PLANNING}{attempt.operator}"
    messages = render_plan(attempt.context, attempt.rng, desk.templates)
    found = read_plan(_ask(desk, attempt, purpose, messages, asked).text)
    if isinstance(found, Unusable):
        raise _InVain(purpose, found.reason)
    tried = memory.ideas(desk.archive.exchanges(desk.run_id), trajectory(desk.archive, desk.run_id))
    repeated = ideas.refused(found, tried, attempt.parents[0][0].id, desk.archive.edges())
    if repeated is not None:
        raise _InVain(purpose, f"repeats an idea that failed on this lineage ({repeated.outcome})")
    return found


def _written(desk: Desk, attempt: Attempt, context: Context, asked: list[Recorded]) -> str:
    """The source; asked for a second time, with the reason, where the first reply holds none."""
    source = _source(desk, attempt, context, asked)
    if isinstance(source, Unusable):
        desk.report(Unused(attempt.writer.model.name, attempt.operator, source.reason))
        told = context.model_copy(update={"notes": f"Your last reply could not be used: {source.reason}."})
        source = _source(desk, attempt, told, asked)
    if isinstance(source, Unusable):
        raise _InVain(attempt.operator, source.reason)
    return source


def _source(desk: Desk, attempt: Attempt, context: Context, asked: list[Recorded]) -> str | Unusable:
    parent = attempt.parents[0][0].source if attempt.parents else None
    reply = _ask(desk, attempt, attempt.operator, render_code(context, desk.templates), asked)
    return read_source(reply.text, desk.task, parent, reply.finish)


def _ask(desk: Desk, attempt: Attempt, purpose: str, messages: Sequence[Message], asked: list[Recorded]) -> Reply:
    """The reply, on record and paid for."""
    writer = attempt.writer
    held = desk.ledger.reserve_in_turn(reserve(messages, writer.max_tokens, writer.price))
    if isinstance(held, OverCap):
        raise _OverBudget(f"budget spent: {held.reason}")
    usd = Decimal(0)
    try:
        if desk.stopped.is_set():
            raise _Stopped
        desk.report(Asking(writer.model.name, purpose))
        planning = purpose.startswith(memory.PLANNING)
        model = writer.planner if planning and writer.planner else writer.model
        asked.append(model.about(purpose, attempt.number))
        answer = asked[-1].complete(messages)
        usd = cost(answer.usage, writer.price).usd
    finally:
        desk.ledger.settle(held, usd)
    if isinstance(answer, Reply):
        return answer
    if answer.kind == "out of time":
        raise _OverBudget(f"budget spent: {answer.reason}")
    raise _InVain(purpose, f"{answer.kind}: {answer.reason}", for_good=_is_for_good(desk, writer, answer))


def _is_for_good(desk: Desk, writer: Writer, failed: Failed) -> bool:
    """Whether the model would fail at the next request, too."""
    if failed.kind in ("unauthorised", "bad request"):
        return True
    asked = [exchange for exchange in desk.archive.exchanges(desk.run_id) if exchange.model == writer.model.name]
    patience = {"too long": 1, "connection": UNREACHED}.get(failed.kind)
    # Where some prompt was answered, the model is there, and the next one may be shorter.
    return patience is not None and len(asked) >= patience and not any(exchange.reply for exchange in asked)


# ---------------------------------------------------------------- the candidate


def _candidate(desk: Desk, attempt: Attempt, context: Context, source: str) -> Candidate:
    parent = attempt.parents[0][0] if attempt.parents else None
    return Candidate(
        task=desk.task.name,
        target=desk.task.target,
        source=source,
        tunables=tunables_of(source, desk.task, parent),
        parents=_lineage(attempt, context),
        operator=RECORDED_AS.get(attempt.operator, "propose"),
        proposer=attempt.writer.model.name,
        note=" ".join((context.plan.change if context.plan else attempt.operator).split())[:120],
    )


def _lineage(attempt: Attempt, context: Context) -> tuple[str, ...]:
    """Ids of the parents; of a fused kernel those of its parts' kernels."""
    parts = [part.exhibit.candidate for part in context.parts]
    return tuple(candidate.id for candidate in parts or [parent for parent, _ in attempt.parents])


def tunables_of(
    source: str, task: Task, parent: Candidate | None, chosen: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The source's defaults, the parent's values where it has left a default alone, and those `chosen`."""
    own = plan.parse(source, task)
    return plan.settle(own, _kept(own, task, parent) | dict(chosen or {}))


def _kept(own: plan.Plan, task: Task, parent: Candidate | None) -> dict[str, int]:
    if parent is None or parent.form != "kernel":
        return {}
    before, written = parent.tunables, plan.parse(parent.source, task).tunables
    defaults = {tunable.name: tunable.default for tunable in written}
    return {
        t.name: before[t.name]
        for t in own.tunables
        if t.default == defaults.get(t.name) and before.get(t.name) in t.choices
    }


def _keep(desk: Desk, attempt: Attempt, candidate: Candidate, asked: Sequence[Recorded]) -> None:
    """Put the candidate on record, unless the run has one that differs in comments and blanks only."""
    with desk.recording:
        judged = trajectory(desk.archive, desk.run_id)
        ahead = memory.waiting(desk.archive.exchanges(desk.run_id), judged)
        known = [*(other for other, _ in judged), *map(desk.archive.candidate, ahead)]
        if mark(candidate, desk.task) in {mark(other, desk.task) for other in known}:
            raise _InVain(attempt.operator, "a kernel that was judged before")
        desk.archive.add_made(candidate, [name for model in asked for name in model.exchanges])


def mark(candidate: Candidate, task: Task) -> str:
    """What it shares with those that differ from it in comments and blanks only."""
    try:
        return fingerprint(candidate, plan.parse(candidate.source, task), candidate.tunables)
    except PlanError:
        return candidate.id
