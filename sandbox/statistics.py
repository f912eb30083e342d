"""Medians, t intervals over rounds, and the geometric means a leaderboard ranks by.

One number per round enters an interval: samples within a round share its noise and are not independent.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from sandbox.contract import Interval, Measurement, Timing

# Two-sided 95 % quantiles of Student's t by degrees of freedom.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


LEAST_GAIN = 1.02
"""Below it nothing is called faster, however sure."""


def interval(log_ratios: Sequence[float]) -> Interval:
    """Geometric mean of ratios given as logarithms, with a 95 % t interval; unbounded for fewer than two."""
    mean = statistics.fmean(log_ratios)
    if len(log_ratios) < 2:
        return Interval(ratio=math.exp(mean), low=0.0, high=math.inf)
    freedom = len(log_ratios) - 1
    quantile = _T95[freedom - 1] if freedom <= len(_T95) else 1.96 + 2.4 / freedom
    half = quantile * statistics.stdev(log_ratios) / math.sqrt(len(log_ratios))
    return Interval(ratio=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half))


def measurement(rounds_ms: Sequence[float], samples: int) -> Measurement:
    """Latency over rounds: their median, and the 95 % t interval of their geometric mean."""
    spread = interval([math.log(value) for value in rounds_ms])
    return Measurement(
        rounds_ms=tuple(rounds_ms),
        median_ms=statistics.median(rounds_ms),
        low_ms=spread.low,
        high_ms=min(spread.high, 1e12),
        samples=samples,
    )


def speedups(timings: Sequence[Timing]) -> dict[str, Interval]:
    """Baseline latency over candidate latency, geometric mean over workloads, one log ratio per round.

    `library` is, for each workload, the library call with the lowest median. A baseline that is missing on a workload
    has no entry.
    """
    names = set.intersection(*(set(_subjects(timing)) for timing in timings)) if timings else set()
    return {name: interval(_log_ratios([_subjects(t)[name] for t in timings], timings)) for name in sorted(names)}


def gate(timings: Sequence[Timing]) -> float:
    """The speedup whose lower bound must be exceeded: 1 + max(2 %, what eager differs from itself by)."""
    with_again = [timing for timing in timings if timing.again is not None]
    if not with_again:
        return LEAST_GAIN
    own = interval(_log_ratios([timing.again for timing in with_again if timing.again], with_again, "eager"))
    return max(LEAST_GAIN, own.high, 2 - own.low)


def _subjects(timing: Timing) -> Mapping[str, Measurement]:
    library = [m for name, m in timing.baselines.items() if name.startswith("library:")]
    own = {name: m for name, m in timing.baselines.items() if not name.startswith("library:")}
    return own | ({"library": min(library, key=lambda m: m.median_ms)} if library else {})


def _log_ratios(baselines: Sequence[Measurement], timings: Sequence[Timing], against: str = "candidate") -> list[float]:
    subjects = [timing.candidate if against == "candidate" else timing.baselines[against] for timing in timings]
    rounds = min(len(subject.rounds_ms) for subject in subjects)
    return [
        statistics.fmean(
            math.log(baseline.rounds_ms[i] / subject.rounds_ms[i])
            for baseline, subject in zip(baselines, subjects, strict=True)
        )
        for i in range(rounds)
    ]


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive values."""
    return math.exp(statistics.fmean(math.log(value) for value in values))
