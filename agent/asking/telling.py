"""From an answer to a candidate on record, to its judgement, to words for whoever wrote it.

An answer is kept as an exchange of the ask's run before it is judged, so that a kernel waits, and is not lost, when the
judge fails or is on another machine. Words and figures say nothing of held-out workloads. Not covered: confirming
winners and composing them, which a run does with the kernel as a seed.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from agent import tasks
from agent.asking.choice import request_of
from agent.asking.device import at_hand
from agent.asking.replies import Answer
from agent.asking.setting import asking_runs, task_of
from agent.engineer.attempt import RECORDED_AS, mark, tunables_of
from agent.engineer.ideas import outcome
from agent.engineer.reply import Unusable, read_source
from agent.engineer.scores import score
from agent.models.endpoint import Reply, Usage
from agent.words import label
from archive import Archive, Ask, Exchange, Run, rows
from archive.records import canonical
from prompts.records import Exhibit
from prompts.words import verdict_words
from sandbox.contract import Candidate, Judgement, Passed, Record, Task
from sandbox.errors import BadInput, PlanError

NOBODY = "engineer"
"""The proposer where nobody says who wrote a kernel."""
LONGEST_NAME = 60


@dataclass(frozen=True)
class Waiting:
    """A kernel on record that is to be judged, and where it belongs."""

    candidate: Candidate
    run: Run
    task: Task
    ask: str = ""
    place: str = ""


class Told(Record):
    """What became of one answer."""

    place: str
    ask: str
    candidate: str | None
    status: str
    """A verdict's, `Refused` where no candidate was made of it, `Waiting` where it is not judged yet."""
    gain: str = ""
    """Over its parent: `1.12x over its parent`, `slower: 0.8x`."""
    rank: int | None = None
    """Its place on the leaderboard of task and device."""
    latency_ms: float | None = None
    speedup: dict[str, float] = {}
    """Baseline / kernel, geometric mean over workloads."""
    words: str
    """The verdict in Markdown, or in one line why the answer was refused."""
    next: str
    """What to do now."""


def refused(place: str, ask: str, reason: str) -> Told:
    """An answer that nothing can be made of."""
    return Told(
        place=place,
        ask=ask,
        candidate=None,
        status="Refused",
        words=reason,
        next="mend the reply and tell it again; nothing else is lost",
    )


# ---------------------------------------------------------------- from an answer to a candidate


def require_here(archive: Archive, answer: Answer) -> None:
    """BadInput where the answer's kernel is for a device that this machine is not."""
    run = archive.run(archive.ask(answer.ask).run)
    here = at_hand(run.target)
    if here is None or here.name != run.device:
        has = here.name if here else "no GPU"
        raise BadInput(
            f"the ask is for {run.device}, and this machine has {has}: with --no-judge the kernel is recorded, to be "
            "judged there by `warpsmith tell --pending`"
        )


def accept(archive: Archive, answer: Answer, where: str | None = None) -> Waiting:
    """The answer's kernel, on record. BadInput in one line where there is none, or one that is known.

    `where` is the path of the task on this machine, where it is not that of the ask.
    """
    ask = archive.ask(answer.ask)
    run = archive.run(ask.run)
    task = task_of(run, where)
    name = _proposer(answer.proposer)
    parents = [archive.candidate(parent) for parent in ask.parents]
    source = read_source(answer.text, task, parents[0].source if parents else None, "stop")
    try:
        if isinstance(source, Unusable):
            raise BadInput(source.reason)
        candidate = _candidate(ask, answer, task, source, parents, name)
        _require_new(archive, run, task, candidate)
    except BadInput:
        _record(archive, ask, answer, name, None)
        raise
    archive.add(candidate)
    _record(archive, ask, answer, name, candidate.id)
    return Waiting(candidate, run, task, ask.id, answer.place)


def _proposer(name: str) -> str:
    line = " ".join(name.split()) or NOBODY
    if len(line) > LONGEST_NAME:
        raise BadInput(f"the proposer's name has {len(line)} characters, at most {LONGEST_NAME} are taken")
    return line


def _candidate(ask: Ask, answer: Answer, task: Task, source: str, parents: Sequence[Candidate], name: str) -> Candidate:
    try:
        tunables = tunables_of(source, task, parents[0] if parents else None, answer.tunables)
    except PlanError as exc:
        raise BadInput(f"tunables: {exc}") from exc
    return Candidate(
        task=task.name,
        target=task.target,
        source=source,
        tunables=tunables,
        parents=ask.parents,
        operator=RECORDED_AS.get(ask.operator, "propose"),
        proposer=name,
        note=answer.change or ask.operator,
    )


def _require_new(archive: Archive, run: Run, task: Task, candidate: Candidate) -> None:
    """BadInput where the kernel was judged on the run's device, or waits to be, but for comments and blanks."""
    own = mark(candidate, task)
    for other, judgement in archive.judgements(task.name, task.target, run.device):
        if judgement.task_version == task.version and mark(other, task) == own:
            verdict = f"it is {judgement.verdict.status}"
            raise BadInput(f"{_twin(other)}, which was judged: {verdict}; `warpsmith show {other.id[:10]}`")
    for other in _told(archive, run):
        if mark(other, task) == own:
            raise BadInput(f"{_twin(other)}, which waits to be judged: `warpsmith tell --pending`")


def _twin(other: Candidate) -> str:
    return f"the same kernel, comments and blanks aside, as {other.id[:10]} by {other.proposer} ({other.note})"


def _told(archive: Archive, run: Run) -> list[Candidate]:
    ids = dict.fromkeys(exchange.candidate for exchange in archive.exchanges(run.id) if exchange.candidate)
    return [archive.candidate(name) for name in ids]


def _record(archive: Archive, ask: Ask, answer: Answer, name: str, candidate: str | None) -> None:
    reply = Reply(text=answer.text, finish="stop", usage=Usage(), seconds=0.0, model=name)
    archive.record_exchange(
        Exchange(
            run=ask.run,
            model=name,
            operator=ask.operator,
            candidate=candidate,
            request=request_of(ask.id),
            reply=canonical(reply.model_dump(mode="json")),
            seconds=0.0,
        )
    )


# ---------------------------------------------------------------- judging


def pending(archive: Archive, where: str | None = None) -> Iterator[Waiting | Told]:
    """The kernels that were told and have no verdict of this judge on their device; refused where the task is gone.

    `where` is the path of a task on this machine: only its kernels are meant.
    """
    for run in asking_runs(archive):
        waiting = [c for c in _told(archive, run) if not _judged(archive, run, c)]
        if not waiting or (where is not None and tasks.load(where, run.target).name != run.task):
            continue
        try:
            found = task_of(run, where)
        except BadInput as exc:
            yield from (refused(label(candidate), "", str(exc)) for candidate in waiting)
            continue
        yield from (Waiting(candidate, run, found, place=label(candidate)) for candidate in waiting)


def _judged(archive: Archive, run: Run, candidate: Candidate) -> bool:
    return archive.judged(candidate.id, run.task_version, run.target, run.device) is not None


def judge(archive: Archive, waiting: Waiting, verdict_on: Callable[[Task, Candidate], Judgement]) -> Told:
    """The verdict on a kernel, on record and in words."""
    judgement = verdict_on(waiting.task, waiting.candidate)
    archive.record(judgement, waiting.run.id)
    archive.update_run(waiting.run.id, seconds_spent=archive.run(waiting.run.id).seconds_spent + judgement.seconds)
    return told(archive, waiting, judgement)


def told(archive: Archive, waiting: Waiting, judgement: Judgement) -> Told:
    """A judgement for whoever wrote the kernel."""
    parent = _parent_score(archive, waiting)
    passed = judgement.verdict.status == "Passed"
    gain = outcome(judgement, parent) if passed and parent is not None else ""
    bare = shown(waiting.task, waiting.candidate, judgement, _next(waiting, judgement, gain))
    rank = _rank(archive, waiting) if passed else None
    return bare.model_copy(update={"place": waiting.place, "ask": waiting.ask, "gain": gain, "rank": rank})


def shown(task: Task, candidate: Candidate, judgement: Judgement, advice: str) -> Told:
    """A judgement of a kernel that nobody asked for."""
    passed = judgement.verdict if isinstance(judgement.verdict, Passed) else None
    return Told(
        place="",
        ask="",
        candidate=candidate.id,
        status=judgement.verdict.status,
        latency_ms=passed.latency_ms if passed else None,
        speedup={name: interval.ratio for name, interval in passed.speedup.items()} if passed else {},
        words=verdict_words(Exhibit(candidate=candidate, judgement=judgement), task),
        next=advice,
    )


def unjudged(waiting: Waiting) -> Told:
    """A kernel that is on record and waits for the machine that can judge it."""
    return Told(
        place=waiting.place,
        ask=waiting.ask,
        candidate=waiting.candidate.id,
        status="Waiting",
        words=f"On record, not judged yet: it is for {waiting.run.device}.",
        next="`warpsmith archive export FILE`; there `warpsmith archive import FILE` and `warpsmith tell --pending`",
    )


def _parent_score(archive: Archive, waiting: Waiting) -> float | None:
    if not waiting.candidate.parents:
        return None
    run = waiting.run
    judged = archive.judged(waiting.candidate.parents[0], run.task_version, run.target, run.device)
    return score(judged) if judged else None


def _rank(archive: Archive, waiting: Waiting) -> int | None:
    run = waiting.run
    board = rows(archive, run.task, run.target, run.device, versions=[run.task_version])
    return next((place for place, row in enumerate(board, 1) if row.candidate == waiting.candidate.id), None)


def _next(waiting: Waiting, judgement: Judgement, gain: str) -> str:
    verdict = judgement.verdict
    task = shlex.quote(str(waiting.run.config["task"]))
    ask = f"warpsmith ask --task {task} --target {waiting.run.target}"
    short = waiting.candidate.id[:10]
    if verdict.status == "Passed" and not gain.startswith("slower"):
        return (
            f"`{ask}` for the next kernel; `warpsmith show {short} --source > FILE` and "
            f"`warpsmith run --task {task} --seed-kernel FILE` tune it, measure it again and compose it"
        )
    if verdict.status == "Passed":
        return f"`{ask}` for another idea: this one is on the record of its lineage, so it is not tried again"
    if verdict.status == "Cheated":
        return f"read which rule it broke, and write a kernel that keeps it: `{ask} --operator repair --parent {short}`"
    return f"mend the cause, nothing else, and tell the same ask again; or `{ask} --operator repair --parent {short}`"
