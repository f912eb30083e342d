"""Numbers in a few digits, and a verdict in the words that tell a model what to do next.

Numbers only come from records. Held-out workloads are never named. Not covered: verdicts as a person reads them
(agent/words.py, which shares the digits).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from prompts.hidden import UNSHOWN, concealed, names_hidden
from prompts.records import Exhibit
from sandbox.contract import (
    BuildFailed,
    Cheated,
    Device,
    Incorrect,
    KernelResources,
    LaunchFailed,
    Measurement,
    Passed,
    Profile,
    Task,
    TimedOut,
    Timing,
    Workload,
)
from sandbox.expressions import parse_expr
from sandbox.plan import environment
from sandbox.trial import floor

LOG_LINES = 60
LOG_CHARACTERS = 6000
ELSEWHERE = (
    "Besides the workloads above others are checked, with odd sizes and sizes smaller than a tile: look at"
    " tails, at alignment and at what the code takes for granted"
)
_LIBRARY = "library:"

# ---------------------------------------------------------------- numbers


def ratio(value: float) -> str:
    """A speedup with two or three digits that mean something: 0.079, 0.79, 7.95, 79.5, 795."""
    return f"{value:.{decimals(value)}f}"


def decimals(value: float) -> int:
    return 3 if value < 0.0995 else 2 if value < 9.995 else 1 if value < 99.95 else 0


def milliseconds(ms: float) -> str:
    """Three digits or more at any size."""
    return f"{ms:.{5 if ms < 0.01 else 4 if ms < 0.1 else 3 if ms < 10 else 1}f}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def quantity(value: float | None) -> str:
    """Any counter in three digits or more: 0.0123, 1.23, 123, 12,345."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def resource_words(kernel: KernelResources) -> str:
    """What the compiler says a kernel takes, on one line."""
    spills = f"{kernel.spill_bytes} B of spills" if kernel.spill_bytes else "no spills"
    return f"{kernel.kernel}: {kernel.registers} registers, {spills}, {kernel.smem_bytes} B of static shared memory"


def size(count: float) -> str:
    """Bytes or operations with a decimal prefix: `6.29 M`, `4.1 G`, `512`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g} {prefix}"
    return f"{count:.3g} "


# ---------------------------------------------------------------- workloads


def workload_words(task: Task, workload: Workload, device: Device) -> str:
    """A workload with what it moves and computes, and the time that takes at peak rates."""
    env = environment(task, workload, {}, device)
    moved, operations = parse_expr(task.bytes_moved).evaluate(env), parse_expr(task.flops).evaluate(env)
    parts = [f"moves at least {size(moved)}B", f"{size(operations)}FLOP"]
    if moved:
        parts.append(f"{quantity(operations / moved)} FLOP/B")
    floor_ms = floor(task, workload, device)
    if floor_ms is not None:
        parts.append(f"{milliseconds(floor_ms)} ms at peak rates")
    floats = [f"{name} = {value:g}" for name, value in workload.scalars.items() if isinstance(value, float)]
    return f"{', '.join([workload.name, *floats])}: {', '.join(parts)}"


# ---------------------------------------------------------------- verdicts


def verdict_words(exhibit: Exhibit, task: Task) -> str:
    """What became of a kernel, in Markdown."""
    if exhibit.judgement is None:
        return "Not judged yet."
    verdict, source = exhibit.judgement.verdict, exhibit.candidate.source
    match verdict:
        case Passed():
            return "\n".join(_passed(verdict, task))
        case BuildFailed(log=log):
            return f"BuildFailed: it did not compile.\n\n{_quoted(excerpt(concealed(log, task, source)))}"
        case LaunchFailed(workload=workload, reason=reason):
            text = concealed(reason, task, source, thorough=not _is_shown(workload, task))
            return f"LaunchFailed on {_place(workload, task)}.\n\n{_quoted(excerpt(text))}"
        case Incorrect(workload=workload, distribution=distribution, rule=rule, evidence=evidence):
            head = f"Incorrect ({rule}), inputs drawn as `{distribution}`, on {_place(workload, task)}."
            text = concealed(evidence, task, source, thorough=not _is_shown(workload, task))
            return f"{head}\n\n{_quoted(excerpt(text))}"
        case TimedOut(stage=stage, seconds=seconds):
            return f"TimedOut: {concealed(stage, task)} after {seconds:.0f} s."
        case Cheated(rule=rule, evidence=evidence):
            hidden = names_hidden(evidence, task)
            head = f"Cheated: the judge refused it. Rule: {rule}.{f' {ELSEWHERE}.' if hidden else ''}"
            return f"{head}\n\n{_quoted(excerpt(concealed(evidence, task, source, thorough=hidden)))}"


def _is_shown(workload: str, task: Task) -> bool:
    return any(workload == known.name for known in task.workloads)


def _place(workload: str, task: Task) -> str:
    return f"`{workload}`" if _is_shown(workload, task) else f"{UNSHOWN}. {ELSEWHERE}"


def excerpt(text: str) -> str:
    """The part of a log that says what is wrong: from its first error on, as much as fits into a prompt."""
    lines = text.strip().splitlines()
    first = next((i for i, line in enumerate(lines) if "error" in line.lower()), 0)
    kept = lines[max(0, first - 2) :][:LOG_LINES]
    cut = "\n".join(kept)[:LOG_CHARACTERS]
    return cut if len(cut) == len("\n".join(lines)) else f"{cut}\n(shortened)"


def _quoted(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def _passed(verdict: Passed, task: Task) -> Iterator[str]:
    shown = [t for t in verdict.timings if any(t.workload == workload.name for workload in task.workloads)]
    named = {name: interval for name, interval in verdict.speedup.items() if ":" not in name}
    speedups = ", ".join(
        f"{ratio(i.ratio)}× {name} ({_ends(i.low, i.high, i.ratio)})" for name, i in sorted(named.items())
    )
    over = f"; over the workloads {speedups}" if speedups else ""
    yield f"Passed: right on every workload, {milliseconds(verdict.latency_ms)} ms (geometric mean){over}."
    if shown:
        yield ""
        yield from _table(shown)
        yield ""
        yield from _slowest(shown)
    yield from _resources(verdict.resources)
    if verdict.profile:
        yield from _counters(verdict.profile)
    if verdict.against and verdict.against.speedup:
        pair = verdict.against.speedup
        kept = "" if verdict.against.faster else ": not faster by more than the noise, so it is not kept"
        yield (
            f"- {ratio(pair.ratio)}× ({_ends(pair.low, pair.high, pair.ratio)}) the best kernels of its parts, "
            f"run one after the other{kept}."
        )
    if not verdict.deterministic:
        yield "- Two calls on the same data gave different bits: look for a race, or atomics on floats."


def _ends(low: float, high: float, middle: float) -> str:
    places = decimals(middle)
    return f"{low:.{places}f}–{f'{high:.{places}f}' if math.isfinite(high) else '∞'}"


def _table(timings: list[Timing]) -> Iterator[str]:
    names = list(dict.fromkeys(name for timing in timings for name in _baselines(timing)))
    yield f"| workload | ms | {' | '.join(f'× {name}' for name in names)}{' | ' if names else ''}of the roofline |"
    yield f"|---{'|---:' * (len(names) + 2)}|"
    for timing in timings:
        baselines = _baselines(timing)
        cells = [_over(baselines.get(name), timing) for name in names]
        figures = [milliseconds(timing.candidate.median_ms), *cells, percent(timing.roofline_share)]
        yield f"| {timing.workload} | {' | '.join(figures)} |"


def _over(baseline: Measurement | None, timing: Timing) -> str:
    return "–" if baseline is None else ratio(baseline.median_ms / timing.candidate.median_ms)


def _baselines(timing: Timing) -> dict[str, Measurement]:
    """By name, the fastest library call for all of them."""
    own = {name: m for name, m in timing.baselines.items() if not name.startswith(_LIBRARY)}
    calls = [m for name, m in timing.baselines.items() if name.startswith(_LIBRARY)]
    return own | ({"library": min(calls, key=lambda m: m.median_ms)} if calls else {})


def _slowest(timings: list[Timing]) -> Iterator[str]:
    with_share = [(t.roofline_share, t) for t in timings if t.roofline_share is not None]
    if with_share:
        share, worst = min(with_share, key=lambda pair: pair[0])
        yield f"- Furthest from the roofline: `{worst.workload}`, at {percent(share)} of it."
    against = [(min(m.median_ms for m in _baselines(t).values()), t) for t in timings if _baselines(t)]
    if against:
        best_ms, worst = min(against, key=lambda pair: pair[0] / pair[1].candidate.median_ms)
        over = ratio(best_ms / worst.candidate.median_ms)
        yield f"- Weakest against the best baseline: `{worst.workload}`, {over}× of it."


def _resources(kernels: Iterable[KernelResources]) -> Iterator[str]:
    """The most each kernel takes in any specialisation."""
    worst: dict[str, KernelResources] = {}
    for kernel in kernels:
        known = worst.get(kernel.kernel)
        if known is None or (kernel.spill_bytes, kernel.registers) > (known.spill_bytes, known.registers):
            worst[kernel.kernel] = kernel
    for kernel in worst.values():
        yield f"- {resource_words(kernel)}"


def _counters(profile: Profile) -> Iterator[str]:
    for kernel in profile.kernels:
        values = "; ".join(f"{c.name} {quantity(c.value)} {c.unit}".rstrip() for c in kernel.counters)
        yield f"- Counters of {kernel.kernel} on `{profile.workload}` ({profile.tool}): {values}."
