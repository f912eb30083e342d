"""The steps of a run, as plain functions: what the graph's nodes call.

A candidate's fault is a verdict and goes on record; anything else is an exception that travels up and stops the run.
All that a step must know of earlier ones it reads from the archive, so it can be repeated after any kill.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from agent import fusion
from agent.config import Budget
from agent.proposers import NothingLeft, Proposer
from sandbox.contract import Candidate, Device, Judgement, Passed, Task

if TYPE_CHECKING:
    from archive.store import Archive
    from sandbox.judge import Duel

Judged: TypeAlias = tuple[Candidate, Judgement]
Winners: TypeAlias = dict[str, Judged]
"""By workload name."""


class JudgeLike(Protocol):
    """What a step needs of sandbox.judge.Judge."""

    @property
    def device(self) -> Device: ...

    def judge(self, task: Task, candidate: Candidate) -> Judgement: ...

    def confirm(self, task: Task, candidate: Candidate) -> Judgement: ...

    def duel(self, task: Task, challenger: Candidate, champion: Candidate) -> Duel: ...


@dataclass(frozen=True)
class Composition:
    """The final extension and what checking it against eager said."""

    root: Path
    package: str
    ok: bool
    message: str


@dataclass(frozen=True)
class Spent:
    """How much of its budget a run has used."""

    evals: int
    seconds: float
    usd: float


@dataclass(frozen=True)
class Judging:
    """A candidate is about to be judged, or confirmed."""

    candidate: Candidate
    confirming: bool


@dataclass(frozen=True)
class Settled:
    """A candidate has its verdict. `reused` means the archive knew it."""

    candidate: Candidate
    judgement: Judgement
    reused: bool
    confirming: bool
    spent: Spent


@dataclass(frozen=True)
class Ended:
    """The search is over; winners are confirmed and composed next."""

    reason: str


@dataclass(frozen=True)
class Composed:
    winners: Winners
    composition: Composition | None
    """None where nothing passed."""


@dataclass(frozen=True)
class Asking:
    """A model is about to be asked."""

    model: str
    purpose: str


@dataclass(frozen=True)
class Unused:
    """A model was asked in vain."""

    model: str
    purpose: str
    reason: str
    """One line."""


Event: TypeAlias = Asking | Unused | Judging | Settled | Ended | Composed


@dataclass(frozen=True)
class Clients:
    """Everything a step works with that is not a value: opened once by the command line, or scripted by a test."""

    archive: Archive
    judge: JudgeLike
    task: Task
    seeds: Sequence[Candidate]
    proposer: Proposer
    budget: Budget
    compose: Callable[[Winners], Composition]
    report: Callable[[Event], None]


# ---------------------------------------------------------------- what the archive says


def trajectory(archive: Archive, run_id: str) -> list[Judged]:
    """What the run judged, in order: each candidate once, with its first judgement."""
    first: dict[str, Judged] = {}
    for candidate, judgement in archive.history(run_id):
        first.setdefault(candidate.id, (candidate, judgement))
    return list(first.values())


def latest(archive: Archive, run_id: str) -> list[Judged]:
    """What the run judged, each candidate once, with its last judgement: a confirmation where there was one."""
    last = {candidate.id: (candidate, judgement) for candidate, judgement in archive.history(run_id)}
    return list(last.values())


def spent(archive: Archive, run_id: str) -> Spent:
    """What the run has used of its budget."""
    run = archive.run(run_id)
    return Spent(evals=len(trajectory(archive, run_id)), seconds=run.seconds_spent, usd=run.usd_spent)


def winners(judged: Sequence[Judged], task: Task) -> Winners:
    """For each search workload the fastest confirmed candidate; none where nothing passed."""
    return fastest([(c, j) for c, j in judged if isinstance(j.verdict, Passed) and j.verdict.confirmed], task)


def fastest(judged: Sequence[Judged], task: Task) -> Winners:
    """For each search workload the fastest of these; none where there are none."""
    return {w.name: min(judged, key=lambda judged: cost(judged[1], w.name)) for w in task.workloads} if judged else {}


def finalists(judged: Sequence[Judged], task: Task) -> list[Candidate]:
    """Who must be measured again: the fastest on each workload and the fastest overall."""
    passed = [(c, j) for c, j in judged if isinstance(j.verdict, Passed) and fusion.kept(j)]
    if not passed:
        return []
    best = [min(passed, key=lambda judged: cost(judged[1], w.name))[0] for w in task.workloads]
    best.append(min(passed, key=lambda judged: math.prod(cost(judged[1], w.name) for w in task.workloads))[0])
    return list({candidate.id: candidate for candidate in best}.values())


def cost(judgement: Judgement, workload: str) -> float:
    """The candidate's latency on one workload over eager's; infinite unless it passed.

    Eager ran side by side with it, so the ratio means the same on a busy or throttled machine, where milliseconds of
    two candidates that were judged minutes apart do not.
    """
    if not isinstance(judgement.verdict, Passed):
        return math.inf
    timing = next(timing for timing in judgement.verdict.timings if timing.workload == workload)
    return timing.candidate.median_ms / timing.baselines["eager"].median_ms


# ---------------------------------------------------------------- the steps


def translate(clients: Clients) -> list[str]:
    """The kernels the search starts from, as ids. The identity so far: every task has seeds."""
    return [clients.archive.add(seed) for seed in clients.seeds]


def optimise(clients: Clients, run_id: str) -> str | None:
    """Propose one candidate and judge it. Returns why the search is over, or None while it goes on."""
    started = time.monotonic()
    used = spent(clients.archive, run_id)
    if reason := clients.budget.exhausted(used.evals, used.seconds, used.usd):
        return _ended(clients, f"budget spent: {reason}")
    history = [(c, j.verdict) for c, j in trajectory(clients.archive, run_id)]
    try:
        batch = clients.proposer.propose(history, 1)
    except NothingLeft as nothing:
        clients.archive.update_run(run_id, seconds_spent=used.seconds + time.monotonic() - started)
        return _ended(clients, str(nothing))
    if not batch:
        return _ended(clients, "the proposer has nothing left to try")
    clients.archive.add(batch[0])
    clients.report(Judging(batch[0], confirming=False))
    judgement, reused = evaluate(clients, batch[0])
    clients.archive.record(judgement, run_id)
    clients.archive.update_run(run_id, seconds_spent=used.seconds + time.monotonic() - started)
    now = spent(clients.archive, run_id)
    clients.report(Settled(batch[0], judgement, reused, confirming=False, spent=now))
    return None


def evaluate(clients: Clients, candidate: Candidate) -> tuple[Judgement, bool]:
    """The candidate's judgement, and whether the archive knew it already from this machine."""
    task, device = clients.task, clients.judge.device
    known = clients.archive.judged(candidate.id, task.version, task.target, device.name, here=True)
    if known is not None:
        return known, True
    judgement = clients.judge.judge(task, candidate)
    return fusion.weighed(clients.judge, task, candidate, judgement, clients.archive), False


def confirm(clients: Clients, run_id: str) -> bool:
    """Measure one finalist again, on fresh data. Returns whether there are more.

    A finalist that fails this time drops out, and whoever comes next takes its place.
    """
    candidate = next_finalist(clients, run_id)
    if candidate is None:
        return False
    clients.report(Judging(candidate, confirming=True))
    judgement = clients.judge.confirm(clients.task, candidate)
    clients.archive.record(judgement, run_id)
    now = spent(clients.archive, run_id)
    clients.report(Settled(candidate, judgement, reused=False, confirming=True, spent=now))
    return next_finalist(clients, run_id) is not None


def next_finalist(clients: Clients, run_id: str) -> Candidate | None:
    """A finalist that is not confirmed yet; None once there are enough.

    An honest second measurement is often slower than a lucky first one, so without a limit each would promote another.
    """
    judged = latest(clients.archive, run_id)
    confirmed = {c.id for c, j in judged if isinstance(j.verdict, Passed) and j.verdict.confirmed}
    if len(confirmed) > len(clients.task.workloads):
        return None
    return next((c for c in finalists(judged, clients.task) if c.id not in confirmed), None)


def compose(clients: Clients, run_id: str) -> Mapping[str, str]:
    """Write and check the final extension, and close the run. Returns the winners' ids by workload."""
    chosen = winners(latest(clients.archive, run_id), clients.task)
    composition = clients.compose(chosen) if chosen else None
    ids = {workload: candidate.id for workload, (candidate, _) in chosen.items()}
    clients.archive.update_run(run_id, status="finished", winners=ids)
    clients.report(Composed(chosen, composition))
    return ids


def _ended(clients: Clients, reason: str) -> str:
    clients.proposer.stop()
    clients.report(Ended(reason))
    return reason
