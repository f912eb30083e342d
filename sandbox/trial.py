"""One candidate before one worker: load it, check its outputs, time it beside the baselines.

Whatever is the candidate's fault leaves as `Rejected`, which carries the verdict.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from sandbox import statistics
from sandbox.contract import (
    Artifact,
    Cheated,
    Check,
    Device,
    Incorrect,
    LaunchFailed,
    Task,
    TimedOut,
    Timing,
    Verdict,
    Workload,
)
from sandbox.courtroom import Block, Courtroom, Drawn
from sandbox.errors import PlanError
from sandbox.expressions import parse_expr
from sandbox.peer import Peer, PeerDied, PeerTimedOut
from sandbox.plan import Plan, ResolvedPlan, environment, resolve
from sandbox.signature import nbytes
from sandbox.worker import wire
from sandbox.worker.layout import dump_offsets

_COPY_TIMEOUT_S = 120.0
_BLOCK_S = 0.02
"""Length of one block of timed calls on the cpu target."""
_SETTLE_S = 0.004
"""Pause between blocks: the OpenMP threads of the last one stop spinning."""
_ROOFLINE_SLACK = 1.10


class Rejected(Exception):
    """The candidate is out; `verdict` says why."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.status)
        self.verdict = verdict


@dataclass(frozen=True)
class Build:
    """A candidate's plan, its tunables and one artifact for each workload."""

    plan: Plan
    tunables: Mapping[str, int]
    artifacts: Mapping[str, Artifact]


class Trial:
    """Checks and timings of one candidate in one worker."""

    def __init__(
        self, room: Courtroom, build: Build, peer: Peer, device: Device, rng: random.Random, call_timeout_s: float
    ) -> None:
        self.room, self.task, self.build = room, room.task, build
        self.peer, self.device, self.rng, self.call_timeout_s = peer, device, rng, call_timeout_s
        self.workspace_bytes = 0
        # Of this trial alone: what a candidate wrote must not meet the next one.
        self.dump = wire.memory_file("dump", self._dump_bytes())
        self._loaded: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.dump)

    def _dump_bytes(self) -> int:
        """Of the largest workload."""
        return max(
            dump_offsets([*(nbytes(t, w) for t in self.task.tensors), self._resolved(w).workspace_bytes])[1]
            for w in (*self.task.workloads, *self.task.held_out)
        )

    # ------------------------------------------------------------ talking to the worker

    def _ask(
        self, workload: Workload, operation: str, timeout_s: float, *descriptors: int, **fields: Any
    ) -> dict[str, Any]:
        return self._timed(workload, operation, timeout_s, *descriptors, **fields)[1]

    def _timed(
        self, workload: Workload, operation: str, timeout_s: float, *descriptors: int, **fields: Any
    ) -> tuple[float, dict[str, Any]]:
        start = time.perf_counter()
        try:
            reply = self.peer.ask(operation, timeout_s, descriptors, **fields)
        except PeerTimedOut as exc:
            raise Rejected(TimedOut(stage=f"{operation} on {workload.name}", seconds=exc.seconds)) from exc
        except PeerDied as exc:
            raise Rejected(LaunchFailed(workload=workload.name, reason=f"worker {exc} in {operation}")) from exc
        if "error" in reply:
            raise Rejected(LaunchFailed(workload=workload.name, reason=str(reply["error"])[:2000]))
        return time.perf_counter() - start, reply

    def bind(self, workload: Workload, sets: int) -> None:
        """Load the workload's specialisation where it is not yet, and allocate `sets` sets of buffers."""
        artifact = self.build.artifacts[workload.name]
        if artifact.sha256 not in self._loaded:
            with artifact.path.open("rb") as image:
                self._ask(workload, "load", _COPY_TIMEOUT_S, image.fileno(), key=artifact.sha256, entry=self.task.name)
            self._loaded.add(artifact.sha256)
        plan = self._resolved(workload)
        self.workspace_bytes = plan.workspace_bytes
        self._ask(
            workload,
            "bind",
            _COPY_TIMEOUT_S,
            key=artifact.sha256,
            sets=sets,
            outputs=len(self.task.outputs),
            sizes=[nbytes(tensor, workload) for tensor in self.task.tensors],
            scalars=_scalars(self.task, workload),
            plan=_wired(plan, self.task),
        )

    def _resolved(self, workload: Workload) -> ResolvedPlan:
        try:
            return resolve(self.build.plan, self.task, workload, self.build.tunables, self.device)
        except PlanError as exc:
            raise Rejected(LaunchFailed(workload=workload.name, reason=str(exc))) from exc

    # ------------------------------------------------------------ correctness

    def check(self, drawn: Drawn, index: int = 0) -> Check:
        """Fill a set, call once, and compare everything that came back."""
        self._ask(drawn.workload, "fill", _COPY_TIMEOUT_S, drawn.descriptor, set=index)
        self._ask(drawn.workload, "call", self.call_timeout_s, set=index)
        return self.compare(drawn, index)

    def compare(self, drawn: Drawn, index: int = 0) -> Check:
        """Compare the buffers of a set with what `drawn` must have become; Rejected where they differ."""
        self._ask(drawn.workload, "read", _COPY_TIMEOUT_S, self.dump, set=index)
        seen = self.room.ask("compare", descriptors=[self.dump], slot=drawn.slot, workspace_bytes=self.workspace_bytes)
        return self._verdict_of(drawn, seen)

    def _verdict_of(self, drawn: Drawn, seen: dict[str, Any]) -> Check:
        def incorrect(rule: str, evidence: str) -> Rejected:
            workload, distribution = drawn.workload.name, drawn.distribution
            return Rejected(Incorrect(workload=workload, distribution=distribution, rule=rule, evidence=evidence))

        if seen["guards"]:
            names = ", ".join(seen["guards"])
            raise incorrect("out-of-bounds write", f"guard zones of {names} were written")
        if seen["changed"]:
            names = ", ".join(seen["changed"])
            raise incorrect("input changed", f"{names} differ after the call")
        specs = (*self.task.outputs, *self.task.inouts)
        for spec, error, yardstick, limit in zip(specs, seen["errors"], drawn.yardsticks, drawn.limits, strict=True):
            if not (error[0] <= limit[0] and error[1] <= limit[1]):
                raise incorrect("error", _evidence(spec.name, error, yardstick, limit))
        return Check(
            workload=drawn.workload.name,
            distribution=drawn.distribution,
            error=max(error[0] for error in seen["errors"]),
            yardstick=max(row for row, _ in drawn.yardsticks),
        )

    # ------------------------------------------------------------ timing

    def time(self, workload: Workload, draws: list[Drawn], rounds: int, every_baseline: bool) -> Timing:
        """Interleaved rounds of the candidate and its baselines, in random order, from rotating cold buffers.

        Without `every_baseline` only the fastest library call takes part, and none of the task's other baselines.
        """
        sets = self.room.sets(workload)
        self.bind(workload, sets)
        for i in range(sets):
            self._ask(workload, "fill", _COPY_TIMEOUT_S, draws[i % len(draws)].descriptor, set=i)
        self.room.ask("bind", slots=[drawn.slot for drawn in draws], sets=sets)
        calls = {subject: self._calls(workload, subject) for subject in self._baselines(workload, every_baseline)}
        calls["candidate"] = self._calls(workload, "candidate")
        subjects = list(calls)
        if calls["candidate"].seconds > 4 * calls["eager"].seconds:
            rounds = min(rounds, 3)
        results: dict[str, list[float]] = {subject: [] for subject in subjects}
        for _ in range(rounds):
            for subject in self.rng.sample(subjects, len(subjects)):
                results[subject].append(self._block(workload, subject, calls[subject]))
        wall_ms = self._clocks_agree(workload, calls["candidate"]) if self.device.target == "cuda" else None
        self._check_timed(draws, self.rng.randrange(sets))
        measured = {
            subject: statistics.measurement(values, calls[subject].count * rounds)
            for subject, values in results.items()
        }
        candidate = measured.pop("candidate")
        seen = self.room.latencies_ms.setdefault(workload.name, {})
        seen.update({name: baseline.median_ms for name, baseline in measured.items()})
        share = self._roofline_share(workload, candidate.median_ms)
        return Timing(
            workload=workload.name, candidate=candidate, baselines=measured, roofline_share=share, wall_ms=wall_ms
        )

    def _baselines(self, workload: Workload, every: bool) -> list[str]:
        names = self.room.baselines[workload.name]
        seen = self.room.latencies_ms.get(workload.name, {})
        if every or not seen:
            return names
        library = [name for name in names if name.startswith("library:")]
        return [name for name in names if name in ("eager", "compile", min(library, key=seen.__getitem__, default=""))]

    def _check_timed(self, draws: list[Drawn], index: int) -> Check:
        """What timed calls left in a set; in-outs may have moved on with every call, so there one more is made."""
        drawn = draws[index % len(draws)]
        return self.check(drawn, index) if self.task.inouts else self.compare(drawn, index)

    def _run(self, workload: Workload, subject: str, calls: int, flush: bool) -> tuple[float, list[float]]:
        """Seconds on this side's clock, and the device's milliseconds where the target has them."""
        if subject == "candidate":
            seconds, reply = self._timed(workload, "time", self.call_timeout_s, calls=calls, flush=flush)
        else:
            start = time.perf_counter()
            reply = self.room.ask("time", _COPY_TIMEOUT_S, baseline=subject, calls=calls, flush=flush)
            seconds = time.perf_counter() - start
        return seconds, [float(value) for value in reply["events_ms"]]

    def _calls(self, workload: Workload, subject: str) -> Block:
        """How many calls make a block. Baselines are asked once, the candidate after a full turn of its sets."""
        known = self.room.blocks.get((workload.name, subject))
        if known is not None:
            self._run(workload, subject, 1, flush=False)
            return known
        self._run(workload, subject, self.room.sets(workload), flush=False)
        overhead = min(self._run(workload, subject, 0, flush=False)[0] for _ in range(5))
        seconds, _ = self._run(workload, subject, 1, flush=False)
        seconds = max(seconds - overhead, 1e-6)
        if seconds < _BLOCK_S / 4:
            seconds = max((self._run(workload, subject, 8, flush=False)[0] - overhead) / 8, 1e-6)
        most = 10 if self.device.target == "cuda" else 1000
        count = max(1 if seconds > _BLOCK_S else 3, min(most, math.ceil(_BLOCK_S / seconds)))
        block = Block(count=count, overhead=overhead, seconds=seconds)
        if subject != "candidate":
            self.room.blocks[workload.name, subject] = block
        return block

    def _block(self, workload: Workload, subject: str, block: Block) -> float:
        """Milliseconds per call over one block: device events on cuda, this side's clock on cpu."""
        if self.device.target == "cuda":
            _, events = self._run(workload, subject, block.count, flush=True)
            if len(events) != block.count:
                raise Rejected(Cheated(rule="protocol", evidence=f"{len(events)} events for {block.count} calls"))
            return sorted(events)[len(events) // 2]
        time.sleep(_SETTLE_S)
        seconds, _ = self._run(workload, subject, block.count, flush=False)
        return max(seconds - block.overhead, 1e-7) / block.count * 1e3

    def _clocks_agree(self, workload: Workload, block: Block) -> float:
        """The judge's wall-clock slope per call, ms; Rejected where device events claim clearly less."""
        count = max(10, min(200, math.ceil(0.05 / block.seconds)))
        for _ in range(3):
            one, events_one = self._run(workload, "candidate", count, flush=False)
            two, events_two = self._run(workload, "candidate", 2 * count, flush=False)
            wall_ms, events_ms = (two - one) / count * 1e3, (events_two[0] - events_one[0]) / count
            if events_ms >= wall_ms - max(0.1 * wall_ms, 0.01):
                return wall_ms
        raise Rejected(
            Cheated(
                rule="clocks disagree",
                evidence=f"events say {events_ms:.4f} ms a call, the judge's clock {wall_ms:.4f} ms",
            )
        )

    def _roofline_share(self, workload: Workload, latency_ms: float) -> float | None:
        floor_ms = floor(self.task, workload, self.device)
        if floor_ms is None:
            return None
        share = floor_ms / latency_ms
        if share > _ROOFLINE_SLACK and self.device.target == "cuda":
            raise Rejected(
                Cheated(
                    rule="faster than the hardware",
                    evidence=f"{workload.name}: {latency_ms:.5f} ms, floor {floor_ms:.5f} ms",
                )
            )
        return share


def floor(task: Task, workload: Workload, device: Device) -> float | None:
    """Milliseconds that moving the bytes or doing the operations takes at peak rates; None where no peak is known."""
    env = environment(task, workload, {}, device)
    times = []
    if device.bandwidth_gbs:
        times.append(parse_expr(task.bytes_moved).evaluate(env) / device.bandwidth_gbs / 1e6)
    if rate := device.tflops.get(workload.dtype):
        times.append(parse_expr(task.flops).evaluate(env) / rate / 1e9)
    return max(times) if times else None


def _scalars(task: Task, workload: Workload) -> list[list[Any]]:
    axes: list[list[Any]] = [["axis", workload.axes[axis]] for axis in task.axes]
    return axes + [[scalar.type, workload.scalars[scalar.name]] for scalar in task.scalars]


def _wired(plan: ResolvedPlan, task: Task) -> dict[str, Any]:
    index = {tensor.name: i for i, tensor in enumerate(task.tensors)}
    fields = plan.model_dump()
    return fields | {"tensormaps": [entry | {"index": index[entry["tensor"]]} for entry in fields["tensormaps"]]}


def _evidence(name: str, error: list[float], yardstick: tuple[float, float], limit: tuple[float, float]) -> str:
    row = f"worst row {error[0]:.3g} (PyTorch's own {yardstick[0]:.3g}, allowed {limit[0]:.3g})"
    peak = f"worst element {error[1]:.3g} of its row's peak (PyTorch's own {yardstick[1]:.3g}, allowed {limit[1]:.3g})"
    return f"{name}: relative L2 error of the {row}, {peak}"
