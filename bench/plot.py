"""Draws an archive export: the best speedup over eager PyTorch, over the candidates judged, one panel for each task.

    python -m bench.plot EXPORT.jsonl bench/results/NAME.svg

A dot is a candidate that passed, in the order of judging, its geometric mean over the task's workloads, against the
median of what eager took beside all of them; ticks below are candidates that did not pass. Confirmations are not
drawn: they measure again what was found. Needs matplotlib (the extra `bench`). Nothing is measured here.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from archive import Archive
from sandbox.contract import Candidate, Judgement, Passed
from sandbox.statistics import geometric_mean

COLUMNS = 3
STYLE = {"svg.hashsalt": "0", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("file", type=Path, help="an .svg")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Archive.open(Path(folder) / "archive.db") as archive:
        archive.import_(arguments.export)
        draw(courses(archive.judgements()), arguments.file)


def courses(judged: list[tuple[Candidate, Judgement]]) -> dict[str, list[float | None]]:
    """By task: the speedup of each candidate when it was judged first, None where it did not pass."""
    found: dict[str, dict[str, float | None]] = {}
    eager = usual_eager([judgement for _, judgement in judged])
    for _, judgement in sorted(judged, key=lambda pair: pair[1].judged_at):
        known = eager.get(judgement.task, {})
        found.setdefault(judgement.task, {}).setdefault(judgement.candidate, speedup(judgement, known))
    return {task: list(speedups.values()) for task, speedups in sorted(found.items())}


def usual_eager(judged: list[Judgement]) -> dict[str, dict[str, float]]:
    """By task and workload: what eager took beside most candidates, ms."""
    taken: dict[str, dict[str, list[float]]] = {}
    for judgement in judged:
        for timing in judgement.verdict.timings if isinstance(judgement.verdict, Passed) else ():
            workloads = taken.setdefault(judgement.task, {})
            workloads.setdefault(timing.workload, []).append(timing.baselines["eager"].median_ms)
    return {task: {name: median(ms) for name, ms in workloads.items()} for task, workloads in taken.items()}


def speedup(judgement: Judgement, eager: Mapping[str, float]) -> float | None:
    if not isinstance(judgement.verdict, Passed):
        return None
    timings = judgement.verdict.timings
    return geometric_mean(eager[timing.workload] / timing.candidate.median_ms for timing in timings)


def draw(found: dict[str, list[float | None]], file: Path) -> None:
    columns = min(COLUMNS, len(found))
    rows = math.ceil(len(found) / columns)
    with pyplot.rc_context(STYLE):
        figure, grid = pyplot.subplots(rows, columns, figsize=(3.2 * columns, 2.4 * rows), squeeze=False)
        for axes in grid.flat[len(found) :]:
            axes.set_visible(False)
        for axes, (task, speedups) in zip(grid.flat, found.items(), strict=False):
            panel(axes, task, speedups)
        figure.tight_layout()
        figure.savefig(file, metadata={"Date": None})
        pyplot.close(figure)


def panel(axes: Axes, task: str, speedups: list[float | None]) -> None:
    numbers = range(1, len(speedups) + 1)
    best = list(accumulate((speedup or math.nan for speedup in speedups), lambda a, b: max(a, b, key=_or_nothing)))
    axes.step(numbers, best, where="post", color="tab:blue")
    passed = [(number, speedup) for number, speedup in zip(numbers, speedups, strict=True) if speedup]
    axes.plot([n for n, _ in passed], [s for _, s in passed], ".", color="tab:blue", alpha=0.5)
    failed = [number for number, speedup in zip(numbers, speedups, strict=True) if not speedup]
    axes.plot(failed, [0.02] * len(failed), "|", color="tab:red", transform=axes.get_xaxis_transform())
    axes.axhline(1, color="grey", linewidth=0.5)
    axes.set_title(f"{task}: best {max((s for _, s in passed), default=math.nan):.2f}×")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("candidates judged")
    axes.set_ylabel("× eager, geometric mean")
    axes.set_ylim(bottom=0)


def _or_nothing(value: float) -> float:
    return -math.inf if math.isnan(value) else value


if __name__ == "__main__":
    main()
