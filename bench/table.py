"""Turns an archive export into a Markdown table: per task and workload the confirmed winner beside every baseline.

    python -m bench.table EXPORT.jsonl --command 'make run TASK=attention …' > bench/results/NAME.md

Ratios are baseline over candidate, paired by round, with 95 % t intervals; below 1 the candidate loses. Nothing is
measured here.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import quantiles

from archive import Archive
from sandbox import statistics
from sandbox.contract import Candidate, Interval, Judgement, Measurement, Passed, Timing

LEGEND = """\
Each row is the confirmed candidate that is fastest on the workload: measured again after it had won, on fresh inputs,
interleaved with every baseline. Latencies are medians; ratios are baseline over candidate with a 95 % interval over
rounds, so below 1 the candidate loses. Roofline: floor time at peak rates over measured time.
"""
LEGEND_CUDA = """\
≈ and †: unsteady, no claim. The rounds of the baseline spread over more than 3 %, or the interval of the ratio is wider
than ±1.5 %, where a device-bound measurement stays well within 1 %. As a rule the GPU waited for the host in between.
"""
UNSTEADY_ROUNDS = 0.03
UNSTEADY_RATIO = 0.015

Found = tuple[Candidate, Judgement, Passed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--command", required=True, help="the command whose runs the export holds")
    parser.add_argument("--title", default="Kernels found by the tuner")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Archive.open(Path(folder) / "archive.db") as archive:
        archive.import_(arguments.export)
        print("\n".join(report(archive.judgements(), arguments.title, arguments.command)))


def report(judged: list[tuple[Candidate, Judgement]], title: str, command: str) -> Iterator[str]:
    """The lines of the page."""
    passed = [(c, j, j.verdict) for c, j in judged if isinstance(j.verdict, Passed)]
    yield f"# {title}\n"
    yield f"- Device: {', '.join(sorted({j.device for _, j in judged}))}"
    versions = {f"{name} {version}" for _, j in judged for name, version in j.versions.items()}
    yield f"- Versions: {', '.join(sorted(versions))}"
    yield f"- Dates: {min(j.judged_at for _, j in judged)[:16]} to {max(j.judged_at for _, j in judged)[:16]} UTC"
    yield f"- Command: `{command}`\n"
    yield LEGEND
    if any(c.target == "cuda" for c, _, _ in passed):
        yield LEGEND_CUDA
    for task in sorted({c.task for c, _, _ in passed}):
        yield from section(task, [f for f in passed if f[0].task == task], [j for _, j in judged if j.task == task])


def section(task: str, passed: list[Found], judged: list[Judgement]) -> Iterator[str]:
    """One task."""
    verdicts = Counter(j.verdict.status for j in {j.candidate: j for j in judged}.values())
    counts = ", ".join(f"{count} {status}" for status, count in verdicts.most_common())
    confirmed = [found for found in passed if found[2].confirmed]
    yield f"## {task}\n\n{sum(verdicts.values())} candidates judged ({counts}), {len(confirmed)} confirmed.\n"
    overall = min(confirmed, key=lambda found: found[2].latency_ms)
    means = [
        f"{name} {mean(overall[0], overall[2], name, interval)}"
        for name, interval in sorted(overall[2].speedup.items())
    ]
    yield f"Best single candidate over all workloads (geometric means): {overall[0].note}: {', '.join(means)}.\n"
    yield "| workload | candidate | ms (95 %) | roofline | × eager | × compile | libraries and others |"
    yield "|---|---|---|---|---|---|---|"
    for workload in [timing.workload for timing in overall[2].timings]:
        winner = min(confirmed, key=partial(cost_on, workload=workload))
        yield row(winner[0], timing_of(winner[2], workload))
    yield ""


def mean(candidate: Candidate, passed: Passed, name: str, interval: Interval) -> str:
    """A geometric mean over workloads, marked where one of its baselines was unsteady."""
    known = [m for t in passed.timings for key, m in t.baselines.items() if key == name or key.startswith(f"{name}:")]
    return ratio(interval, candidate.target == "cpu" or (narrow(interval) and all(map(steady, known))))


def row(candidate: Candidate, timing: Timing) -> str:
    """One workload."""
    own = timing.candidate
    others = [name for name in sorted(timing.baselines) if name not in ("eager", "compile")]
    cells = [
        timing.workload,
        candidate.note,
        f"{own.median_ms:.4g} ({own.low_ms:.4g}–{own.high_ms:.4g})",
        f"{timing.roofline_share:.0%}" if timing.roofline_share is not None else "–",
        *(against(candidate, timing, name) for name in ("eager", "compile")),
        ", ".join(f"{name.removeprefix('library:')} {against(candidate, timing, name)}" for name in others) or "–",
    ]
    return f"| {' | '.join(cells)} |"


def against(candidate: Candidate, timing: Timing, name: str) -> str:
    """Ratio with interval, and the baseline's own milliseconds."""
    if name not in timing.baselines:
        return "–"
    baseline = timing.baselines[name]
    interval = paired(baseline, timing.candidate)
    sure = candidate.target == "cpu" or (narrow(interval) and steady(baseline))
    return f"{ratio(interval, sure)} [{baseline.median_ms:.4g} ms]"


def steady(measured: Measurement) -> bool:
    """Whether the interquartile range of the rounds is small beside their median."""
    low, _, high = quantiles(measured.rounds_ms, n=4)
    return (high - low) / measured.median_ms <= UNSTEADY_ROUNDS


def narrow(interval: Interval) -> bool:
    return interval.high / interval.low <= (1 + UNSTEADY_RATIO) ** 2


def paired(baseline: Measurement, candidate: Measurement) -> Interval:
    pairs = zip(baseline.rounds_ms, candidate.rounds_ms, strict=False)
    return statistics.interval([math.log(theirs / ours) for theirs, ours in pairs])


def ratio(interval: Interval, sure: bool) -> str:
    limits = f"({interval.low:.2f}–{interval.high:.2f})"
    return f"**{interval.ratio:.2f}** {limits}" if sure else f"≈{interval.ratio:.2f} {limits} †"


def timing_of(passed: Passed, workload: str) -> Timing:
    return next(timing for timing in passed.timings if timing.workload == workload)


def cost_on(found: Found, workload: str) -> float:
    """Latency."""
    return timing_of(found[2], workload).candidate.median_ms


if __name__ == "__main__":
    main()
