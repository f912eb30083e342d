"""Records as words and tables for a person. Numbers only come from records; nothing is computed here.

Not covered: JSON, which is the records themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from sandbox.contract import Candidate, Interval, Judgement, Passed, Task, Timing

if TYPE_CHECKING:
    from agent.building import BuildReport
    from agent.doctor import Finding
    from agent.session import Outcome
    from agent.tasks import Overview
    from archive import ImportReport, Row

NAMED = ("eager", "compile", "library")
"""The baselines every leaderboard shows."""
WIDE = 130
"""Columns from which on a leaderboard says who proposed and when."""
ID_LENGTH = 10
LOG_LINES = 12


def short(candidate_id: str) -> str:
    """The first digits of an id, enough to type."""
    return candidate_id[:ID_LENGTH]


def label(candidate: Candidate) -> str:
    """A candidate in a few words."""
    return f"{short(candidate.id)} {candidate.note or candidate.operator}"


def times(interval: Interval | None) -> str:
    """A speedup with its confidence interval."""
    return f"{interval.ratio:.2f} ({interval.low:.3g}–{interval.high:.3g})" if interval else "–"


def milliseconds(ms: float) -> str:
    return f"{ms:.4f}" if ms < 0.1 else f"{ms:.3f}" if ms < 10 else f"{ms:.1f}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def verdict_words(judgement: Judgement) -> str:
    """A verdict on one line."""
    verdict = judgement.verdict
    if isinstance(verdict, Passed):
        against = " ".join(f"{name} {i.ratio:.2f}×" for name, i in verdict.speedup.items() if ":" not in name)
        return f"Passed {milliseconds(verdict.latency_ms)} ms {against}".rstrip()
    return f"{verdict.status} {first_line(reason(judgement))}"


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


# ---------------------------------------------------------------- leaderboard


def leaderboard(rows: Sequence[Row], width: int, limit: int | None = None) -> RenderableType:
    """One table for each task, target and device; rows come best first. `width` is the console's, in columns."""
    if not rows:
        return Text("nothing has passed yet")
    boards = groupby(rows, key=lambda row: (row.task, row.target, row.device))
    return Group(*(_board(key, list(board), limit, width >= WIDE) for key, board in boards))


def _board(key: tuple[str, str, str], rows: Sequence[Row], limit: int | None, wide: bool) -> Table:
    shown = rows[:limit]
    more = f", best {len(shown)} of {len(rows)}" if len(shown) < len(rows) else ""
    table = Table(title=f"{' · '.join(key)}{more}", title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    table.collapse_padding, table.pad_edge = True, False
    table.caption = "× geometric mean over workloads (95 % interval); ✓ measured again on fresh data"
    table.caption_justify = "left"
    numbers = {"#": 4, "ms": 5, **{f"× {name}": 16 for name in NAMED}, "roof": 5, "depth": 5}
    for name, least in numbers.items():
        table.add_column(name, justify="right", no_wrap=True, min_width=least)
    for name in ("candidate", *(("by", "when (UTC)") if wide else ())):
        table.add_column(name, no_wrap=True, min_width=ID_LENGTH)
    table.add_column("what", no_wrap=True)
    for place, row in enumerate(shown, start=1):
        table.add_row(*_cells(place, row, wide))
    return table


def _cells(place: int, row: Row, wide: bool) -> Iterator[str]:
    yield from (f"{place} ✓" if row.confirmed else f"{place}  ", milliseconds(row.latency_ms))
    yield from (times(row.speedup.get(name)) for name in NAMED)
    yield from (percent(row.roofline_share), str(row.depth), short(row.candidate))
    if wide:
        yield from (row.proposer, row.judged_at[:16].replace("T", " "))
    yield row.note


# ---------------------------------------------------------------- one candidate


def candidate_page(candidate: Candidate, judgements: Sequence[Judgement], lineage: Sequence[Candidate]) -> Group:
    """Everything the archive knows of a candidate."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("candidate", candidate.id)
    facts.add_row("task", f"{candidate.task} · {candidate.target}")
    facts.add_row("by", f"{candidate.proposer} ({candidate.operator}) {candidate.note}")
    facts.add_row("tunables", tunables(candidate.tunables))
    facts.add_row("lineage", " → ".join(label(c) for c in lineage))
    pages = [part for judgement in judgements for part in _judgement_parts(judgement)]
    return Group(facts, *(pages or [Text("not judged yet")]), Text(), source(candidate))


def tunables(values: dict[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items()) or "none"


def source(candidate: Candidate) -> RenderableType:
    """The source, in colours where there are any."""
    return Syntax(candidate.source, "cuda" if candidate.target == "cuda" else "cpp", background_color="default")


def _judgement_parts(judgement: Judgement) -> Iterator[RenderableType]:
    verdict = judgement.verdict
    confirmed = " (confirmed)" if isinstance(verdict, Passed) and verdict.confirmed else ""
    yield Text(f"\n{judgement.judged_at[:19]} on {judgement.device}: {verdict_words(judgement)}{confirmed}")
    if isinstance(verdict, Passed):
        yield timings(verdict.timings)
    else:
        yield Text("\n".join(reason(judgement).splitlines()[:LOG_LINES]))


def timings(measured: Iterable[Timing]) -> Table:
    """Latency of the candidate and each baseline, by workload, in milliseconds."""
    rows = list(measured)
    baselines = list(dict.fromkeys(name for timing in rows for name in timing.baselines))
    table = Table(header_style="bold", box=SIMPLE_HEAD)
    table.add_column("workload")
    for name in ("ms", "95 %", "roof", *baselines):
        table.add_column(name, justify="right")
    for timing in rows:
        own = timing.candidate
        others = (timing.baselines.get(name) for name in baselines)
        table.add_row(
            timing.workload,
            milliseconds(own.median_ms),
            f"{milliseconds(own.low_ms)}–{milliseconds(own.high_ms)}",
            percent(timing.roofline_share),
            *(milliseconds(other.median_ms) if other else "–" for other in others),
        )
    return table


# ---------------------------------------------------------------- runs, differences, builds, machines


def outcome(outcome: Outcome, width: int) -> RenderableType:
    """The last lines of a run."""
    verdicts = ", ".join(f"{count} {status}" for status, count in outcome.verdicts.items())
    lines = [f"run {outcome.run} {outcome.status}: {outcome.evals} judged ({verdicts}) in {outcome.seconds:.0f} s"]
    lines += [_winner(workload, winner, outcome.leaderboard) for workload, winner in outcome.winners.items()]
    if outcome.composed:
        lines.append(f"composed extension: {outcome.composed}")
        lines.append(f"  {'ok' if outcome.ok else 'NOT OK'}: {outcome.message}")
    return Group(leaderboard(outcome.leaderboard, width, limit=20), Text("\n".join(lines)))


def _winner(workload: str, winner: str, board: Sequence[Row]) -> str:
    measured = (entry for row in board if row.candidate == winner for entry in row.workloads)
    found = next((entry for entry in measured if entry.workload == workload), None)
    if found is None:
        return f"  {workload}: {short(winner)}"
    against = ", ".join(f"{found.speedup[name]:.2f}× {name}" for name in NAMED if name in found.speedup)
    return f"  {workload}: {short(winner)} {milliseconds(found.latency_ms)} ms, {against}"


def difference(tunables: dict[str, list[int | None]], lines: Sequence[str]) -> RenderableType:
    """Changed tunables, then a unified diff."""
    text = "\n".join([*(f"{name}: {old} → {new}" for name, (old, new) in tunables.items()), *lines])
    return Syntax(text, "diff", background_color="default", word_wrap=True) if text else Text("no difference")


def builds(reports: Sequence[BuildReport]) -> RenderableType:
    """One row for each kernel of each specialisation."""
    table = Table(header_style="bold", box=SIMPLE_HEAD)
    for name in ("seed", "kernel", "for"):
        table.add_column(name)
    for name in ("registers", "spills", "smem", "threads", "occupancy", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for report in reports:
        seconds = f"{report.seconds:.3f}{' (cached)' if report.cached else ''}"
        if not report.ok:
            table.add_row(report.seed, "failed", _served(report.workloads), style="red")
        for kernel in report.kernels:
            sizes = (kernel.registers, kernel.spill_bytes, kernel.smem_bytes, kernel.threads)
            names = (report.seed, kernel.kernel, _served(report.workloads))
            occupancy = "does not fit" if report.unfit else percent(kernel.occupancy)
            table.add_row(*names, *map(str, sizes), occupancy, seconds)
        if report.ok and not report.kernels:
            table.add_row(report.seed, "built", _served(report.workloads), *([""] * 5), seconds)
    return table


def _served(workloads: Sequence[str]) -> str:
    more = f" and {len(workloads) - 1} more" if len(workloads) > 1 else ""
    return f"{workloads[0]}{more}"


def findings(found: Sequence[Finding]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for finding in found:
        table.add_row(
            "✓" if finding.there else "–", finding.part, finding.detail, finding.instead and f"→ {finding.instead}"
        )
    return table


def task_table(found: Sequence[Overview]) -> RenderableType:
    """The list of tasks."""
    table = Table(header_style="bold", box=SIMPLE_HEAD)
    for name in ("task", "what", "search workloads"):
        table.add_column(name)
    for task in found:
        counts = ", ".join(f"{count} {target}" for target, count in task.workloads.items())
        table.add_row(task.name, task.summary, counts)
    return table


def task_page(task: Task, prototype: str) -> RenderableType:
    """A task as a proposer may know it: without its held-out workloads."""
    text = [f"{task.name} · {task.target}: {task.summary}", f"version {task.version}, in {task.folder}", ""]
    for kind, tensors in (("out", task.outputs), ("inout", task.inouts), ("in", task.inputs)):
        text += [f"{kind:<6} {t.name}[{', '.join(t.shape)}] {t.dtype}" for t in tensors]
    text += [f"scalar {s.name} {s.type}" + ("" if s.default is None else f" = {s.default}") for s in task.scalars]
    text += ["", f"bytes  {task.bytes_moved}", f"flops  {task.flops}", "", prototype, "", "workloads"]
    return Text("\n".join([*text, *(f"  {workload.name}" for workload in task.workloads)]))


def tallies(report: ImportReport) -> str:
    """What an import did, on one line."""
    parts = [(name, getattr(report, name)) for name in type(report).model_fields]
    return "; ".join(f"{name}: {tally.new} new, {tally.known} known" for name, tally in parts)
