"""The trusted side: from a candidate's text to its verdict.

build -> check, small shapes first -> time the search shapes -> verdict. Inputs, expected outputs and comparison live in
the referee (courtroom.py), the candidate in a worker that sees bytes and nothing else (trial.py, launch.py).
Not covered: what each rule defends and what stays open (docs/judge.md).
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import math
import os
import queue
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from sandbox import authorship, statistics
from sandbox.contract import (
    Artifact,
    BuildFailed,
    Candidate,
    Cheated,
    Check,
    Device,
    Interval,
    Judgement,
    KernelResources,
    Passed,
    SanitizerReport,
    Task,
    Timing,
    Verdict,
    Workload,
)
from sandbox.courtroom import Block, Courtroom, Drawn, Evidence
from sandbox.duplicates import compiled, fingerprint
from sandbox.errors import PlanError
from sandbox.inspection import inspect
from sandbox.launch import Launcher, Order, Worker
from sandbox.local import LocalLauncher
from sandbox.plan import Plan, allowed, macros, parse, settle
from sandbox.toolchain import CompileFailed, Toolchain
from sandbox.trial import Build, Rejected, Rounds, Trial

Outcome = TypeVar("Outcome")

SEARCH_ROUNDS = {"cpu": 5, "cuda": 3}
"""Fewer where device events decide: they stray by a fraction of what a host's clock does."""
CONFIRM_ROUNDS = 12
CONFIRM_PROCESSES = {"cpu": 12, "cuda": 4}
"""Over how many fresh workers the rounds of a confirmation are spread; a torch source, slow to build, gets one."""
DUEL_ROUNDS = {"cpu": 24, "cuda": 12}
TIMED_AGAIN = 2
"""How often timings are taken again that somebody else, or a throttled GPU, has disturbed."""
FAR_AHEAD = 3.0
"""Who is as many times faster than every baseline and every kernel before it is looked at a second time."""
OVERHEAD_MS = 0.05
"""Of a call through PyTorch, generously: to be without it is no wonder."""
_WORKER_BASE_BYTES = 4 << 30


@dataclass(frozen=True)
class Duel:
    """Two candidates side by side."""

    interval: Interval
    """Champion's latency over the challenger's, geometric mean over workloads: above 1 the challenger is faster."""
    faster: bool
    """Whether the whole interval lies beyond the gate."""
    rounds: int
    """How many it took: more where the first ones left it open."""


@dataclass
class Prepared:
    """A candidate on its way: what could be done without the GPU, or the verdict that it met before."""

    candidate: Candidate
    submitted: float
    stages: dict[str, float]
    build: Build | None = None
    worker: AbstractContextManager[Worker] | None = None
    ready: Worker | None = None
    marks: tuple[str, ...] = ()
    """What it shares with its twins."""
    twin: Judgement | None = None
    """Of a candidate that is the same to a compiler, or of which it makes the same code."""
    verdict: Verdict | None = None


class Judge:
    """Judges candidates on one device; keeps one task open at a time. Use as a context manager."""

    def __init__(
        self,
        device: Device,
        toolchain: Toolchain,
        launcher: Launcher | None = None,
        call_timeout_s: float = 30.0,
        reuse: bool = False,
    ) -> None:
        """`call_timeout_s` bounds one call of a candidate, and one block of timed calls.

        With `reuse`, a candidate of the same code as an earlier one, before or after compiling, gets its verdict.
        """
        self.reuse = reuse
        self.device, self.toolchain, self.call_timeout_s = device, toolchain, call_timeout_s
        self.launcher: Launcher = launcher or LocalLauncher()
        # Never seeded from the outside: what a run can replay, a candidate could have known.
        self.rng = random.Random(secrets.randbits(128))
        self.room: Courtroom | None = None
        self.judged: dict[str, Judgement] = {}
        """By mark, what has been judged for the open task."""
        self.spares: deque[AbstractContextManager[Worker]] = deque()
        self._spares_lock = threading.Lock()
        self.quiet = Quiet(device.target == "cpu")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self.spares:
            self.spares.pop().__exit__(None, None, None)
        if self.room is not None:
            self.room.__exit__()
            self.room = None
            self.judged.clear()

    def open(self, task: Task) -> Courtroom:
        """The courtroom for `task`: inputs drawn, expected outputs computed, baselines tried. Slow the first time."""
        if self.room is not None and self.room.task == task:
            return self.room
        self.__exit__()
        self.room = Courtroom(task, self.device, self.rng).__enter__()
        if self.device.target == "cpu" and self.device.bandwidth_gbs is None:
            self.device = self.device.model_copy(update=self._peaks(self.room))
        return self.room

    def _peaks(self, room: Courtroom) -> dict[str, Any]:
        source = (Path(__file__).parent / "referee" / "peaks.cpp").read_text()
        probe = self.toolchain.build(source, "cpu", {}, self.device.arch)
        with probe.path.open("rb") as library:
            peaks = room.ask("peaks", descriptors=[library.fileno()], copy_bytes=256 << 20)
        return {"bandwidth_gbs": peaks["bandwidth_gbs"], "tflops": {"float32": peaks["float32_tflops"]}}

    # ------------------------------------------------------------ verdicts

    def judge(self, task: Task, candidate: Candidate) -> Judgement:
        """The verdict on one candidate. Its own faults are verdicts; ours are Infrastructure errors."""
        room = self.open(task)
        prepared = self._prepare(room, candidate, time.perf_counter())
        return self._decide(room, prepared, room.evidence, SEARCH_ROUNDS[self.device.target], confirmed=False)

    def confirm(self, task: Task, candidate: Candidate) -> Judgement:
        """Judge a winner again: inputs nobody has seen, more rounds, several workers."""
        room = self.open(task)
        fresh = room.draw()
        try:
            prepared = self._prepare(room, candidate, time.perf_counter(), confirming=True)
            return self._decide(room, prepared, fresh, CONFIRM_ROUNDS, confirmed=True)
        finally:
            room.release(fresh)

    def judge_all(self, task: Task, candidates: Iterable[Candidate], ahead: int | None = None) -> Iterator[Judgement]:
        """Verdicts as they come: while one candidate has the device, `ahead` others are built and get their workers."""
        room = self.open(task)
        ahead = ahead or max(1, min(2, (os.cpu_count() or 2) // 2))
        done: queue.SimpleQueue[Judgement | Exception] = queue.SimpleQueue()
        waiting, on_its_way = iter(candidates), 0

        def decide(prepared: Prepared) -> None:
            rounds = SEARCH_ROUNDS[self.device.target]
            done.put(
                _outcome(lambda: self._decide(room, prepared, room.evidence, rounds, confirmed=False, later=end_later))
            )

        def end_later(prepared: Prepared) -> None:
            ending.submit(end, prepared)

        def end(prepared: Prepared) -> None:
            failed = _outcome(lambda: _discard(prepared))
            if isinstance(failed, Exception):
                done.put(failed)

        def prepare(candidate: Candidate, submitted: float) -> None:
            prepared = _outcome(lambda: self._prepare(room, candidate, submitted, ahead))
            if isinstance(prepared, Exception):
                done.put(prepared)
            elif prepared.verdict is not None:
                decide(prepared)
            else:
                in_turn.submit(decide, prepared)

        with (
            ThreadPoolExecutor(1) as ending,
            ThreadPoolExecutor(1) as in_turn,
            ThreadPoolExecutor(ahead + 1) as beforehand,
        ):
            while True:
                for candidate in itertools.islice(waiting, ahead + 1 - on_its_way):
                    beforehand.submit(prepare, candidate, time.perf_counter())
                    on_its_way += 1
                if not on_its_way:
                    break
                found = done.get()
                on_its_way -= 1
                if isinstance(found, Exception):
                    raise found
                yield found
        # Of workers that ended after the last verdict.
        if not done.empty():
            raise done.get()  # type: ignore[misc]  # With nothing on its way, what is left failed.

    def _decide(
        self,
        room: Courtroom,
        prepared: Prepared,
        evidence: Evidence,
        rounds: int,
        confirmed: bool,
        later: Callable[[Prepared], None] | None = None,
    ) -> Judgement:
        """The verdict. A worker without native code of its candidate is idle by now, and may be ended `later`."""
        verdict = prepared.verdict
        try:
            if verdict is None:
                with self.quiet.alone():
                    verdict = self._try(room, prepared, evidence, rounds, confirmed)
        except Rejected as rejection:
            verdict = rejection.verdict
        finally:
            if later and prepared.build and not prepared.build.native:
                later(prepared)
            else:
                _discard(prepared)
        judgement = Judgement(
            candidate=prepared.candidate.id,
            duplicate_of=prepared.twin.candidate if prepared.twin else None,
            task=room.task.name,
            task_version=room.task.version,
            target=room.task.target,
            device=self.device.name,
            verdict=verdict,
            seconds=time.perf_counter() - prepared.submitted,
            stages=prepared.stages,
            judged_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            versions=room.versions | self.toolchain.versions() | {"sandbox": self.launcher.name},
        )
        if not confirmed:
            for mark in prepared.marks:
                self.judged.setdefault(mark, judgement)
        return judgement

    # ------------------------------------------------------------ before the device is needed

    def _prepare(
        self, room: Courtroom, candidate: Candidate, submitted: float, ahead: int = 1, confirming: bool = False
    ) -> Prepared:
        """Build, and have a worker ready."""
        prepared = Prepared(candidate, submitted, {})
        try:
            with _stage(prepared.stages, "build"), self.quiet.shared():
                prepared.build = build = self.build(room.task, candidate)
        except Rejected as rejection:
            prepared.verdict = rejection.verdict
            return prepared
        prepared.marks = self._marks(room.task, build)
        if self.reuse and not confirming:
            prepared.twin = next((self.judged[mark] for mark in prepared.marks if mark in self.judged), None)
        if prepared.twin is not None:
            prepared.verdict = prepared.twin.verdict
            return prepared
        with _stage(prepared.stages, "start"):
            prepared.worker = self._worker(room, candidate, ahead)
            prepared.ready = prepared.worker.__enter__()
        return prepared

    def _marks(self, task: Task, build: Build) -> tuple[str, ...]:
        tunables = dict(build.tunables)
        text = fingerprint(build.candidate, build.plan, tunables)
        if build.candidate.form != "kernel":
            return (text,)
        code = compiled(task, build.plan, tunables, build.artifacts, self.device)
        return (text, code) if code else (text,)

    def _worker(self, room: Courtroom, candidate: Candidate, ahead: int) -> AbstractContextManager[Worker]:
        """A worker that nobody has used; on cuda, where a context takes seconds, the next ones start meanwhile."""
        kind: Literal["kernel", "torch"] = "kernel" if candidate.form == "kernel" else "torch"
        order = Order(device=self.device, memory_bytes=_memory_bytes(room), kind=kind)
        if self.device.target == "cpu" or kind == "torch":
            return self.launcher.worker(order)
        with self._spares_lock:
            worker = self.spares.popleft() if self.spares else self.launcher.worker(order)
            while len(self.spares) < ahead:
                self.spares.append(self.launcher.worker(order))
        return worker

    def build(self, task: Task, candidate: Candidate) -> Build:
        """Compile every specialisation the task's workloads need; Rejected with BuildFailed where one does not."""
        workloads = (*task.workloads, *task.held_out)
        if candidate.form != "kernel":
            if hidden := authorship.silent_fallback(candidate):
                raise Rejected(Cheated(rule="silent fallback", evidence=hidden))
            artifact = self.toolchain.text(candidate.source)
            return Build(task, candidate, Plan(), {}, {workload.name: artifact for workload in workloads})
        try:
            plan = parse(candidate.source, task)
            tunables = settle(plan, candidate.tunables)
            if not allowed(plan, task, tunables, self.device):
                raise PlanError(f"tunables {tunables} break a tune-if constraint on {self.device.name}")
            wanted = {workload.name: macros(task, plan, workload, tunables) for workload in workloads}
            artifacts = self._specialisations(candidate.source, task, list(wanted.values()))
        except PlanError as exc:
            raise Rejected(BuildFailed(log=str(exc))) from exc
        except CompileFailed as exc:
            raise Rejected(BuildFailed(log=exc.log)) from exc
        return Build(task, candidate, plan, tunables, dict(zip(wanted, artifacts, strict=True)))

    def _specialisations(self, source: str, task: Task, wanted: list[dict[str, str]]) -> list[Artifact]:
        """An artifact for each set of macros; different ones are compiled side by side."""
        distinct = [macros for i, macros in enumerate(wanted) if macros not in wanted[:i]]
        with ThreadPoolExecutor(min(len(distinct), os.cpu_count() or 1)) as pool:
            built = list(pool.map(lambda m: self.toolchain.build(source, task.target, m, self.device.arch), distinct))
        return [built[distinct.index(macros)] for macros in wanted]

    # ------------------------------------------------------------ on the device

    def _trial(self, room: Courtroom, build: Build, worker: Worker) -> Trial:
        return Trial(room, build, worker.peer, self.device, self.rng, self.call_timeout_s)

    def _try(self, room: Courtroom, prepared: Prepared, evidence: Evidence, rounds: int, confirmed: bool) -> Verdict:
        build, stages = prepared.build, prepared.stages
        assert build is not None
        assert prepared.ready is not None
        trial = self._trial(room, build, prepared.ready)
        with _stage(stages, "check"):
            trial.attach()
            checks = _checked(room, trial, evidence)
        with _stage(stages, "time"):
            for _ in range(TIMED_AGAIN + 1):
                timings = self._timings(room, trial, evidence, rounds, confirmed)
                conditions = room.conditions()
                if not (disturbed := room.disturbance(conditions)):
                    break
            if not confirmed and (wonders := _far_ahead(room, timings)):
                timings = self._second_look(room, build, evidence, timings, wonders)
            room.remember(timings)
        reports: tuple[SanitizerReport, ...] = ()
        counters = None
        if confirmed and build.candidate.form == "kernel":
            with _stage(stages, "inspect"):
                reports, counters = inspect(room, trial, self.launcher, self.toolchain, self.device, evidence)
        speedup = statistics.speedups(timings)
        gate = statistics.gate(timings)
        return Passed(
            checks=tuple(checks),
            timings=timings,
            speedup=speedup,
            latency_ms=statistics.geometric_mean(timing.candidate.median_ms for timing in timings),
            resources=_resources(build),
            confirmed=confirmed,
            deterministic=trial.deterministic,
            label=_label(trial, build.candidate),
            sanitizers=reports,
            profile=counters,
            conditions=conditions,
            disturbed=disturbed,
            faster_than=tuple(
                name for name, found in speedup.items() if confirmed and not disturbed and found.low > gate
            ),
        )

    def _timings(
        self, room: Courtroom, trial: Trial, evidence: Evidence, rounds: int, confirmed: bool
    ) -> tuple[Timing, ...]:
        """Of every search workload; a kernel's confirmation is spread over fresh workers."""
        if confirmed and not trial.torch:
            found = self._spread(room, trial.build, evidence, rounds)
        else:
            found = _timed(room, trial, evidence, rounds, confirmed)
        return tuple(trial.timing(workload, found[workload.name]) for workload in room.task.workloads)

    def _second_look(
        self, room: Courtroom, build: Build, evidence: Evidence, timings: tuple[Timing, ...], wonders: list[Workload]
    ) -> tuple[Timing, ...]:
        """The timings, those of `wonders` taken again in a new worker: the slower ones of the two count."""
        with self._worker(room, build.candidate, 1) as worker:
            trial = self._trial(room, build, worker)
            trial.attach()
            found = _timed(room, trial, evidence, SEARCH_ROUNDS[self.device.target], False, wonders)
        again = {w.name: trial.timing(w, found[w.name]) for w in wonders}
        pairs = ((first, again.get(first.workload, first)) for first in timings)
        return tuple(max(pair, key=lambda timing: timing.candidate.median_ms) for pair in pairs)

    def _spread(self, room: Courtroom, build: Build, evidence: Evidence, rounds: int) -> dict[str, Rounds]:
        """Rounds spread over fresh workers: what one process owes to its luck, another does not."""
        processes = CONFIRM_PROCESSES[self.device.target]
        found: dict[str, Rounds] = {}
        for _ in range(processes):
            with self._worker(room, build.candidate, min(2, processes)) as worker:
                trial = self._trial(room, build, worker)
                trial.attach()
                part = _timed(room, trial, evidence, rounds // processes, every_baseline=True)
            found = {name: found[name].and_then(later) if found else later for name, later in part.items()}
        return found

    def duel(
        self,
        task: Task,
        challenger: Candidate,
        champion: Candidate,
        rounds: int | None = None,
        processes: int | None = None,
        workloads: Sequence[Workload] | None = None,
    ) -> Duel:
        """Which of two candidates is faster: blocks in the order ABBA or BAAB, rounds spread over fresh workers.

        Where the interval holds the gate after `rounds`, there are three times as many again, once.
        """
        room = self.open(task)
        builds = [self.build(task, candidate) for candidate in (challenger, champion)]
        rounds = rounds or DUEL_ROUNDS[self.device.target]
        processes = processes or CONFIRM_PROCESSES[self.device.target]
        chosen = tuple(workloads or task.workloads)
        ratios, own = self._duel_rounds(room, builds, chosen, rounds, processes)
        if statistics.open_question(ratios, own):
            times = statistics.MORE_ROUNDS
            more, spread = self._duel_rounds(room, builds, chosen, times * rounds, times * processes)
            ratios, own = ratios + more, own + spread
        interval = statistics.trimmed_interval(ratios)
        return Duel(interval, interval.low > statistics.gate_of(statistics.trimmed_interval(own)), len(ratios))

    def _duel_rounds(
        self, room: Courtroom, builds: list[Build], chosen: tuple[Workload, ...], rounds: int, processes: int
    ) -> tuple[list[float], list[float]]:
        """Log ratios of champion over challenger and of each over itself, one for each round."""
        ratios: list[float] = []
        own: list[float] = []
        for turn in range(processes):
            # Who comes second pays for it, by a hundredth or so: they take turns.
            order = (0, 1) if turn % 2 else (1, 0)
            with contextlib.ExitStack() as stack:
                starting = {i: self._worker(room, builds[i].candidate, 2) for i in order}
                for worker in starting.values():
                    stack.push(worker)
                workers = {i: worker.__enter__() for i, worker in starting.items()}
                trials = [self._trial(room, builds[i], workers[i]) for i in (0, 1)]
                room.require(max(trial.arena_bytes() for trial in trials))
                for i in order:
                    trials[i].attach()
                part, spread = _rounds_of_duel(room, trials, chosen, max(1, rounds // processes))
                ratios, own = ratios + part, own + spread
        return ratios, own


def _label(trial: Trial, candidate: Candidate) -> authorship.Label:
    """By the text; where that has kernels of its own, by where the time goes on the workload bound last."""
    by_text = authorship.label(candidate)
    if candidate.form == "kernel" or by_text == "library":
        return by_text
    try:
        seconds = trial.profile()
    except Rejected:
        return by_text  # It has passed: that it cannot be profiled changes nothing.
    return authorship.label_by_time(seconds, authorship.kernel_names(candidate.source))


def _checked(room: Courtroom, trial: Trial, evidence: Evidence) -> list[Check]:
    """Every workload, small ones first: who fails there costs little."""
    checks: list[Check] = []
    for workload in sorted((*room.task.workloads, *room.task.held_out), key=room.set_bytes):
        trial.load(workload)
        trial.bind(workload)
        checks += trial.check(workload, [*evidence.timed.get(workload.name, []), *evidence.checked[workload.name]])
    return checks


def _far_ahead(room: Courtroom, timings: tuple[Timing, ...]) -> list[Workload]:
    """The workloads on which a candidate leaves everything that is known behind."""
    names = {
        timing.workload
        for timing in timings
        if FAR_AHEAD * timing.candidate.median_ms + OVERHEAD_MS
        < min(*(b.median_ms for b in timing.baselines.values()), room.best_ms.get(timing.workload, math.inf))
    }
    return [workload for workload in room.task.workloads if workload.name in names]


def _timed(
    room: Courtroom,
    trial: Trial,
    evidence: Evidence,
    rounds: int,
    every_baseline: bool,
    workloads: Sequence[Workload] = (),
) -> dict[str, Rounds]:
    """Rounds of some search workloads, or of all, from modules loaded anew."""
    found = {}
    for workload in workloads or room.task.workloads:
        trial.load(workload)
        trial.bind(workload)
        found[workload.name] = trial.rounds(workload, evidence.timed[workload.name][0], rounds, every_baseline)
    return found


def _rounds_of_duel(
    room: Courtroom, trials: list[Trial], workloads: tuple[Workload, ...], rounds: int
) -> tuple[list[float], list[float]]:
    """Log ratios of champion over challenger and of each over itself, one for each round, means over workloads."""
    ratios, own = [[0.0] * rounds for _ in workloads], [[0.0] * rounds for _ in workloads]
    for i, workload in enumerate(workloads):
        drawn = room.evidence.timed[workload.name][0]
        for trial in trials:
            trial.load(workload)
        trials[0].bind_beside(workload, trials[1])
        blocks = [trial.candidate_block(workload, drawn) for trial in trials]
        # As many calls for both, since what was just refreshed is the warmer the less it is; and one estimate of what a
        # request costs, since two of the same thing differ.
        calls, overhead = min(block.count for block in blocks), min(block.overhead for block in blocks)
        blocks = [replace(block, count=calls, overhead=overhead) for block in blocks]
        for j in range(rounds):
            ratios[i][j], own[i][j] = _abba(room, trials, workload, blocks, drawn)
    return _column_means(ratios), _column_means(own)


def _column_means(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]


def _abba(
    room: Courtroom, trials: list[Trial], workload: Workload, blocks: list[Block], drawn: Drawn
) -> tuple[float, float]:
    """One round: the log ratio of the two, and how far each strayed from itself, in a direction drawn at random."""
    first = room.rng.randrange(2)
    times: list[list[float]] = [[], []]
    for who in (first, 1 - first, 1 - first, first):
        times[who].append(math.log(trials[who].block(workload, blocks[who], drawn)))
    strayed = sum(before - after for before, after in times) / 2
    return (sum(times[1]) - sum(times[0])) / 2, strayed * room.rng.choice((-1, 1))


def _outcome(action: Callable[[], Outcome]) -> Outcome | Exception:
    """What came of it in another thread; whoever waits for it raises what was raised."""
    try:
        return action()
    # Passed on and raised again in the thread that asked.
    except Exception as exc:  # noqa: BLE001
        return exc


class Quiet:
    """On the cpu target compilers would disturb the clock: any number build, or one candidate is judged."""

    def __init__(self, needed: bool) -> None:
        self.needed = needed
        self._changed = threading.Condition()
        self._builders = 0

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._builders += 1
        try:
            yield
        finally:
            with self._changed:
                self._builders -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        if not self.needed:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: self._builders == 0)
            yield


def _discard(prepared: Prepared) -> None:
    if prepared.worker is not None:
        prepared.worker.__exit__(None, None, None)
        prepared.worker = None


@contextlib.contextmanager
def _stage(stages: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        stages[name] = stages.get(name, 0.0) + time.perf_counter() - started


def _memory_bytes(room: Courtroom) -> int:
    """What an honest worker can need: the arena several times over, and room for a runtime."""
    return _WORKER_BASE_BYTES + 4 * max(room.set_bytes(w) * room.sets(w) for w in room.task.workloads)


def _resources(build: Build) -> tuple[KernelResources, ...]:
    """Of every distinct specialisation."""
    distinct = {artifact.sha256: artifact for artifact in build.artifacts.values()}
    return tuple(kernel for artifact in distinct.values() for kernel in artifact.kernels)
