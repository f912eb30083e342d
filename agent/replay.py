"""A recorded run again, without a key: its replies are read anew, its candidates judged anew, both beside the record.

The replies are read candidate by candidate, so that today's verdicts, which differ by noise, cannot lead the search
elsewhere. Not covered: whether the search would choose the same parents again, and replies that no candidate came of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from agent.engineer.attempt import tunables_of
from agent.engineer.memory import PLANNING
from agent.engineer.reply import Unusable, read_source
from agent.models.endpoint import Reply
from agent.steps import Event, Judged, JudgeLike, Judging, Settled, latest, spent, trajectory
from archive import Archive, Exchange, Run
from sandbox.contract import Candidate, Judgement, Passed, Record, Task, candidate_id

NOTE = "replay of "
"""Before the id of the run that was replayed, in the note of the run that holds the new judgements."""


class Read(Record):
    """A recorded reply, read as it would be read today."""

    candidate: str
    """What came of it then."""
    model: str
    found: str | None
    """The candidate that comes of it now."""
    reason: str = ""
    """Why none does."""

    @property
    def same(self) -> bool:
        return self.found == self.candidate


class Compared(Record):
    """A candidate with what was said of it then and now."""

    candidate: Candidate
    then: Judgement
    now: Judgement

    @property
    def same(self) -> bool:
        """Whether the verdicts are of one kind; speeds are for the reader to compare."""
        return self.then.verdict.status == self.now.verdict.status


class Replayed(Record):
    run: str
    again: str | None
    """The run that holds the new judgements; None where nothing was judged."""
    task: str
    device_then: str
    device_now: str
    read: tuple[Read, ...]
    compared: tuple[Compared, ...]

    @property
    def same(self) -> bool:
        return all(read.same for read in self.read) and all(each.same for each in self.compared)


# ---------------------------------------------------------------- replies


def read_again(archive: Archive, run_id: str, task: Task) -> Iterator[Read]:
    """Every candidate that came of a reply, in the order in which they were written."""
    made: dict[str, Exchange] = {}
    for exchange in archive.exchanges(run_id):
        # The last request for code is the one whose reply was used.
        if exchange.candidate and exchange.reply and not exchange.operator.startswith(PLANNING):
            made[exchange.candidate] = exchange
    for candidate, exchange in made.items():
        yield _read(archive, archive.candidate(candidate), exchange, task)


def _read(archive: Archive, candidate: Candidate, exchange: Exchange, task: Task) -> Read:
    reply = Reply.model_validate_json(exchange.reply or "")
    # Of the kernels of parts a fused one takes over no tunable and no line.
    kept = candidate.parents if candidate.operator != "compose" else ()
    parent = archive.candidate(kept[0]) if kept else None
    source = read_source(reply.text, task, parent.source if parent else None, reply.finish)
    if isinstance(source, Unusable):
        return Read(candidate=candidate.id, model=exchange.model, found=None, reason=source.reason)
    found = candidate_id(source, task.target, tunables_of(source, task, parent))
    return Read(candidate=candidate.id, model=exchange.model, found=found)


# ---------------------------------------------------------------- verdicts


def judge_again(
    archive: Archive, run: Run, again: str, task: Task, judge: JudgeLike, report: Callable[[Event], None]
) -> list[Compared]:
    """Judge what the run judged, in its order, and confirm its winners; all of it goes on record under `again`."""
    then = trajectory(archive, run.id)
    now = {candidate.id: _again(archive, again, task, judge, candidate, report) for candidate, _ in then}
    winners = [(c, j) for c, j in latest(archive, run.id) if c.id in run.winners.values()]
    confirmed = [
        Compared(candidate=c, then=j, now=_again(archive, again, task, judge, c, report, confirming=True))
        for c, j in winners
        if isinstance(now[c.id].verdict, Passed)
    ]
    return [*_compared(then, now), *confirmed]


def _compared(then: Sequence[Judged], now: dict[str, Judgement]) -> list[Compared]:
    return [Compared(candidate=candidate, then=judgement, now=now[candidate.id]) for candidate, judgement in then]


def _again(
    archive: Archive,
    again: str,
    task: Task,
    judge: JudgeLike,
    candidate: Candidate,
    report: Callable[[Event], None],
    confirming: bool = False,
) -> Judgement:
    report(Judging(candidate, confirming))
    judgement = judge.confirm(task, candidate) if confirming else judge.judge(task, candidate)
    archive.record(judgement, again)
    report(Settled(candidate, judgement, reused=False, confirming=confirming, spent=spent(archive, again)))
    return judgement
