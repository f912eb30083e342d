"""What a coding agent can ask of Warpsmith while it works: one method for each tool, from plain values to records.

Asks and the archive answer at once; kernels are judged one after another by a thread of their own. Errors are those of
the command line. Not covered: the protocol (server).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from agent import tasks
from agent.asking import asking, device, document, lessons, setting, telling
from agent.asking.bench import Bench
from agent.asking.lessons import Lesson
from agent.asking.replies import Unreadable, answer_of
from agent.asking.setting import Setting
from agent.asking.telling import Told
from agent.config import RunConfig
from agent.engineer.records import Context, Exhibit, Operator
from agent.engineer.reply import source_fault
from archive import Archive, rows
from prompts.render import render_code
from prompts.words import verdict_words
from sandbox import plan
from sandbox.contract import Candidate, Record, Target, Task
from sandbox.errors import BadInput

AGENT = "agent"
"""The proposer where a tool is not told one."""


class TaskLine(Record):
    name: str
    summary: str
    targets: tuple[Target, ...]


class TaskPage(Record):
    """A task as an engineer needs it; workloads that are held out are in none of it."""

    name: str
    summary: str
    target: Target
    device: str
    prototype: str
    workloads: tuple[str, ...]
    rules: str
    """In Markdown: the contract, how it is judged, what is known of the device, the reference."""


class Place(Record):
    """A row of the leaderboard."""

    place: int
    candidate: str
    confirmed: bool
    latency_ms: float
    speedup: dict[str, float]
    roofline_share: float | None
    depth: int
    proposer: str
    change: str


class CandidatePage(Record):
    candidate: str
    task: str
    target: Target
    operator: str
    proposer: str
    change: str
    parents: tuple[str, ...]
    tunables: dict[str, int]
    verdict: str
    """In Markdown: the last one on the device."""
    source: str


@dataclass(frozen=True)
class Shop:
    """What a service works with."""

    archive: Archive
    config: RunConfig
    device: str | None
    """Name of the device that kernels are for; None is the one at hand."""
    say: Callable[[str], None]


class Service:
    """A context manager. Safe to call from any thread."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        # One thread for as long as the service lives: workers end with the thread that started them.
        self._judging = ThreadPoolExecutor(1, thread_name_prefix="judge")
        self._bench = Bench(shop.config.sandbox, shop.say)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._judging.submit(self._bench.close)
        self._judging.shutdown()

    # ------------------------------------------------------------ reading

    def list_tasks(self) -> list[TaskLine]:
        return [TaskLine(name=t.name, summary=t.summary, targets=tuple(t.workloads)) for t in tasks.overview()]

    def show_task(self, task: str) -> TaskPage:
        found = self._setting(task)
        blank = Context(task=found.task, device=found.device, operator="translate", parents=())
        return TaskPage(
            device=found.device.name,
            prototype=asking.declaration(found),
            workloads=tuple(workload.name for workload in found.task.workloads),
            rules=render_code(blank, found.config.prompts)[0].content,
            **found.task.model_dump(include={"name", "summary", "target"}),
        )

    def leaderboard(self, task: str, limit: int) -> list[Place]:
        found = self._setting(task)
        board = rows(
            self.shop.archive, found.task.name, found.task.target, found.device.name, versions=[found.task.version]
        )
        return [
            Place(
                place=place,
                speedup={name: interval.ratio for name, interval in row.speedup.items() if interval},
                change=row.note or row.operator,
                **row.model_dump(
                    include={"candidate", "confirmed", "latency_ms", "roofline_share", "depth", "proposer"}
                ),
            )
            for place, row in enumerate(board[:limit], start=1)
        ]

    def lessons(self, task: str, candidate: str | None) -> list[Lesson]:
        found = self._setting(task)
        judged = setting.history(found)
        if candidate is None:
            return lessons.of_all(judged)
        line = self.shop.archive.candidate(candidate)
        return lessons.of_lineage(judged, [line.id], self.shop.archive.edges())

    def show_candidate(self, task: str, candidate: str) -> CandidatePage:
        found, kernel = self._setting(task), self.shop.archive.candidate(candidate)
        last = {c.id: judgement for c, judgement in setting.history(found)}.get(kernel.id)
        return CandidatePage(
            candidate=kernel.id,
            change=kernel.note,
            verdict=verdict_words(Exhibit(candidate=kernel, judgement=last), found.task),
            **kernel.model_dump(include={"task", "target", "operator", "proposer", "parents", "tunables", "source"}),
        )

    # ------------------------------------------------------------ asking and judging

    def ask(self, task: str, operator: Operator | None, parents: Sequence[str], count: int, rules: bool) -> str:
        """The asks as one Markdown document."""
        found = self._setting(task)
        given = [self.shop.archive.candidate(parent) for parent in parents]
        return document.markdown(asking.make(found, count, operator, given), by_tool=True, rules=rules)

    def judge(self, task: str, source: str, tunables: dict[str, int]) -> Future[Told]:
        """A verdict that is not recorded."""
        found = self._setting(task)
        here = device.at_hand(found.task.target)
        if here is None or here.name != found.device.name:
            raise BadInput(f"this machine is not {found.device.name}: tell the kernel, to be judged there")
        candidate = _trial(found.task, source, tunables)

        def work() -> Told:
            judgement = self._bench.judge(found.task, candidate)
            advice = "not recorded: `tell` it once it is what you want to hand in"
            return telling.shown(found.task, candidate, judgement, advice)

        return self._judging.submit(work)

    def tell(self, given: dict[str, Any]) -> Future[Told]:
        """The verdict on an answer of these keys, which is on record before this returns.

        At once where it is for another machine.
        """
        answer = answer_of("", given)
        if isinstance(answer, Unreadable):
            raise BadInput(answer.reason)
        waiting = telling.accept(self.shop.archive, answer)
        here = device.at_hand(waiting.run.target)
        if here is None or here.name != waiting.run.device:
            settled: Future[Told] = Future()
            settled.set_result(telling.unjudged(waiting))
            return settled
        return self._judging.submit(telling.judge, self.shop.archive, waiting, self._bench.judge)

    def _setting(self, task: str) -> Setting:
        config = self.shop.config.model_copy(update={"task": task})
        meant, _ = device.choose(self.shop.archive, task, config.target, self.shop.device)
        return setting.setting_of(self.shop.archive, config, meant)


def _trial(task: Task, source: str, tunables: dict[str, int]) -> Candidate:
    """A kernel on trial; BadInput where it cannot be one."""
    if fault := source_fault(source, task):
        raise BadInput(fault)
    return Candidate(
        task=task.name,
        target=task.target,
        source=source,
        tunables=plan.settle(plan.parse(source, task), tunables),
        operator="import",
        proposer=AGENT,
    )
