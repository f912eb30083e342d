"""Which candidates are best. A board is one task, task version, target and device; boards never mix.

Within a board, rows stand by speedup over eager (the geometric mean over workloads), the highest first; latency would
rank unlike workload sets against each other. Of several judgements of one candidate a board takes those of the newest
judge version it has seen, prefers a confirmed one, then the newest; a candidate whose chosen judgement is not Passed
has no row, nor has one that this judge version ever found Incorrect or Cheated: a kernel that is right
only sometimes is wrong. Not covered: choosing parents for a search, and printing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from itertools import groupby

from archive.lineage import depths
from archive.store import Archive, Judged
from sandbox.contract import SHAPES, Candidate, Interval, Judgement, Operator, Passed, Record, Target, Timing

NAMED = ("eager", "compile", "library")
"""Baselines every row has a column for, be they measured or not."""
DISPROVED = ("Incorrect", "Cheated")


class WorkloadRow(Record):
    """One workload of a row."""

    workload: str
    latency_ms: float
    low_ms: float
    high_ms: float
    roofline_share: float | None
    baselines_ms: dict[str, float]
    """Median latency by baseline; `library` is the best `library:<call>`."""
    speedup: dict[str, float]
    """Baseline's median over the candidate's, by the same names."""


class Row(Record):
    """A candidate's place on a board."""

    candidate: str
    task: str
    task_version: str
    target: Target
    device: str
    judge_version: int
    status: str
    latency_ms: float
    speedup: dict[str, Interval | None]
    """Geometric mean over workloads; `eager`, `compile` and `library` always have a key, None where not measured."""
    roofline_share: float | None
    """Geometric mean over the workloads where it is known."""
    depth: int
    """Steps of the longest way back to a candidate without parents."""
    operator: Operator
    proposer: str
    note: str
    tunables: dict[str, int]
    parents: tuple[str, ...]
    confirmed: bool
    judged_at: str
    workloads: tuple[WorkloadRow, ...]


def rows(
    archive: Archive,
    task: str | None = None,
    target: Target | None = None,
    device: str | None = None,
    versions: Collection[str] | None = None,
) -> list[Row]:
    """The rows of every board that fits, board after board, each best first.

    `versions` are the task versions to keep; None keeps each task's most recently judged one.
    """
    judged = archive.judgements(task)
    newest = _newest_versions(judged)
    fitting = [
        (candidate, judgement)
        for candidate, judgement in judged
        if judgement.task_version in (newest.get(judgement.task, ()) if versions is None else versions)
        and target in (None, judgement.target)
        and device in (None, judgement.device)
    ]
    deep = depths(archive.edges())
    found = [row for board in _boards(fitting) for row in _board_rows(board, deep)]
    return sorted(found, key=_rank)


def _newest_versions(judged: Judged) -> dict[str, tuple[str]]:
    """By task; judged in order of time, so a task's last version is its newest. Further shapes have no board."""
    own = (judgement for _, judgement in judged if SHAPES not in judgement.task_version)
    return {judgement.task: (judgement.task_version,) for judgement in own}


def _boards(judged: Judged) -> Iterator[Judged]:
    ordered = sorted(judged, key=lambda pair: _board(pair[1]))
    return (list(group) for _, group in groupby(ordered, key=lambda pair: _board(pair[1])))


def _board(judgement: Judgement) -> tuple[str, str, str, str]:
    return judgement.task, judgement.target, judgement.device, judgement.task_version


def _board_rows(board: Judged, deep: dict[str, int]) -> Iterator[Row]:
    for candidate, judgement in standing(board):
        if isinstance(judgement.verdict, Passed):
            yield _row(candidate, judgement, judgement.verdict, deep.get(judgement.candidate, 0))


def standing(board: Judged) -> Iterator[tuple[Candidate, Judgement]]:
    """The candidates that have a place on a board, each with the judgement that gives it to them: always Passed.

    `board` are all judgements of one task, task version, target and device, in order of time.
    """
    newest_judge = max((judgement.judge_version for _, judgement in board), default=0)
    by_candidate: dict[str, Judged] = {}
    for candidate, judgement in board:
        if judgement.judge_version == newest_judge:
            by_candidate.setdefault(judgement.candidate, []).append((candidate, judgement))
    for judged in by_candidate.values():
        # In order of time: of equally trusted judgements, the first from behind is the newest.
        candidate, judgement = max(reversed(judged), key=lambda pair: _confirmed(pair[1]))
        disproved = any(other.verdict.status in DISPROVED for _, other in judged)
        if isinstance(judgement.verdict, Passed) and not disproved:
            yield candidate, judgement


def _confirmed(judgement: Judgement) -> bool:
    return isinstance(judgement.verdict, Passed) and judgement.verdict.confirmed


def _rank(row: Row) -> tuple[str, str, str, str, bool, float, float, str]:
    """Confirmed numbers first: the best of many single measurements is flattering."""
    eager = row.speedup["eager"]
    ratio = eager.ratio if eager else 0.0
    return row.task, row.target, row.device, row.task_version, not row.confirmed, -ratio, row.latency_ms, row.candidate


def _row(candidate: Candidate, judgement: Judgement, passed: Passed, depth: int) -> Row:
    return Row(
        candidate=judgement.candidate,
        status=passed.status,
        latency_ms=passed.latency_ms,
        speedup=dict.fromkeys(NAMED) | passed.speedup,
        roofline_share=_geometric_mean(timing.roofline_share for timing in passed.timings),
        depth=depth,
        confirmed=passed.confirmed,
        workloads=tuple(_workload(timing) for timing in passed.timings),
        **judgement.model_dump(include={"task", "task_version", "target", "device", "judge_version", "judged_at"}),
        **candidate.model_dump(include={"operator", "proposer", "note", "tunables", "parents"}),
    )


def _workload(timing: Timing) -> WorkloadRow:
    own = timing.candidate
    baselines = {name: measured.median_ms for name, measured in timing.baselines.items()}
    library = [ms for name, ms in baselines.items() if name.startswith("library:")]
    if library:
        baselines["library"] = min(library)
    return WorkloadRow(
        workload=timing.workload,
        latency_ms=own.median_ms,
        low_ms=own.low_ms,
        high_ms=own.high_ms,
        roofline_share=timing.roofline_share,
        baselines_ms=baselines,
        speedup={name: ms / own.median_ms for name, ms in baselines.items() if own.median_ms > 0},
    )


def _geometric_mean(shares: Iterable[float | None]) -> float | None:
    known = [share for share in shares if share is not None and share > 0]
    return math.exp(sum(map(math.log, known)) / len(known)) if known else None
