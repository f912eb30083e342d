"""Sessions' evaluations as judges: of a made-up landscape, and of this machine's CPU by our own judge."""

from __future__ import annotations

from collections.abc import Mapping

from archive.records import utc_now
from bench.peers.session import Kernel, Outcome, Session
from sandbox.contract import (
    BuildFailed,
    Candidate,
    Device,
    Incorrect,
    Interval,
    Judgement,
    Measurement,
    Passed,
    Task,
    Timing,
    Verdict,
)
from sandbox.judge import Judge

ROUNDS = 12
"""Of a duel."""


class Scripted:
    """Verdicts of a landscape in the form that our search wants; a confirmation repeats the verdict at no cost."""

    def __init__(self, session: Session, device: Device) -> None:
        self.session, self.device = session, device
        self._known: dict[str, Outcome] = {}

    def judge(self, task: Task, candidate: Candidate) -> Judgement:
        self._known[candidate.id] = self.session.judge(candidate.source, candidate.tunables)
        return self._judgement(task, candidate, confirmed=False)

    def confirm(self, task: Task, candidate: Candidate) -> Judgement:
        return self._judgement(task, candidate, confirmed=True)

    def _judgement(self, task: Task, candidate: Candidate, confirmed: bool) -> Judgement:
        return Judgement(
            candidate=candidate.id,
            task=task.name,
            task_version=task.version,
            target=task.target,
            device=self.device.name,
            verdict=_verdict(task, self._known[candidate.id], confirmed),
            seconds=0.0,
            judged_at=utc_now(),
        )


def _verdict(task: Task, outcome: Outcome, confirmed: bool) -> Verdict:
    if outcome.speedup is None:
        wrong = Incorrect(workload=task.workloads[0].name, distribution="normal", rule="error", evidence="too large")
        return wrong if outcome.status == "Incorrect" else BuildFailed(log="error: expected primary-expression")
    ratio = outcome.speedup
    timings = tuple(
        Timing(workload=w.name, candidate=_took(1 / ratio), baselines={"eager": _took(1.0)}) for w in task.workloads
    )
    speedup = {"eager": Interval(ratio=ratio, low=ratio, high=ratio)}
    return Passed(checks=(), timings=timings, speedup=speedup, latency_ms=1 / ratio, confirmed=confirmed)


def _took(ms: float) -> Measurement:
    return Measurement(rounds_ms=(ms,), median_ms=ms, low_ms=ms, high_ms=ms, samples=1)


class Real:
    """Our judge; what it says of the candidates that are searched is the session's log."""

    def __init__(self, judge: Judge, task: Task) -> None:
        self.device = judge.device
        self._judge, self._task = judge, task
        self._last: Judgement | None = None

    def evaluate(self, source: str, tunables: Mapping[str, int]) -> Outcome:
        self._last = self._judge.judge(self._task, self.candidate(source, tunables))
        return Outcome(status=self._last.verdict.status, speedup=_over_eager(self._last))

    def candidate(self, source: str, tunables: Mapping[str, int]) -> Candidate:
        return Candidate(
            task=self._task.name,
            target=self._task.target,
            source=source,
            tunables=dict(tunables),
            operator="propose",
            proposer="bench",
        )

    def faster_by(self, one: Kernel, other: Kernel) -> float:
        """The other's time over the one's, measured side by side."""
        duel = self._judge.duel(self._task, self.candidate(*one), self.candidate(*other), rounds=ROUNDS)
        return duel.interval.ratio

    def of(self, session: Session) -> Logged:
        return Logged(self, session)

    def last(self) -> Judgement:
        assert self._last is not None
        return self._last


class Logged:
    """Our judge as our search wants it. Winners are not confirmed within the search: the bench lets them duel."""

    def __init__(self, real: Real, session: Session) -> None:
        self.device = real.device
        self._real, self._session = real, session
        self._known: dict[str, Judgement] = {}

    def judge(self, task: Task, candidate: Candidate) -> Judgement:
        self._session.judge(candidate.source, candidate.tunables)
        self._known[candidate.id] = self._real.last().model_copy(update={"candidate": candidate.id})
        return self._known[candidate.id]

    def confirm(self, task: Task, candidate: Candidate) -> Judgement:
        known = self._known[candidate.id]
        verdict = known.verdict.model_copy(update={"confirmed": True})
        return known.model_copy(update={"verdict": verdict, "judged_at": utc_now()})


def _over_eager(judgement: Judgement) -> float | None:
    verdict = judgement.verdict
    return verdict.speedup["eager"].ratio if isinstance(verdict, Passed) else None
