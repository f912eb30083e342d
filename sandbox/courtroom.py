"""What the judge prepares once per task and keeps for every candidate: drawn inputs, baselines, yardsticks.

Candidates die with their worker and nothing of theirs survives, so one set of secret inputs serves many of them;
`confirm` draws its own.
"""

from __future__ import annotations

import math
import os
import random
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from sandbox.contract import Conditions, Device, Task, Timing, Workload
from sandbox.errors import TaskError, WorkerLost
from sandbox.launch import BOUND
from sandbox.peer import Peer, PeerDied, PeerTimedOut
from sandbox.secrecy import without_keys
from sandbox.signature import dtype_of, nbytes
from sandbox.worker.layout import Layout, lay_out

TIMED = "timed"
"""The distribution of timed inputs: normal, with integers at their upper bound so that all work is there."""
PLAIN = "normal"
"""Whose contents are moved about: of extreme ones, PyTorch's own error would change with every move."""
CHECKED = ("shifted", "uniform", "outliers", "sharp", "equal_rows", "amplified_tail", "large", "tiny")
_START_TIMEOUT_S = 180.0
_PREPARE_TIMEOUT_S = 300.0
_COMPILE_TIMEOUT_S = 900.0

_CPU_ARENA_BYTES = 64 << 20
"""Several times most last-level caches."""
_CUDA_ARENA_BYTES = 4 << 30

BUSY_MS = 1.0
"""For an empty kernel, which takes a hundredth of it on a GPU that nobody else uses."""
POWER_CAP = "power cap"
"""A kernel that draws much power is slowed by itself: that is how fast it is."""
LEAST_CLOCK = 0.85

ERROR_FLOOR = {"float32": 1e-5, "float16": 5e-4, "bfloat16": 4e-3}
"""Added to the yardstick: PyTorch's own error can be zero by luck, and sums may be taken in any order."""


@dataclass(frozen=True)
class Drawn:
    """One drawn input: its slot in the referee, and what error is tolerable on each output and in-out."""

    slot: str
    workload: Workload
    distribution: str
    yardsticks: tuple[tuple[float, float], ...]
    limits: tuple[tuple[float, float], ...]

    def limits_against(self, errors: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
        """The same where somebody's answer, itself off by `errors`, stands in for the oracle."""
        pairs = zip(self.limits, errors, strict=True)
        return tuple((limit[0] + own[0], limit[1] + own[1]) for limit, own in pairs)


@dataclass(frozen=True)
class Block:
    """How one subject is timed: calls per block, seconds of a request without calls, seconds of a call."""

    count: int
    overhead: float
    seconds: float


@dataclass
class Evidence:
    """Everything drawn for one task."""

    timed: dict[str, list[Drawn]] = field(default_factory=dict)
    """By search workload: what is timed, moved along before every block, and checked."""
    checked: dict[str, list[Drawn]] = field(default_factory=dict)
    """By workload, search and held-out: draws that are only checked."""

    def all(self) -> list[Drawn]:
        return [drawn for group in (self.timed, self.checked) for draws in group.values() for drawn in draws]


class Courtroom:
    """The referee process with one task open in it."""

    def __init__(self, task: Task, device: Device, rng: random.Random) -> None:
        self.task, self.device, self.rng = task, device, rng
        self.versions: dict[str, str] = {}
        self.failures: dict[str, dict[str, str]] = {}
        """By workload: the baselines that cannot be timed on it, and why."""
        self.baselines: dict[str, list[str]] = {}
        self.blocks: dict[tuple[str, str], Block] = {}
        self.errors: dict[str, dict[str, list[list[float]]]] = {}
        """By workload and baseline: of its outputs, by row and by element."""
        self.latencies_ms: dict[str, dict[str, float]] = {}
        """By workload and baseline, as last measured."""
        self.best_ms: dict[str, float] = {}
        """By workload, the fastest right candidate seen; who is far behind needs few rounds."""
        self.top_mhz = 0
        """The highest clock that was seen."""
        self.arena = -1
        self.arena_bytes = 0
        self._slots = 0

    def __enter__(self) -> Self:
        self.scratch = tempfile.TemporaryDirectory(prefix="warpsmith-referee-")
        kind = "cuda" if self.device.target == "cuda" else "cpu"
        env = {**without_keys(), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        if self.device.target == "cpu":
            env |= {
                "OMP_NUM_THREADS": str(self.device.threads),
                "OMP_DYNAMIC": "false",
                "MKL_DYNAMIC": "FALSE",
                **BOUND,
            }
        command = [sys.executable, "-m", "sandbox.referee"]
        self.log = tempfile.TemporaryFile()
        self.referee = Peer(command, [kind], env=env, cwd=self.scratch.name, stdout=self.log, stderr=self.log)
        try:
            self.referee.wait_ready(_START_TIMEOUT_S)
            self.versions = {
                "torch": str(self.ask("open", _START_TIMEOUT_S, task=self.task.model_dump_json())["torch"])
            }
            self.evidence = self.draw()
            self._admit_baselines()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.referee.kill()
        self.log.close()
        self.scratch.cleanup()
        if self.arena >= 0:
            os.close(self.arena)
            self.arena = -1

    def ask(
        self, operation: str, timeout_s: float = _PREPARE_TIMEOUT_S, descriptors: Sequence[int] = (), **fields: Any
    ) -> Any:
        """Ask the referee; whatever goes wrong is WorkerLost, or TaskError where it was the task's reference.py."""
        try:
            return self.referee.ask(operation, timeout_s, descriptors, **fields)
        except (PeerDied, PeerTimedOut) as exc:
            if operation in ("open", "prepare") and f"{self.task.folder}/" in self._last_words():
                raise TaskError(f"{self.task.folder}/reference.py: {self._last_words().splitlines()[-1]}") from exc
            raise WorkerLost(
                f"the referee process failed in {operation!r}: {exc}\n{self._last_words()}".rstrip()
            ) from exc

    def _last_words(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-2000:]

    def draw(self) -> Evidence:
        """Fresh inputs for every workload."""
        evidence = Evidence()
        for workload in self.task.workloads:
            evidence.timed[workload.name] = [self._drawn(workload, TIMED)]
        for group in (self.task.workloads, self.task.held_out):
            for i, workload in enumerate(sorted(group, key=self.set_bytes)):
                # All of them where it costs least: a kernel that fails one must not get away by luck.
                chosen = self.rng.sample(CHECKED, len(CHECKED)) if i == 0 else [self.rng.choice(CHECKED)]
                chosen = [PLAIN, *chosen] if i == 0 or group is self.task.held_out else chosen
                evidence.checked[workload.name] = [self._drawn(workload, name) for name in chosen]
        return evidence

    def _drawn(self, workload: Workload, distribution: str) -> Drawn:
        drawn, trivial = self._prepared(workload, distribution)
        if drawn is None:
            # PyTorch itself overflows here, so nothing can be measured against it.
            drawn, trivial = self._prepared(workload, PLAIN)
        if drawn is None:
            raise TaskError(
                f"task {self.task.name!r}, workload {workload.name}: the reference gives NaN or infinity in "
                f"{workload.dtype} on normal inputs where float64 is finite; wanted a workload it can be measured on"
            )
        if distribution == TIMED and trivial:
            raise TaskError(
                f"task {self.task.name!r}, workload {workload.name}: {trivial[0]} would pass as the answer; wanted a "
                "workload whose outputs depend on its inputs by more than the tolerance"
            )
        return drawn

    def _prepared(self, workload: Workload, distribution: str) -> tuple[Drawn | None, list[str]]:
        """A draw, and which trivial answers would pass on it; None where PyTorch overflows."""
        self._slots += 1
        slot, seed = f"slot{self._slots}", self.rng.getrandbits(62)
        reply = self.ask(
            "prepare",
            slot=slot,
            workload=workload.model_dump(),
            seed=seed,
            distribution=distribution,
            admit=distribution == TIMED,
        )
        if _overflowed(reply):
            self.ask("drop", slots=[slot])
            return None, []
        yardsticks = tuple((float(row), float(peak)) for row, peak in reply["yardsticks"])
        drawn = Drawn(slot, workload, distribution, yardsticks, self._limits(workload, yardsticks))
        return drawn, [name for name, errors in reply["trivial"].items() if within(errors, drawn.limits)]

    def _limits(self, workload: Workload, yardsticks: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
        specs = (*self.task.outputs, *self.task.inouts)
        floors = [ERROR_FLOOR.get(dtype_of(spec, workload), 0.0) for spec in specs]
        tolerance = self.task.tolerance
        return tuple(
            (tolerance * row + floor, tolerance * peak + 2 * floor)
            for (row, peak), floor in zip(yardsticks, floors, strict=True)
        )

    def release(self, evidence: Evidence) -> None:
        """Forget draws that are no longer needed."""
        self.ask("drop", slots=[drawn.slot for drawn in evidence.all()])

    def stand_in(self, drawn: Drawn) -> tuple[str, tuple[tuple[float, float], ...]]:
        """Whose answer stands in for the oracle's on data that was moved about, and the limits against it.

        The fastest baseline that is as accurate as a candidate has to be; eager where in-outs count, too.
        """
        name, errors = "eager", [*map(list, drawn.yardsticks)]
        if not self.task.inouts:
            seen = self.latencies_ms.get(drawn.workload.name, {})
            accurate = [
                n for n, e in self.errors.get(drawn.workload.name, {}).items() if n in seen and within(e, drawn.limits)
            ]
            name = min(accurate, key=seen.__getitem__, default="eager")
            errors = self.errors[drawn.workload.name][name] if accurate else errors
        return name, drawn.limits_against(errors)

    def remember(self, timings: Sequence[Timing]) -> None:
        """What a right candidate took."""
        for timing in timings:
            known = self.best_ms.get(timing.workload, math.inf)
            self.best_ms[timing.workload] = min(timing.candidate.median_ms, known)

    def conditions(self) -> Conditions | None:
        """The GPU as it is now."""
        if self.device.target == "cpu":
            return None
        reply = self.ask("look")
        return Conditions.model_validate({name: reply[name] for name in Conditions.model_fields if name in reply})

    def disturbance(self, seen: Conditions | None) -> str:
        """Why what was just timed decides nothing; empty where it does."""
        if seen is None:
            return ""
        if seen.idle_ms > BUSY_MS:
            return f"the GPU was busy with somebody else's work: {seen.idle_ms:.2f} ms for an empty kernel"
        if grave := [reason for reason in seen.slowed if reason != POWER_CAP]:
            return f"the GPU's clocks were held down: {', '.join(grave)}"
        self.top_mhz = max(self.top_mhz, seen.sm_mhz or 0)
        if seen.sm_mhz is not None and seen.sm_mhz < LEAST_CLOCK * self.top_mhz:
            return f"the GPU ran at {seen.sm_mhz} MHz, where it had {self.top_mhz} MHz before"
        return ""

    # ------------------------------------------------------------ the arena

    def layout(self, workload: Workload, workspace_bytes: int) -> Layout:
        """Where the buffers of a workload lie, for a candidate with such a workspace."""
        sizes = [nbytes(tensor, workload) for tensor in self.task.tensors]
        return lay_out(sizes, self.sets(workload), workspace_bytes)

    def require(self, size: int) -> None:
        """Have an arena of at least `size` bytes; its descriptor is `arena`."""
        if size <= self.arena_bytes:
            return
        ours, theirs = socket.socketpair()
        with ours, theirs:
            reply = self.ask("make_arena", descriptors=[theirs.fileno()], bytes=size + (64 << 20))
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        if self.arena >= 0:
            os.close(self.arena)
        self.arena, self.arena_bytes = descriptors[0], int(reply["bytes"])

    def lay(self, workload: Workload, layout: Layout) -> None:
        """Lay the arena out; every buffer of it becomes a guard zone until it is refreshed."""
        self.ask(
            "lay",
            workload=workload.model_dump(),
            sizes=list(layout.sizes),
            sets=layout.sets,
            workspace_bytes=layout.workspace_bytes,
        )

    def _admit_baselines(self) -> None:
        """Which baselines run, and are right, on each workload. The eager one is the yardstick itself."""
        for workload in self.task.workloads:
            drawn = self.evidence.timed[workload.name][0]
            self.failures[workload.name] = {}
            reply = self.ask("baselines", _COMPILE_TIMEOUT_S, slot=drawn.slot)
            for name, reason in reply["failures"].items():
                self.failures[workload.name][name] = str(reason)
            admitted = []
            for name, errors in reply["errors"].items():
                worst = max(
                    (_excess(row, limit[0]) for (row, _), limit in zip(errors, drawn.limits, strict=False)), default=0.0
                )
                if worst <= 5.0:
                    admitted.append(name)
                    self.errors.setdefault(workload.name, {})[name] = errors
                else:
                    self.failures[workload.name][name] = f"wrong: its error is {worst:.1f} times the tolerance"
            self.baselines[workload.name] = admitted

    def set_bytes(self, workload: Workload) -> int:
        """Bytes of one set of buffers."""
        return sum(nbytes(tensor, workload) for tensor in self.task.tensors)

    def sets(self, workload: Workload) -> int:
        """How many sets of buffers a block of timed calls can use, each of them once and with data of its own."""
        size = max(1, self.set_bytes(workload))
        if self.device.target == "cuda":
            return max(1, min(8, _CUDA_ARENA_BYTES // size))
        return max(2, min(512, _CPU_ARENA_BYTES // size)) if size < 1 << 30 else 1


def within(errors: Sequence[Sequence[float]], limits: Sequence[tuple[float, float]]) -> bool:
    """Whether every error, by row and by element, is tolerable; NaN is not."""
    return all(e[0] <= limit[0] and e[1] <= limit[1] for e, limit in zip(errors, limits, strict=True))


def _excess(error: float, limit: float) -> float:
    """An error in multiples of what is tolerable, which is nothing at all for integers that PyTorch has right."""
    return error / limit if limit else math.inf if error else 0.0


def _overflowed(prepared: dict[str, Any]) -> bool:
    """An infinite yardstick would tolerate every answer."""
    return any(value == float("inf") for pair in prepared["yardsticks"] for value in pair)
