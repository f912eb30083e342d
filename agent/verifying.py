"""Judges the winners of an archive again, on this machine: whether what was found elsewhere holds here.

Not covered: which kernels are an archive's winners (exporting), and kernels that won nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from agent import fitness, words
from agent.compose import Part, Winner
from agent.exporting import Chosen
from archive import Archive
from sandbox import plan
from sandbox.contract import Interval, Passed, Record
from sandbox.judge import Judge


class Verified(Record):
    """A winner, what it was found to be, and what it is here."""

    task: str
    candidate: str
    note: str
    workloads: tuple[str, ...]
    """What it had won."""
    device: str
    """Where it had won."""
    speedup: dict[str, Interval]
    """There, over each baseline: geometric mean over all workloads."""
    here: str
    status: str = "Unsuitable"
    """The verdict here; Unsuitable where this device lacks what the kernel asks for."""
    reason: str = ""
    speedup_here: dict[str, Interval] = {}


def holds(findings: Sequence[Verified]) -> bool:
    """Whether all that this device can run has passed, and that something has."""
    statuses = {finding.status for finding in findings}
    return "Passed" in statuses and statuses <= {"Passed", "Unsuitable"}


def verify(archive: Archive, chosen: Chosen, judge: Judge) -> Iterator[Verified]:
    """One finding for each kernel that won anything; every judgement is recorded in the archive."""
    for part in chosen.parts:
        won = sorted(part.winners.items(), key=lambda item: item[1].candidate.id)
        for _, group in groupby(won, key=lambda item: item[1].candidate.id):
            workloads, winners = zip(*group, strict=True)
            yield _judged(archive, part, winners[0], workloads, judge)


def _judged(archive: Archive, part: Part, winner: Winner, workloads: tuple[str, ...], judge: Judge) -> Verified:
    task, candidate, device = part.task, winner.candidate, judge.device
    before = winner.judgement.verdict if winner.judgement else None
    finding = Verified(
        task=task.name,
        candidate=candidate.id,
        note=candidate.note,
        workloads=workloads,
        device=part.device.name,
        speedup=before.speedup if isinstance(before, Passed) else {},
        here=device.name,
    )
    if misfit := fitness.misfit(task, plan.parse(candidate.source, task), candidate.tunables, device):
        return finding.model_copy(update={"reason": misfit})
    judgement = judge.judge(task, candidate)
    archive.record(judgement)
    speedup = judgement.verdict.speedup if isinstance(judgement.verdict, Passed) else {}
    return finding.model_copy(
        update={"status": judgement.verdict.status, "reason": words.reason(judgement), "speedup_here": speedup}
    )
