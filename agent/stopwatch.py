"""Where the time of a judgement goes: every request to the worker and to the referee, by what was asked.

One candidate at a time, so that stages follow each other and add up. Not covered: the rate with several candidates
under way, which overlap their builds with another's timing (Judge.judge_all).
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from sandbox.contract import Candidate, Device, Record, Task
from sandbox.judge import Judge
from sandbox.launch import Launcher, Order, Worker
from sandbox.toolchain import Toolchain

Tally = dict[str, float]

NAMES = {
    "worker attach": "worker: map the arena",
    "worker load": "worker: load the code",
    "worker bind": "worker: prepare calls",
    "worker call": "worker: calls to be checked",
    "worker time": "worker: timed calls of the candidate",
    "worker freeze": "worker: freeze",
    "worker thaw": "worker: thaw",
    "referee refresh": "referee: fresh inputs, poison, expected outputs",
    "referee compare": "referee: compare",
    "referee time": "referee: timed calls of the baselines",
    "referee lay": "referee: lay out the arena",
}


class Stage(Record):
    what: str
    seconds: float
    """Per candidate."""
    share: float


class Watched(Record):
    """One judgement under the stopwatch."""

    candidate: str
    verdict: str
    seconds: float
    stages: dict[str, float]


class Times(Record):
    """Where the time goes, over all judgements."""

    task: str
    device: str
    sandbox: str
    opened_s: float
    """Once for the task: inputs, expected outputs, baselines."""
    judgements: tuple[Watched, ...]
    stages: tuple[Stage, ...]
    """Longest first."""

    @property
    def seconds(self) -> float:
        """Mean for one candidate."""
        return sum(judged.seconds for judged in self.judgements) / len(self.judgements)


class WatchedPeer:
    """A peer whose requests are timed."""

    def __init__(self, peer: Any, who: str, tally: Tally) -> None:
        self._peer, self._who, self._tally = peer, who, tally

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._peer, name)
        return self._timed(name, found) if name in ("ask", "freeze", "thaw") else found

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **fields: Any) -> Any:
            asked = str(arguments[0]) if name == "ask" else name
            started = time.perf_counter()
            try:
                return method(*arguments, **fields)
            finally:
                self._tally[f"{self._who} {asked}"] += time.perf_counter() - started

        return timed


class WatchedLauncher:
    """A launcher whose workers are timed."""

    def __init__(self, launcher: Launcher, tally: Tally) -> None:
        self._launcher, self._tally, self.name = launcher, tally, launcher.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._launcher, name)

    def worker(self, order: Order) -> AbstractContextManager[Worker]:
        return _WatchedWorker(self._launcher.worker(order), self._tally)


class _WatchedWorker:
    """Entered when the judge enters it; a worker that is started ahead of time goes on starting meanwhile."""

    def __init__(self, worker: AbstractContextManager[Worker], tally: Tally) -> None:
        self._worker, self._tally = worker, tally

    def __enter__(self) -> Any:
        worker = self._worker.__enter__()
        self.peer = WatchedPeer(worker.peer, "worker", self._tally)
        return self

    def __exit__(self, *exc: Any) -> None:
        self._worker.__exit__(*exc)


def watch(task: Task, candidates: list[Candidate], device: Device, launcher: Launcher, repeats: int) -> Times:
    """Judge every candidate `repeats` times, each time another text, so that no cache answers."""
    tally: Tally = defaultdict(float)
    with _opened(task, device, WatchedLauncher(launcher, tally), tally) as (judge, opened_s):
        judged = [
            _judged(judge, task, candidate, repeat, tally) for repeat in range(repeats) for candidate in candidates
        ]
    return Times(
        task=task.name,
        device=device.name,
        sandbox=launcher.name,
        opened_s=opened_s,
        judgements=tuple(judged),
        stages=tuple(_stages(judged)),
    )


@contextmanager
def _opened(task: Task, device: Device, launcher: Any, tally: Tally) -> Iterator[tuple[Judge, float]]:
    with (
        tempfile.TemporaryDirectory() as cache,
        Toolchain(Path(cache), launcher=launcher) as toolchain,
        Judge(device, toolchain, launcher) as judge,
    ):
        started = time.perf_counter()
        room: Any = judge.open(task)
        room.referee = WatchedPeer(room.referee, "referee", tally)
        yield judge, time.perf_counter() - started


def _judged(judge: Judge, task: Task, candidate: Candidate, repeat: int, tally: Tally) -> Watched:
    tally.clear()
    text = f"{candidate.source}\n// {repeat} {time.time_ns()}\n"
    judgement = judge.judge(task, candidate.model_copy(update={"source": text}))
    named = {NAMES.get(asked, asked.replace(" ", ": ", 1)): seconds for asked, seconds in tally.items()}
    own = {f"judge: {name}": judgement.stages[name] for name in ("build", "start") if name in judgement.stages}
    rest = max(0.0, judgement.seconds - sum(named.values()) - sum(own.values()))
    return Watched(
        candidate=candidate.note,
        verdict=judgement.verdict.status,
        seconds=judgement.seconds,
        stages={**own, **named, "judge: the rest": rest},
    )


def _stages(judged: list[Watched]) -> list[Stage]:
    whole = sum(judgement.seconds for judgement in judged)
    names = dict.fromkeys(name for judgement in judged for name in judgement.stages)
    sums = {name: sum(judgement.stages.get(name, 0.0) for judgement in judged) for name in names}
    stages = [Stage(what=name, seconds=total / len(judged), share=total / whole) for name, total in sums.items()]
    return sorted(stages, key=lambda stage: -stage.seconds)
