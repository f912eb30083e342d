"""When a search has done enough: near the hardware's limit, standing still, or paying too much for the next per cent.

Asked after every judgement, beside the budget, which ends a search whatever this says. Not covered: whether another
structure could beat the roofline's model of the task.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from pydantic import Field

from agent.engineer.scores import score
from agent.steps import Judged
from agent.words import ratio
from sandbox.contract import Passed, Record

LEAST_POINTS = 6
"""Judgements after the first that passed, before the curve says anything of the future."""
MOST_GAIN = 100.0
"""In natural logarithms: where fractions of a cent are spent, a slope may promise more than a float can hold."""
MOST_SHARE = 1.0
"""A kernel beyond the roofline shows that the peak is wrong, or does not limit: data in caches, a busy machine."""


class Rules(Record):
    """When to stop; each rule can be set so that it never holds."""

    roofline_share: float = Field(default=0.9, gt=0)
    least_gain: float = Field(default=0.01, gt=0)
    """Less than this share faster is no gain."""
    patience: float = Field(default=0.5, gt=0)
    """Evaluations without a gain, as a share of the budget's."""
    least_patience: int = Field(default=16, ge=1)
    """Evaluations without a gain, at least."""
    least_gain_per_usd: float = Field(default=0.01, ge=0)
    """How much faster the next dollar must be expected to make the best kernel; 0.01 is 1 %."""


def should_stop(
    trajectory: Sequence[Judged], usd: Sequence[float], budget_evals: int, rules: Rules | None = None
) -> str | None:
    """Why the search should end, with the numbers that say so; None while it should go on.

    `trajectory` holds each candidate once, in order. `usd` is what had been spent in all when each was judged.
    """
    rules = rules or Rules()
    curve = record_curve(trajectory)
    return near_roofline(trajectory, rules) or stagnant(curve, budget_evals, rules) or too_dear(curve, usd, rules)


def record_curve(trajectory: Sequence[Judged]) -> list[float]:
    """The best score after each judgement; -inf before the first that passed."""
    curve: list[float] = []
    for _, judgement in trajectory:
        own = score(judgement)
        curve.append(max(curve[-1] if curve else -math.inf, -math.inf if own is None else own))
    return curve


def near_roofline(trajectory: Sequence[Judged], rules: Rules) -> str | None:
    """On every workload some kernel is near the limit: the winner may differ by workload, as in the composition.

    Never on the CPU: its peak is measured, which a busy machine or a cache makes too low.
    """
    shares: dict[str, float] = {}
    passed = [(j.target, j.verdict) for _, j in trajectory if isinstance(j.verdict, Passed)]
    timings = [timing for target, verdict in passed if target == "cuda" for timing in verdict.timings]
    for timing in timings:
        if timing.roofline_share is not None:
            shares[timing.workload] = max(timing.roofline_share, shares.get(timing.workload, 0.0))
    if not shares or {timing.workload for timing in timings} - set(shares):
        return None
    if max(shares.values()) > MOST_SHARE:
        return None
    workload, least = min(shares.items(), key=lambda item: item[1])
    if least < rules.roofline_share:
        return None
    reached, wanted = f"{100 * least:.1f} %", f"{100 * rules.roofline_share:g} %"
    return f"{reached} of the roofline on {workload} and no less elsewhere, wanted {wanted}"


def stagnant(curve: Sequence[float], budget_evals: int, rules: Rules) -> str | None:
    """Too many evaluations since the best one rose by the least gain; small steps count together."""
    patience = max(rules.least_patience, math.ceil(rules.patience * budget_evals))
    step, last, level = math.log1p(rules.least_gain), 0, -math.inf
    for at, record in enumerate(curve):
        if record >= level + step:
            last, level = at, record
    since = len(curve) - 1 - last
    if not math.isfinite(level) or since < patience:
        return None
    return (
        f"{since} evaluations without a gain of {100 * rules.least_gain:g} %, {patience} allowed; "
        f"best {ratio(math.exp(curve[-1]))}x eager"
    )


def too_dear(curve: Sequence[float], usd: Sequence[float], rules: Rules) -> str | None:
    """The next dollar is expected to gain too little, by the record curve of late."""
    gain = expected_gain(curve, usd)
    if gain is None or gain >= rules.least_gain_per_usd:
        return None
    return (
        f"the next USD is expected to gain {100 * gain:.2f} %, wanted {100 * rules.least_gain_per_usd:g} %; "
        f"best {ratio(math.exp(curve[-1]))}x eager after {usd[-1]:.2f} USD"
    )


def expected_gain(curve: Sequence[float], usd: Sequence[float]) -> float | None:
    """How much faster the next dollar makes the best kernel, as a share; None where too little is known.

    A line through the later half of the record curve over the logarithm of the money spent: returns diminish, each
    doubling of the money gaining about the same.
    """
    points = [
        (math.log(spent), record) for record, spent in zip(curve, usd, strict=True) if spent > 0 and record > -math.inf
    ]
    late = points[len(points) // 2 :]
    if len(points) < LEAST_POINTS or late[0][0] == late[-1][0]:
        return None
    slope = statistics.linear_regression([x for x, _ in late], [y for _, y in late]).slope
    return math.expm1(min(max(slope, 0.0) * math.log1p(1 / usd[-1]), MOST_GAIN))
