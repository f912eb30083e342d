"""Numbers and verdicts as a person reads them, in a few words or on one line.

Numbers only come from records. Not covered: tables (boards, render).
"""

from __future__ import annotations

import math

from prompts.words import decimals as decimals
from prompts.words import milliseconds as milliseconds
from prompts.words import percent as percent
from prompts.words import quantity as quantity
from prompts.words import ratio as ratio
from prompts.words import resource_words as resource_words
from sandbox.contract import Against, Candidate, Conditions, Interval, Judgement, Passed, SanitizerReport

NAMED = ("eager", "compile", "library")
"""The baselines every leaderboard shows, in this order."""
ID_LENGTH = 10


def short(candidate_id: str) -> str:
    """The first digits of an id, enough to type."""
    return candidate_id[:ID_LENGTH]


def label(candidate: Candidate) -> str:
    """A candidate in a few words."""
    return f"{short(candidate.id)} {candidate.note or candidate.operator}"


def times(interval: Interval | None) -> str:
    """A speedup with its confidence interval, all three to the same decimals."""
    if interval is None:
        return "–"
    low, high = bounds(interval)
    return f"{ratio(interval.ratio)} ({low}–{high})"


def bounds(interval: Interval) -> tuple[str, str]:
    """The interval's ends, to the decimals of its ratio; the upper one of a single round is infinite."""
    places = decimals(interval.ratio)
    return f"{interval.low:.{places}f}", f"{interval.high:.{places}f}" if math.isfinite(interval.high) else "∞"


def usd(amount: float) -> str:
    """To the cent, smaller amounts to two digits that mean something."""
    return f"{amount:.2f}" if amount >= 0.1 or amount == 0 else f"{amount:.2g}"


def against(judgement: Judgement) -> str:
    """A passed candidate's speedups over the baselines that were timed; single library calls left out."""
    verdict = judgement.verdict
    if not isinstance(verdict, Passed):
        return ""
    names = [*NAMED, *(name for name in verdict.speedup if name not in NAMED and ":" not in name)]
    measured = [(name, verdict.speedup[name]) for name in names if name in verdict.speedup]
    return " ".join(f"{ratio(interval.ratio)}× {name}" for name, interval in measured)


def brief(judgement: Judgement) -> str:
    """A verdict in the fewest words; the time alone says that a candidate passed."""
    return verdict_words(judgement).removeprefix("Passed ")


def verdict_words(judgement: Judgement) -> str:
    """A verdict on one line."""
    verdict = judgement.verdict
    if isinstance(verdict, Passed):
        line = f"Passed {milliseconds(verdict.latency_ms)} ms {against(judgement)}".rstrip()
        return f"{line}; {pair_words(verdict.against)}" if verdict.against else line
    return f"{verdict.status} {first_line(reason(judgement))}"


def pair_words(against: Against) -> str:
    """How a fused kernel stands against the best kernels of its parts, run one after the other."""
    measured = f"{times(against.speedup)}×" if against.speedup else "not measurable against"
    if against.faster:
        return f"fused, {measured} the best unfused pair"
    return f"fused, {measured} the best unfused pair: not measurably faster, dropped"


def reason(judgement: Judgement) -> str:
    """Why a candidate did not pass, in full; empty where it did."""
    verdict = judgement.verdict
    match verdict.status:
        case "Passed":
            return ""
        case "BuildFailed":
            return verdict.log
        case "LaunchFailed":
            return f"{verdict.workload}: {verdict.reason}"
        case "Incorrect":
            return f"{verdict.workload}, {verdict.distribution}: {verdict.rule}: {verdict.evidence}"
        case "TimedOut":
            return f"{verdict.stage} after {verdict.seconds:.0f} s"
        case "Cheated":
            return f"{verdict.rule}: {verdict.evidence}"


def first_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if "error" in line.lower()] or text.strip().splitlines()
    return lines[0][:100] if lines else ""


def sanitizer_words(report: SanitizerReport) -> str:
    """A sanitizer's result; below it each kind of error, or why there is no result."""
    if report.errors is None:
        return f"{report.tool}: {report.excerpt}"
    if not report.errors and not report.kernels:
        return f"{report.tool}: nothing found"
    head = f"{report.tool}: {report.errors} error{'' if report.errors == 1 else 's'}"
    lines = [
        f"  {fault.count} × {fault.kernel}: {fault.what}{fault.where and f', {fault.where}'}"
        for fault in report.kernels
    ]
    return "\n".join([head, *lines])


def conditions_words(seen: Conditions) -> str:
    """A GPU's clocks and what it was like, as far as it told."""
    figures = [(seen.memory_mhz, "MHz memory"), (seen.temperature_c, "°C"), (seen.power_w, "W")]
    told = [f"{value:.0f} {unit}" for value, unit in figures if value is not None]
    return ", ".join([f"timed at {seen.sm_mhz} MHz", *told, *seen.slowed])


def tunables(values: dict[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items()) or "none"
