"""How good a judged candidate is, as one number. Not covered: whether two scores differ by more than noise (duels)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agent.steps import Judged, cost
from sandbox.contract import Candidate, Judgement, Passed


@dataclass(frozen=True)
class Scored:
    """A candidate that passed, with its last judgement."""

    candidate: Candidate
    judgement: Judgement
    score: float


def score(judgement: Judgement) -> float | None:
    """ln of the geometric mean over workloads of eager's latency over the candidate's; None unless it passed.

    0 is as fast as eager. Logarithms, so that a step from 1x to 2x counts as much as one from 2x to 4x.
    """
    if not isinstance(judgement.verdict, Passed) or not judgement.verdict.timings:
        return None
    return -statistics.fmean(math.log(cost(judgement, timing.workload)) for timing in judgement.verdict.timings)


def scored(history: Sequence[Judged]) -> list[Scored]:
    """The candidates that passed, in order of their first judgement, each once, by its last judgement.

    So a candidate that was not confirmed is not among them.
    """
    last = {candidate.id: (candidate, judgement) for candidate, judgement in history}
    return [Scored(c, j, value) for c, j in last.values() if (value := score(j)) is not None]


def best(pool: Iterable[Scored]) -> Scored | None:
    """The highest score, the earliest of equals; None of none."""
    return max(pool, key=lambda entry: entry.score, default=None)
