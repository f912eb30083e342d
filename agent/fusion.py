"""Fusing the parts of a task: the best kernel of each part is shown to a model, which writes one kernel for all.

What it wrote is a candidate like any other, and beside that it must be measurably faster than the unfused pair, those
best kernels one after the other (pair); else it is dropped: it stays on record, and no workload can be won by it.
Not covered: asking the model (engineer), and pairs other than that of the best kernels that go together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import TYPE_CHECKING, Protocol

from agent import pair, parts
from agent.pair import NoPair
from agent.parts import Piece
from archive import Archive, rows
from sandbox.contract import Against, Candidate, Device, Judgement, Passed, Record, Task
from sandbox.trial import Rejected

if TYPE_CHECKING:
    from sandbox.judge import Duel

TRIED = 20
"""Kernels of a part that are tried, from its best on, until some go into one file."""
PASSED_ON = ("repair", "tune")
"""Operators that keep a fused kernel what it is."""


class Duelling(Protocol):
    """What weighing needs of sandbox.judge.Judge."""

    def duel(self, task: Task, challenger: Candidate, champion: Candidate) -> Duel: ...


class Elite(Record):
    """One of the best kernels of a part."""

    task: Task
    candidate: Candidate
    judgement: Judgement


@dataclass(frozen=True)
class Fusion:
    """A task of several parts, each with a kernel on record."""

    elites: tuple[Elite, ...]
    pair: Candidate
    """Those kernels one after the other."""
    glue: tuple[str, ...]
    """What lies between them, in words."""


def prepared(task: Task, archive: Archive, device: Device) -> Fusion | str:
    """What there is to fuse; in a sentence why there is nothing, empty where the task has no parts."""
    chain = parts.read(task)
    if chain is None:
        return ""
    found = [list(islice(_elites(piece, archive, device), TRIED)) for piece in chain.pieces]
    for piece, elites in zip(chain.pieces, found, strict=True):
        if not elites:
            return (
                f"nothing is fused: the archive has no {piece.task.name} kernel that passed on {device.name};"
                " run that task first"
            )
    reasons = []
    for places in sorted(product(*(range(len(elites)) for elites in found)), key=sum):
        chosen = tuple(elites[place] for elites, place in zip(found, places, strict=True))
        try:
            unfused = pair.unfused(task, chain, [elite.candidate for elite in chosen])
        except NoPair as none:
            reasons.append(none)
        else:
            return Fusion(chosen, unfused, tuple(pair.glue_words(task, chain)))
    return f"nothing is fused: {reasons[0]}"


def _elites(piece: Piece, archive: Archive, device: Device) -> Iterator[Elite]:
    """The part's leaderboard from the first on, as far as they are kernels of the contract."""
    own = piece.task
    for row in rows(archive, own.name, own.target, device.name, versions=[own.version]):
        candidate = archive.candidate(row.candidate)
        judgement = archive.judged(candidate.id, own.version, own.target, device.name)
        if candidate.form == "kernel" and judgement is not None and isinstance(judgement.verdict, Passed):
            yield Elite(task=own, candidate=candidate, judgement=judgement)


# ---------------------------------------------------------------- weighing


def weighed(judge: Duelling, task: Task, candidate: Candidate, judgement: Judgement, archive: Archive) -> Judgement:
    """The judgement; of a fused kernel that passed, with how it stands against its parts one after the other."""
    verdict = judgement.verdict
    if not isinstance(verdict, Passed):
        return judgement
    champion = pair_of(task, candidate, archive)
    if champion is None:
        return judgement
    against = _against(judge, task, candidate, champion)
    return judgement.model_copy(update={"verdict": verdict.model_copy(update={"against": against})})


def _against(judge: Duelling, task: Task, candidate: Candidate, champion: Candidate) -> Against:
    try:
        duel = judge.duel(task, candidate, champion)
    except Rejected:
        # Who cannot finish a duel has not won it.
        return Against(pair=champion.id, speedup=None, faster=False)
    return Against(pair=champion.id, speedup=duel.interval, faster=duel.faster)


def pair_of(task: Task, candidate: Candidate, archive: Archive) -> Candidate | None:
    """The unfused pair that a fused kernel, or one that was repaired or tuned from it, has to beat; None for others."""
    while candidate.operator in PASSED_ON and candidate.parents:
        candidate = archive.candidate(candidate.parents[0])
    fused = candidate.operator == "compose" and candidate.proposer != pair.PROPOSER
    chain = parts.read(task) if fused else None
    if chain is None or len(candidate.parents) != len(chain.pieces):
        return None
    return pair.unfused(task, chain, [archive.candidate(parent) for parent in candidate.parents])


def kept(judgement: Judgement) -> bool:
    """Whether a candidate may win: it is no fused kernel, or it is faster than its parts one after the other."""
    verdict = judgement.verdict
    return not isinstance(verdict, Passed) or verdict.against is None or verdict.against.faster


def passed(candidate: Candidate, judged: Sequence[tuple[Candidate, Judgement]]) -> bool:
    """Whether a candidate is among the judged, and passed."""
    return any(other.id == candidate.id and isinstance(j.verdict, Passed) for other, j in judged)
