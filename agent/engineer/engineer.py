"""A language model as the proposer: it plans one change of one kernel, then writes it.

A structure that has become the fastest gets a short sweep of its tunables before the next is asked for. What earlier
attempts came to is read off the archive, so that a resumed run goes on where it stood. A reply that is no new kernel
costs an attempt and is reported in one line. Not covered: how a model is reached (models), what prompts say (prompts),
whether a kernel is any good (the judge).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.engineer import bandit, ideas, memory, parents, stopping
from agent.engineer.bandit import Arm
from agent.engineer.niches import elites
from agent.engineer.records import Context, Exhibit, Message, Operator, Plan
from agent.engineer.reply import Unusable, read_plan, read_source
from agent.engineer.scores import Scored, best, scored
from agent.models.endpoint import Reply
from agent.models.ledger import Ledger, OverCap
from agent.models.prices import Price, cost, reserve
from agent.models.recording import Recorded
from agent.proposers import History, NothingLeft
from agent.proposers.tuner import Tuner
from agent.steps import Asking, Event, Judged, Unused, trajectory
from archive import Archive
from prompts.render import render_code, render_plan
from sandbox import contract, plan
from sandbox.contract import Candidate, Device, Passed, Task
from sandbox.duplicates import fingerprint
from sandbox.errors import PlanError

ATTEMPTS = 4
"""In a row for one evaluation; then the tuner has a turn."""
GIVE_UP = 24
"""Requests in a row that came to nothing, after which no model is asked again."""
SWEEP = 2
"""Variants that the tuner tries of a structure that has become the fastest."""
REPAIRS = 2
"""Repairs of a repair."""
INSPIRATIONS = 2
PLANNED: tuple[Operator, ...] = ("rewrite", "edit", "crossover")
"""Operators that carry out a plan."""
IMPROVING: tuple[Operator, ...] = (*PLANNED, "simplify")
_RECORDED_AS: dict[Operator, contract.Operator] = {
    "translate": "translate",
    "crossover": "crossover",
    "repair": "repair",
}


@dataclass(frozen=True)
class Writer:
    """A model, and what a request may cost."""

    model: Recorded
    price: Price | None
    max_tokens: int


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
    templates: Path | None = None
    """A folder of the user's own templates."""


@dataclass(frozen=True)
class _Attempt:
    """Who is asked, to do what, with which kernels."""

    writer: Writer
    operator: Operator
    parents: tuple[Judged, ...]


class _InVain(Exception):
    """A request came to nothing; the reason in one line."""

    def __init__(self, purpose: str, reason: str) -> None:
        super().__init__(reason)
        self.purpose = purpose


class Engineer:
    """Proposes seeds, sweeps of what passed, and kernels that a model writes."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._unreachable: dict[str, str] = {}
        """Models that will not answer in this process any more, and why."""

    def propose(self, history: History, n: int) -> list[Candidate]:
        """One candidate, or the seeds that are left. NothingLeft says why there is none."""
        desk = self.desk
        judged = trajectory(desk.archive, desk.run_id)
        taken = {candidate.id for candidate, _ in judged}
        if untried := [seed for seed in desk.seeds if seed.id not in taken]:
            return untried[:n]
        if swept := self._sweep(judged, history):
            return swept
        exchanges = desk.archive.exchanges(desk.run_id)
        if reason := stopping.should_stop(judged, memory.spending(exchanges, judged), desk.budget_evals):
            raise NothingLeft(reason)
        silent = ""
        while not silent:
            for _ in range(ATTEMPTS):
                if silent := self._silent():
                    break
                if made := self._attempt(judged):
                    return [made]
            if tuned := Tuner(desk.task, desk.seeds, desk.device, desk.rng_seed).propose(history, 1):
                return tuned
        raise NothingLeft(f"{silent}, and the tuner has nothing left")

    def _sweep(self, judged: Sequence[Judged], history: History) -> list[Candidate]:
        """The next variant of the structure that leads, where a model wrote it, until it has had its few."""
        leader = best(scored(judged))
        if leader is None:
            return []
        own = [candidate for candidate, _ in judged if candidate.source == leader.candidate.source]
        if own[0].operator in ("seed", "tune", "import", "compose") or len(own) > SWEEP:
            return []
        return Tuner(self.desk.task, own[:1], self.desk.device, self.desk.rng_seed).propose(history, 1)

    def _silent(self) -> str:
        """Why no model is asked any more; empty while one is."""
        desk = self.desk
        if all(writer.model.name in self._unreachable for writer in desk.writers):
            return "; ".join(f"{name}: {why}" for name, why in self._unreachable.items())
        in_vain = memory.fruitless(desk.archive.exchanges(desk.run_id))
        return f"the last {in_vain} replies came to no new kernel" if in_vain >= GIVE_UP else ""

    # ------------------------------------------------------------ one attempt

    def _attempt(self, judged: Sequence[Judged]) -> Candidate | None:
        desk = self.desk
        rng = random.Random(f"{desk.rng_seed} {len(desk.archive.exchanges(desk.run_id))}")
        attempt = self._chosen(judged, rng)
        context = self._context(attempt, judged)
        asked: list[Recorded] = []
        try:
            if attempt.operator in PLANNED:
                found = self._planned(attempt, context, judged, rng, asked)
                context = context.model_copy(update={"plan": found})
            source = self._written(attempt, context, asked)
            return self._candidate(attempt, context, source, judged, asked)
        except _InVain as vain:
            desk.report(Unused(attempt.writer.model.name, vain.purpose, str(vain)))
            return None

    def _chosen(self, judged: Sequence[Judged], rng: random.Random) -> _Attempt:
        """A broken kernel is repaired first; then whom to improve is drawn, and how and by whom the bandit says."""
        desk = self.desk
        observed = memory.observations(desk.archive.exchanges(desk.run_id), judged)
        if judged and self._repairable(judged):
            return self._by_bandit(("repair",), observed, (judged[-1],))
        members = parents.islands(judged)
        born = parents.children(judged)
        choice = parents.choose(members, born, desk.task, desk.device, rng)
        if choice is None:
            return self._by_bandit(("translate",), observed, ())
        mate = parents.mate(members, choice.parent, born, desk.task, desk.device, rng)
        chosen = self._by_bandit([o for o in IMPROVING if o != "crossover" or mate], observed, (_pair(choice.parent),))
        if chosen.operator == "crossover" and mate is not None:
            return replace(chosen, parents=(*chosen.parents, _pair(mate)))
        return chosen

    def _by_bandit(
        self, operators: Sequence[Operator], observed: Sequence[bandit.Observation], given: tuple[Judged, ...]
    ) -> _Attempt:
        writers = {w.model.name: w for w in self.desk.writers if w.model.name not in self._unreachable}
        arm = bandit.choose([Arm(model=name, operator=o) for name in writers for o in operators], observed)
        return _Attempt(writers[arm.model], arm.operator, given)

    def _repairable(self, judged: Sequence[Judged]) -> bool:
        """Whether the last candidate is a model's, is broken, and has not been repaired too often."""
        known = {candidate.id: candidate for candidate, _ in judged}
        candidate, judgement = judged[-1]
        if candidate.operator in ("seed", "tune", "import") or isinstance(judgement.verdict, Passed):
            return False
        repairs = 0
        while candidate.operator == "repair" and candidate.parents and candidate.parents[0] in known:
            repairs, candidate = repairs + 1, known[candidate.parents[0]]
        return repairs < REPAIRS

    def _context(self, attempt: _Attempt, judged: Sequence[Judged]) -> Context:
        desk = self.desk
        own = {candidate.id for candidate, _ in attempt.parents}
        ranked = sorted(elites(judged, desk.task, desk.device).values(), key=lambda entry: -entry.score)
        others = [entry for entry in ranked if entry.candidate.id not in own][:INSPIRATIONS]
        tried = memory.ideas(desk.archive.exchanges(desk.run_id), judged)
        lineage = ideas.of_lineage(tried, attempt.parents[0][0].id, desk.archive.edges()) if attempt.parents else []
        return Context(
            task=desk.task,
            device=desk.device,
            operator=attempt.operator,
            parents=tuple(Exhibit(candidate=c, judgement=j) for c, j in attempt.parents),
            inspirations=tuple(Exhibit(candidate=e.candidate, judgement=e.judgement) for e in others),
            ideas=tuple(lineage),
        )

    def _planned(
        self,
        attempt: _Attempt,
        context: Context,
        judged: Sequence[Judged],
        rng: random.Random,
        asked: list[Recorded],
    ) -> Plan:
        desk = self.desk
        purpose = f"{memory.PLANNING}{attempt.operator}"
        found = read_plan(self._ask(attempt, purpose, render_plan(context, rng, desk.templates), asked).text)
        if isinstance(found, Unusable):
            raise _InVain(purpose, found.reason)
        tried = memory.ideas(desk.archive.exchanges(desk.run_id), judged)
        repeated = ideas.refused(found, tried, attempt.parents[0][0].id, desk.archive.edges())
        if repeated is not None:
            raise _InVain(purpose, f"repeats an idea that failed on this lineage ({repeated.outcome})")
        return found

    def _written(self, attempt: _Attempt, context: Context, asked: list[Recorded]) -> str:
        """The source; asked for a second time, with the reason, where the first reply holds none."""
        parent = attempt.parents[0][0].source if attempt.parents else None
        source = self._source(attempt, context, parent, asked)
        if isinstance(source, Unusable):
            self.desk.report(Unused(attempt.writer.model.name, attempt.operator, source.reason))
            told = context.model_copy(update={"notes": f"Your last reply could not be used: {source.reason}."})
            source = self._source(attempt, told, parent, asked)
        if isinstance(source, Unusable):
            raise _InVain(attempt.operator, source.reason)
        return source

    def _source(self, attempt: _Attempt, context: Context, parent: str | None, asked: list[Recorded]) -> str | Unusable:
        reply = self._ask(attempt, attempt.operator, render_code(context, self.desk.templates), asked)
        return read_source(reply.text, self.desk.task, parent, reply.finish)

    def _candidate(
        self, attempt: _Attempt, context: Context, source: str, judged: Sequence[Judged], asked: Sequence[Recorded]
    ) -> Candidate:
        """On record, with the exchanges that made it."""
        desk = self.desk
        own = plan.parse(source, desk.task)
        candidate = Candidate(
            task=desk.task.name,
            target=desk.task.target,
            source=source,
            tunables=plan.settle(own, self._kept(own, attempt.parents)),
            parents=tuple(parent.id for parent, _ in attempt.parents),
            operator=_RECORDED_AS.get(attempt.operator, "propose"),
            proposer=attempt.writer.model.name,
            note=" ".join((context.plan.change if context.plan else attempt.operator).split())[:120],
        )
        if self._mark(candidate) in {self._mark(other) for other, _ in judged}:
            raise _InVain(attempt.operator, "a kernel that was judged before")
        desk.archive.add(candidate)
        for model in asked:
            model.made(candidate.id)
        return candidate

    def _kept(self, own: plan.Plan, given: Sequence[Judged]) -> dict[str, int]:
        """The parent's values of those tunables that the child has left as they were in its text."""
        if not given or given[0][0].form != "kernel":
            return {}
        before, written = given[0][0].tunables, plan.parse(given[0][0].source, self.desk.task).tunables
        defaults = {tunable.name: tunable.default for tunable in written}
        return {
            t.name: before[t.name]
            for t in own.tunables
            if t.default == defaults.get(t.name) and before.get(t.name) in t.choices
        }

    def _mark(self, candidate: Candidate) -> str:
        try:
            return fingerprint(candidate, plan.parse(candidate.source, self.desk.task), candidate.tunables)
        except PlanError:
            return candidate.id

    # ------------------------------------------------------------ asking

    def _ask(self, attempt: _Attempt, purpose: str, messages: Sequence[Message], asked: list[Recorded]) -> Reply:
        """The reply, on record and paid for. NothingLeft where it would cost too much, or came too late."""
        desk, writer = self.desk, attempt.writer
        held = desk.ledger.reserve(reserve(messages, writer.max_tokens, writer.price))
        if isinstance(held, OverCap):
            raise NothingLeft(f"budget spent: {held.reason}")
        desk.report(Asking(writer.model.name, purpose))
        model = writer.model.about(purpose)
        answer = model.complete(messages)
        desk.ledger.settle(held, cost(answer.usage, writer.price).usd)
        asked.append(model)
        if isinstance(answer, Reply):
            return answer
        if answer.kind == "out of time":
            raise NothingLeft(f"budget spent: {answer.reason}")
        if answer.kind in ("unauthorised", "bad request") or (
            answer.kind == "too long" and not self._has_replied(writer)
        ):
            self._unreachable[writer.model.name] = f"{answer.kind}: {answer.reason}"
        raise _InVain(purpose, f"{answer.kind}: {answer.reason}")

    def _has_replied(self, writer: Writer) -> bool:
        """Whether some prompt of this run was short enough for the model."""
        exchanges = self.desk.archive.exchanges(self.desk.run_id)
        return any(exchange.model == writer.model.name and exchange.reply is not None for exchange in exchanges)


def _pair(entry: Scored) -> Judged:
    return entry.candidate, entry.judgement
