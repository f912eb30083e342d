"""The trusted side: from a candidate's text to its verdict.

build -> check on small shapes first -> time the search shapes -> verdict. Inputs, expected outputs and comparison live
in the referee (courtroom.py), the candidate in a worker that sees bytes and nothing else (trial.py, local.py).
Not covered: containers, sanitizers, profiling; docs/judge.md says what each rule defends and what stays open.
"""

from __future__ import annotations

import datetime
import random
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, Self

from sandbox import statistics
from sandbox.contract import (
    Artifact,
    BuildFailed,
    Candidate,
    Device,
    Judgement,
    KernelResources,
    Passed,
    Task,
    Verdict,
)
from sandbox.courtroom import Courtroom, Evidence
from sandbox.errors import PlanError
from sandbox.local import LocalWorker
from sandbox.peer import Peer
from sandbox.plan import allowed, macros, parse, settle
from sandbox.toolchain import CompileFailed, Toolchain
from sandbox.trial import Build, Rejected, Trial

SEARCH_ROUNDS = 5
CONFIRM_ROUNDS = 12
_WORKER_BASE_BYTES = 4 << 30


class Worker(Protocol):
    """A sandboxed process that serves one candidate."""

    peer: Peer


WorkerFactory = Callable[[Device, int], AbstractContextManager[Worker]]


class Judge:
    """Judges candidates on one device; keeps one task open at a time. Use as a context manager."""

    def __init__(
        self, device: Device, toolchain: Toolchain, worker: WorkerFactory = LocalWorker, call_timeout_s: float = 30.0
    ) -> None:
        """`call_timeout_s` bounds one call of a candidate, and one block of timed calls."""
        self.device, self.toolchain, self.worker, self.call_timeout_s = device, toolchain, worker, call_timeout_s
        # Never seeded from the outside: what a run can replay, a candidate could have known.
        self.rng = random.Random(secrets.randbits(128))
        self.room: Courtroom | None = None
        self.spare: AbstractContextManager[Worker] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.spare is not None:
            self.spare.__exit__(None, None, None)
            self.spare = None
        if self.room is not None:
            self.room.__exit__()
            self.room = None

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

    def judge(self, task: Task, candidate: Candidate) -> Judgement:
        """The verdict on one candidate. Its own faults are verdicts; ours are Infrastructure errors."""
        room = self.open(task)
        return self._judge(room, candidate, room.evidence, SEARCH_ROUNDS, confirmed=False)

    def confirm(self, task: Task, candidate: Candidate) -> Judgement:
        """Judge a winner again: inputs nobody has seen, more rounds."""
        room = self.open(task)
        fresh = room.draw()
        try:
            return self._judge(room, candidate, fresh, CONFIRM_ROUNDS, confirmed=True)
        finally:
            room.release(fresh)

    def _judge(
        self, room: Courtroom, candidate: Candidate, evidence: Evidence, rounds: int, confirmed: bool
    ) -> Judgement:
        start = time.perf_counter()
        try:
            build = self.build(room.task, candidate)
            verdict = self._try(room, build, evidence, rounds, confirmed)
        except Rejected as rejection:
            verdict = rejection.verdict
        return Judgement(
            candidate=candidate.id,
            task=room.task.name,
            task_version=room.task.version,
            target=room.task.target,
            device=self.device.name,
            verdict=verdict,
            seconds=time.perf_counter() - start,
            judged_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            versions=room.versions | self.toolchain.versions(),
        )

    def _trial(self, room: Courtroom, build: Build, worker: Worker) -> Trial:
        return Trial(room, build, worker.peer, self.device, self.rng, self.call_timeout_s)

    def _worker(self, room: Courtroom) -> AbstractContextManager[Worker]:
        """A worker that nobody has used; on cuda, where a context takes seconds, the next one starts meanwhile."""
        worker = self.spare or self.worker(self.device, _memory_bytes(room))
        self.spare = self.worker(self.device, _memory_bytes(room)) if self.device.target == "cuda" else None
        return worker

    def build(self, task: Task, candidate: Candidate) -> Build:
        """Compile every specialisation the task's workloads need; Rejected with BuildFailed where one does not."""
        try:
            plan = parse(candidate.source, task)
            tunables = settle(plan, candidate.tunables)
            if not allowed(plan, task, tunables, self.device):
                raise PlanError(f"tunables {tunables} break a tune-if constraint on {self.device.name}")
            artifacts: dict[str, Artifact] = {}
            for workload in (*task.workloads, *task.held_out):
                definitions = macros(task, plan, workload, tunables)
                artifacts[workload.name] = self.toolchain.build(
                    candidate.source, task.target, definitions, self.device.arch
                )
        except PlanError as exc:
            raise Rejected(BuildFailed(log=str(exc))) from exc
        except CompileFailed as exc:
            raise Rejected(BuildFailed(log=exc.log)) from exc
        return Build(plan, tunables, artifacts)

    def _try(self, room: Courtroom, build: Build, evidence: Evidence, rounds: int, confirmed: bool) -> Verdict:
        with self._worker(room) as worker, self._trial(room, build, worker) as trial:
            checks = []
            for workload in sorted((*room.task.workloads, *room.task.held_out), key=room.set_bytes):
                trial.bind(workload, sets=1)
                # New data under the same pointers, then the first data again: nothing may be remembered.
                draws = [*evidence.timed.get(workload.name, [])[:1], *evidence.checked[workload.name]]
                checks += [trial.check(drawn) for drawn in [*draws, draws[0]]]
            timings = tuple(trial.time(w, evidence.timed[w.name], rounds, confirmed) for w in room.task.workloads)
        return Passed(
            checks=tuple(checks),
            timings=timings,
            speedup=statistics.speedups(timings),
            latency_ms=statistics.geometric_mean(timing.candidate.median_ms for timing in timings),
            resources=_resources(build),
            confirmed=confirmed,
        )


def _memory_bytes(room: Courtroom) -> int:
    """What an honest worker can need: every set of the largest workload several times over, and room for a runtime."""
    return _WORKER_BASE_BYTES + 4 * max(room.set_bytes(w) * room.sets(w) for w in room.task.workloads)


def _resources(build: Build) -> tuple[KernelResources, ...]:
    """Of every distinct specialisation."""
    distinct = {artifact.sha256: artifact for artifact in build.artifacts.values()}
    return tuple(kernel for artifact in distinct.values() for kernel in artifact.kernels)
