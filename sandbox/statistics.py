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
MORE_ROUNDS = 3
"""Times as many rounds again has a duel whose first ones leave it open who is faster."""


def interval(log_ratios: Sequence[float]) -> Interval:
    """Geometric mean of ratios given as logarithms, with a 95 % t interval; unbounded for fewer than two."""
    mean = statistics.fmean(log_ratios)
    if len(log_ratios) < 2:
        return Interval(ratio=math.exp(mean), low=0.0, high=math.inf)
    freedom = len(log_ratios) - 1
    half = _quantile(freedom) * statistics.stdev(log_ratios) / math.sqrt(len(log_ratios))
    return Interval(ratio=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half))


def trimmed_interval(log_ratios: Sequence[float], share: float = 0.2) -> Interval:
    """As `interval`, for the mean without the `share` lowest and highest values: a late block widens it little.

    Trimmed mean with the winsorised variance and t on the values left (Yuen, Biometrika 61, 1974).
    """
    cut = int(share * len(log_ratios))
    if cut == 0 or len(log_ratios) - 2 * cut < 3:
        return interval(log_ratios)
    values = sorted(log_ratios)
    left = values[cut:-cut]
    winsorised = [left[0]] * cut + left + [left[-1]] * cut
    freedom = len(left) - 1
    error = statistics.stdev(winsorised) / ((1 - 2 * cut / len(values)) * math.sqrt(len(values)))
    mean, half = statistics.fmean(left), _quantile(freedom) * error
    return Interval(ratio=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half))


def _quantile(freedom: int) -> float:
    return _T95[freedom - 1] if freedom <= len(_T95) else 1.96 + 2.4 / freedom


def measurement(rounds_ms: Sequence[float], samples: int) -> Measurement:
    """Latency over rounds: their median, and the 95 % t interval of their trimmed geometric mean."""
    spread = trimmed_interval([math.log(value) for value in rounds_ms])
    return Measurement(
        rounds_ms=tuple(rounds_ms),
        median_ms=statistics.median(rounds_ms),
        low_ms=spread.low,
        high_ms=min(spread.high, 1e12),
        samples=samples,
    )


def speedups(timings: Sequence[Timing]) -> dict[str, Interval]:
    """Baseline latency over candidate latency, geometric mean over workloads, one log ratio per round, trimmed.

    `library` is, for each workload, the library call with the lowest median. A baseline that is missing on a workload
    has no entry.
    """
    names = set.intersection(*(set(_subjects(timing)) for timing in timings)) if timings else set()
    return {
        name: trimmed_interval(_log_ratios([_subjects(t)[name] for t in timings], timings)) for name in sorted(names)
    }


def gate(timings: Sequence[Timing]) -> float:
    """The speedup whose lower bound must be exceeded: 1 + max(2 %, what eager differs from itself by)."""
    with_again = [timing for timing in timings if timing.again is not None]
    if not with_again:
        return LEAST_GAIN
    own = trimmed_interval(_log_ratios([timing.again for timing in with_again if timing.again], with_again, "eager"))
    return gate_of(own)


def gate_of(own: Interval) -> float:
    """The gate where something measured against itself gave `own`."""
    return max(LEAST_GAIN, own.high, 2 - own.low)


def open_question(ratios: Sequence[float], own: Sequence[float]) -> bool:
    """Whether rounds of a duel and of its contestants against themselves, as logarithms, leave open who is faster.

    To look twice at a one-sided level of 2.5 % each errs in 5 % of duels at most (Bonferroni).
    """
    found = trimmed_interval(ratios)
    return found.low <= gate_of(trimmed_interval(own)) <= found.high


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
