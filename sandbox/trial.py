"""One candidate before one worker: load it, check its outputs, time it beside the baselines.

The worker makes calls and nothing else: inputs are written and outputs read in the arena, by the referee. A worker that
runs native code of a candidate is frozen except while it answers, so that what it computes is computed in the open.
Whatever is the candidate's fault leaves as `Rejected`, which carries the verdict.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

from sandbox import statistics
from sandbox.contract import (
    Artifact,
    BuildFailed,
    Candidate,
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
from sandbox.courtroom import BUSY_MS, Block, Courtroom, Drawn, within
from sandbox.errors import PlanError
from sandbox.expressions import parse_expr
from sandbox.instruments import Call
from sandbox.peer import Peer, PeerBabbled, PeerDied, PeerMoved, PeerTimedOut
from sandbox.plan import Plan, ResolvedPlan, environment, resolve
from sandbox.signature import dtype_of, nbytes, shape_of
from sandbox.worker.layout import Layout

_COPY_TIMEOUT_S = 120.0
_LOAD_S = 10.0
"""Of grace for loading a module, beyond what a call may take."""
_TORCH_BUILD_TIMEOUT_S = 600.0
_BLOCK_S = {True: 0.005, False: 0.02}
"""Aim for the length of one block of timed calls, where device events decide and where this side's clock does."""
_SLOPE_S = 0.003
"""Of calls, by which two requests differ whose wall-clock times are compared."""
_SLOPE_CALLS = 200
_SETTLE_S = 0.012
"""Pause before a block on the cpu target: the OpenMP threads of the last one stop spinning."""
_IDLE_S = 1e-4
_ROOFLINE_SLACK = 1.10
_EVENTS = 7
"""Most calls in a block that device events measure one by one."""
_BASELINE_EVENTS = 3
"""The same of a baseline, before a candidate has won anything: every candidate has it measured again."""
_MORE_ROUNDS = 2
"""Most rounds that a search adds where device events decide, which takes few, and those of one subject disagree."""
_STEADY = 1.25
"""Rounds whose times differ by more disagree."""
_WATCHED = 2
"""Calls of a block whose answers are compared."""
AGAIN = "eager:again"
"""Eager a second time in every round: how far two measurements of the same thing lie apart."""


class Rejected(Exception):
    """The candidate is out; `verdict` says why."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.status)
        self.verdict = verdict


@dataclass(frozen=True)
class Step:
    """Contents for a set, a call on it, and what is compared afterwards."""

    drawn: Drawn
    change: str = "plain"
    keep: bool = False
    """Remember the answer,"""
    recall: bool = False
    """and compare this one with it, bit by bit."""


@dataclass(frozen=True)
class Build:
    """A candidate, its plan, its tunables and one artifact for each workload."""

    task: Task
    candidate: Candidate
    plan: Plan
    tunables: Mapping[str, int]
    artifacts: Mapping[str, Artifact]

    @property
    def native(self) -> bool:
        """Whether code of the candidate runs on the host, in the worker's process."""
        return self.candidate.target == "cpu" or self.candidate.form != "kernel"


class Trial:
    """Checks and timings of one candidate in one worker."""

    def __init__(
        self, room: Courtroom, build: Build, peer: Peer, device: Device, rng: random.Random, call_timeout_s: float
    ) -> None:
        self.room, self.task, self.build = room, room.task, build
        self.peer, self.device, self.rng, self.call_timeout_s = peer, device, rng, call_timeout_s
        self.events = device.target == "cuda" and not build.native
        """Whether device events of our own runner decide; else this side's clock does."""
        self.in_a_row = self.events
        """Whether a check makes calls on several sets at one request."""
        self.deterministic = True
        self.witness: int | None = None
        """A set on which no call is made, and which must stay as it is."""
        self.overhead = 0.0
        self._fresh: set[int] = set()
        """Sets on which no call of the candidate was made since their contents were written."""
        self._cpu_s = 0.0
        self._processes = 1
        self.torch = build.candidate.form != "kernel"
        self._loaded: set[str] = set()

    # ------------------------------------------------------------ talking to the worker

    def _ask(
        self, workload: Workload, operation: str, timeout_s: float, *descriptors: int, **fields: Any
    ) -> dict[str, Any]:
        return self._timed(workload, operation, timeout_s, *descriptors, **fields)[1]

    def _timed(
        self, workload: Workload, operation: str, timeout_s: float, *descriptors: int, **fields: Any
    ) -> tuple[float, dict[str, Any]]:
        """A request and the seconds it took. Native code runs while the clock does, and never else."""
        if self.build.native:
            self._stood_still(workload)
        start = time.perf_counter()
        try:
            if self.build.native:
                self.peer.thaw()
            reply = self.peer.ask(operation, timeout_s, descriptors, **fields)
            seconds = time.perf_counter() - start
            if self.build.native:
                self.peer.freeze()
                self._cpu_s = self.peer.cpu_seconds()
        except PeerTimedOut as exc:
            raise Rejected(TimedOut(stage=f"{operation} on {workload.name}", seconds=exc.seconds)) from exc
        except PeerBabbled as exc:
            raise Rejected(Cheated(rule="protocol", evidence=f"{workload.name}: {exc} in {operation}")) from exc
        except PeerMoved as exc:
            raise Rejected(Cheated(rule="work outside the call", evidence=f"{workload.name}: {exc}")) from exc
        except PeerDied as exc:
            raise Rejected(LaunchFailed(workload=workload.name, reason=f"worker {exc} in {operation}")) from exc
        if "error" in reply:
            raise Rejected(_failure(workload, reply))
        if self.torch and self.device.target == "cuda":
            self._gpu_idle(workload)
        return seconds, reply

    def _gpu_idle(self, workload: Workload) -> None:
        """Refuse a torch source that has the GPU at work after it has answered: SIGSTOP does not reach there."""
        waited = self.room.ask("idle")["seconds"]
        if waited * 1e3 > BUSY_MS:
            evidence = f"{workload.name}: the GPU was busy for {waited * 1e3:.2f} ms after the answer"
            raise Rejected(Cheated(rule="work outside the call", evidence=evidence))

    def _stood_still(self, workload: Workload) -> None:
        """Refuse a worker that computed while it was frozen: a timer can wake a stopped process."""
        used = self.peer.cpu_seconds() - self._cpu_s if self._cpu_s else 0.0
        if used > _IDLE_S:
            evidence = f"{workload.name}: {used * 1e3:.2f} ms of CPU time while no call was asked for"
            raise Rejected(Cheated(rule="work outside the call", evidence=evidence))

    def attach(self) -> None:
        """Map the arena, and learn what a request without calls costs before any code of the candidate is there."""
        first = self.task.workloads[0]
        self.room.require(self.arena_bytes())
        self._ask(first, "attach", _COPY_TIMEOUT_S, self.room.arena, bytes=self.room.arena_bytes)
        self.overhead = min(self._timed(first, "time", _COPY_TIMEOUT_S, turns=[], flush=False)[0] for _ in range(9))
        self._processes = len(self.peer.processes())

    def arena_bytes(self) -> int:
        """Of the largest workload."""
        return max(self._layout(w, self._resolved(w)).total for w in (*self.task.workloads, *self.task.held_out))

    def _layout(self, workload: Workload, plan: ResolvedPlan) -> Layout:
        return self.room.layout(workload, plan.workspace_bytes)

    def load(self, workload: Workload) -> None:
        """Load the workload's specialisation, anew if it was loaded before: device globals start afresh."""
        artifact = self.build.artifacts[workload.name]
        timeout_s = _TORCH_BUILD_TIMEOUT_S if self.torch else self.call_timeout_s + _LOAD_S
        if artifact.sha256 in self._loaded and self.build.native:
            return
        with artifact.path.open("rb") as image:
            self._ask(
                workload,
                "load",
                timeout_s,
                image.fileno(),
                key=artifact.sha256,
                entry=self.task.name,
                form=self.build.candidate.form,
                module=self.task.module.model_dump(mode="json") if self.task.module else None,
            )
        self._loaded.add(artifact.sha256)

    def bind(self, workload: Workload) -> None:
        """Lay out the arena for a workload, and prepare a call on each set."""
        plan = self._resolved(workload)
        self.layout = self._layout(workload, plan)
        self.witness = self.rng.randrange(self.layout.sets) if self.layout.sets > 2 else None
        self.room.lay(workload, self.layout)
        self._ask(workload, "bind", _COPY_TIMEOUT_S, **self.binding(workload, plan))

    def bind_beside(self, workload: Workload, other: Trial) -> None:
        """Bind this and another candidate to the same sets."""
        plans = [trial._resolved(workload) for trial in (self, other)]
        largest = max(plans, key=lambda plan: plan.workspace_bytes)
        self.layout = other.layout = self._layout(workload, largest)
        self.room.lay(workload, self.layout)
        for trial, plan in zip((self, other), plans, strict=True):
            trial._ask(workload, "bind", _COPY_TIMEOUT_S, **trial.binding(workload, plan))

    def single_call(self, workload: Workload, drawn: Drawn, artifact: Artifact | None) -> Call:
        """One set with a draw in it, and all that another worker must be told to make a call on it."""
        plan = self._resolved(workload)
        self.layout = self._layout(workload, plan)
        self.room.lay(workload, self.layout)
        self._refresh([], drawn, "plain", watched=[0])
        artifact = artifact or self.build.artifacts[workload.name]
        bind = self.binding(workload, plan)
        return Call(
            workload=workload.name,
            artifact=artifact.path,
            load={"key": artifact.sha256, "entry": self.task.name, "form": self.build.candidate.form},
            bind=bind | {"key": artifact.sha256, "sets": bind["sets"][:1]},
            outputs=len(self.task.outputs),
            arena=self.room.arena,
            arena_bytes=self.room.arena_bytes,
        )

    def binding(self, workload: Workload, plan: ResolvedPlan) -> dict[str, Any]:
        """The fields of a bind request."""
        return {
            "key": self.build.artifacts[workload.name].sha256,
            "sets": [self.layout.offsets(i) for i in range(self.layout.sets)],
            "workspace": self.layout.workspace,
            "outputs": len(self.task.outputs),
            "tensors": [
                {"size": nbytes(t, workload), "shape": shape_of(t, workload), "dtype": dtype_of(t, workload)}
                for t in self.task.tensors
            ],
            "scalars": _scalars(self.task, workload),
            "plan": _wired(plan, self.task),
        }

    def _resolved(self, workload: Workload) -> ResolvedPlan:
        if self.torch:
            return ResolvedPlan(launches=(), workspace_bytes=0, zero_workspace=False, tensormaps=())
        try:
            return resolve(self.build.plan, self.task, workload, self.build.tunables, self.device)
        except PlanError as exc:
            raise Rejected(LaunchFailed(workload=workload.name, reason=str(exc))) from exc

    # ------------------------------------------------------------ correctness

    def check(self, workload: Workload, draws: list[Drawn]) -> list[Check]:
        """Under the same pointers always new data; a set on which no call is made is watched.

        Native code is asked for one call at a time. Our own runner makes calls on several sets in a row, since on a
        GPU the turn of another process costs as much as a call.
        """
        timed = workload in self.task.workloads
        free = self.rng.sample(self._usable(), len(self._usable()))
        witness = self.witness if self.witness is not None else free.pop() if len(free) > 1 else None
        if witness is not None:
            self._refresh([], draws[0], "mixed", watched=[witness])
        lanes = _side_by_side(draws, timed, len(free)) if self.in_a_row else [_one_by_one(draws, timed)]
        checks: list[Check] = []
        for steps in itertools.zip_longest(*lanes):
            turn = {index: step for index, step in zip(free, steps, strict=False) if step is not None}
            checks += self._turn(workload, turn, witness)
        self._alone(workload)
        return checks

    def _usable(self) -> list[int]:
        """The sets on which calls are made."""
        return [i for i in range(self.layout.sets) if i != self.witness]

    def _alone(self, workload: Workload) -> None:
        """Refuse processes that a kernel left behind; a torch source may have some of its compiler."""
        left = len(self.peer.processes()) - self._processes if self.build.native and not self.torch else 0
        if left > 0:
            evidence = f"{workload.name}: {left} process(es) left running after the call"
            raise Rejected(Cheated(rule="work outside the call", evidence=evidence))

    def _turn(self, workload: Workload, turn: dict[int, Step], witness: int | None) -> list[Check]:
        """One call on each set of `turn`; the checks of those whose contents are as they were drawn."""
        self.room.ask("refresh", steps=[self._write([], step.drawn, step.change, [i]) for i, step in turn.items()])
        self._ask(workload, "call", self.call_timeout_s, sets=list(turn))
        checks = self._compare(turn, witness)
        return [check for check, step in zip(checks, turn.values(), strict=True) if step.change == "plain"]

    def _refresh(self, sets: list[int], drawn: Drawn, change: str, watched: Sequence[int] = ()) -> None:
        """New contents under the same pointers; outputs are poisoned. What is `watched` can be compared afterwards."""
        self.room.ask("refresh", steps=[self._write(sets, drawn, change, watched)])

    def _write(self, sets: list[int], drawn: Drawn, change: str, watched: Sequence[int]) -> dict[str, Any]:
        by = "" if change == "plain" else self.room.stand_in(drawn)[0]
        return {"sets": sets, "watched": list(watched), "slot": drawn.slot, "change": change, "by": by}

    def _compare(self, turn: dict[int, Step], witness: int | None, called: Sequence[int] = ()) -> list[Check]:
        """Compare sets with what their contents must have become; Rejected at the first that differs.

        With `called`, the calls were those of a timed block.
        """
        steps = [{"set": index, "keep": step.keep, "recall": step.recall} for index, step in turn.items()]
        reply = self.room.ask("compare", steps=steps, witness=witness, called=list(called))
        return [
            self._compared(index, step, seen, timed=bool(called))
            for (index, step), seen in zip(turn.items(), reply["seen"], strict=True)
        ]

    def _compared(self, index: int, step: Step, seen: dict[str, Any], timed: bool) -> Check:
        drawn = step.drawn
        limits = drawn.limits if step.change == "plain" else self.room.stand_in(drawn)[1]
        self._refuse(index, drawn, seen, limits, timed)
        self.deterministic &= bool(seen["same"])
        return Check(
            workload=drawn.workload.name,
            distribution=drawn.distribution,
            error=max(error[0] for error in seen["errors"]),
            yardstick=max(row for row, _ in drawn.yardsticks),
        )

    def _refuse(
        self, index: int, drawn: Drawn, seen: dict[str, Any], limits: tuple[tuple[float, float], ...], timed: bool
    ) -> None:
        workload, distribution = drawn.workload.name, drawn.distribution

        def incorrect(rule: str, evidence: str) -> Rejected:
            return Rejected(Incorrect(workload=workload, distribution=distribution, rule=rule, evidence=evidence))

        if seen["guards"]:
            raise incorrect("out-of-bounds write", f"guard zones of {', '.join(seen['guards'])} were written")
        if seen["changed"]:
            raise incorrect("input changed", f"{', '.join(seen['changed'])} differ after the call")
        if seen["trespassed"]:
            raise incorrect("out-of-bounds write", "buffers that belong to no argument of the call were written")
        if timed and seen["unwritten"]:
            evidence = f"{workload}: {len(seen['unwritten'])} call(s) of a timed block wrote no output"
            raise Rejected(Cheated(rule="wrong when timed", evidence=evidence))
        if within(seen["errors"], limits):
            return
        evidence = self._evidence(drawn, seen["errors"], limits)
        stale = self.room.ask("stale", set=index)["errors"]
        if any(within(errors, limits[: len(errors)]) for errors in stale if errors):
            raise Rejected(
                Cheated(
                    rule="answers kept between calls",
                    evidence=f"{workload}: the answer to other data, seen before; {evidence}",
                )
            )
        if timed:
            evidence = f"{workload}: right when checked, but in a timed block {evidence}"
            raise Rejected(Cheated(rule="wrong when timed", evidence=evidence))
        raise incorrect("error", evidence)

    def _evidence(self, drawn: Drawn, errors: list[list[float]], limits: tuple[tuple[float, float], ...]) -> str:
        specs = (*self.task.outputs, *self.task.inouts)
        lines = zip(specs, errors, drawn.yardsticks, limits, strict=True)
        return next(
            _evidence(spec.name, error, yardstick, limit)
            for spec, error, yardstick, limit in lines
            if not within([error], [limit])
        )

    # ------------------------------------------------------------ timing

    def rounds(self, workload: Workload, drawn: Drawn, rounds: int, every_baseline: bool) -> Rounds:
        """Interleaved rounds of the candidate and its baselines, in random order, each call on data of its own.

        Without `every_baseline` only the fastest library call takes part, and none of the task's other baselines; and
        a candidate far behind the best gets fewer rounds.
        """
        if self.witness is not None:
            self._refresh([], drawn, "mixed", watched=[self.witness])
        names = self._baselines(workload, every_baseline)
        self._fresh = set()
        blocks = {name: self._baseline_block(workload, name, drawn) for name in names}
        blocks["candidate"] = self.candidate_block(workload, drawn)
        if every_baseline:
            blocks[AGAIN] = blocks["eager"]
        else:
            blocks = {name: self._shortened(name, block) for name, block in blocks.items()}
            rounds = self._worth(workload, blocks, rounds)
        results: dict[str, list[float]] = {subject: [] for subject in blocks}
        most = rounds + (_MORE_ROUNDS if self.events and not every_baseline else 0)
        while (done := len(results["candidate"])) < rounds or (done < most and _disagree(results)):
            for subject in self.rng.sample(list(blocks), len(blocks)):
                results[subject].append(self._block(workload, subject, blocks[subject], drawn))
        self._alone(workload)
        wall_ms = self._clocks_agree(workload, drawn, blocks["candidate"]) if self.events else None
        return Rounds(results, {subject: block.count for subject, block in blocks.items()}, wall_ms)

    def _worth(self, workload: Workload, blocks: dict[str, Block], rounds: int) -> int:
        """The rounds that a candidate's first calls have earned it."""
        first_ms = blocks["candidate"].seconds * 1e3
        best_ms = self.room.best_ms.get(workload.name, math.inf)
        if first_ms > 3 * best_ms or first_ms > 4e3 * blocks["eager"].seconds:
            return min(rounds, 2)
        return min(rounds, 2 if self.events else 3) if first_ms > 1.3 * best_ms else rounds

    def profile(self) -> dict[str, float]:
        """Seconds by kernel over a few calls, as the worker of a torch source has it: good for a label only."""
        turns = list(range(min(3, self.layout.sets)))
        reply = self._ask(self.task.workloads[-1], "profile", self.call_timeout_s, turns=turns)
        return {str(name): float(seconds) for name, seconds in dict(reply["seconds"]).items()}

    def timing(self, workload: Workload, found: Rounds) -> Timing:
        """What the rounds say; Rejected where they say more than the hardware can do."""
        measured = {
            subject: statistics.measurement(values, found.counts[subject] * len(values))
            for subject, values in found.results.items()
        }
        candidate, again = measured.pop("candidate"), measured.pop(AGAIN, None)
        self.room.latencies_ms.setdefault(workload.name, {}).update(
            {name: baseline.median_ms for name, baseline in measured.items()}
        )
        return Timing(
            workload=workload.name,
            candidate=candidate,
            baselines=measured,
            roofline_share=self._roofline_share(workload, candidate.median_ms),
            wall_ms=found.wall_ms,
            again=again,
            missing=self.room.failures[workload.name],
        )

    def _baselines(self, workload: Workload, every: bool) -> list[str]:
        names = self.room.baselines[workload.name]
        seen = self.room.latencies_ms.get(workload.name, {})
        if every or not seen:
            return names
        library = [name for name in names if name.startswith("library:")]
        return [name for name in names if name in ("eager", "compile", min(library, key=seen.__getitem__, default=""))]

    def _run(self, workload: Workload, subject: str, turns: list[int], flush: bool) -> tuple[float, list[float]]:
        """Seconds on this side's clock, and the device's milliseconds where they decide."""
        if subject == "candidate":
            seconds, reply = self._timed(workload, "time", self.call_timeout_s, turns=turns, flush=flush)
            if not _are_numbers(reply.get("events_ms")):
                evidence = f"{workload.name}: an answer without the times that were asked for"
                raise Rejected(Cheated(rule="protocol", evidence=evidence))
        else:
            name = "eager" if subject == AGAIN else subject
            start = time.perf_counter()
            reply = self.room.ask("time", _COPY_TIMEOUT_S, baseline=name, turns=turns, flush=flush)
            seconds = time.perf_counter() - start
        return seconds, [float(value) for value in reply["events_ms"]]

    def _baseline_block(self, workload: Workload, name: str, drawn: Drawn) -> Block:
        """Measured once for a task, with what a request without calls costs; each time one call to warm up."""
        known = self.room.blocks.get((workload.name, name))
        if known is None:
            overhead = min(self._run(workload, name, [], flush=False)[0] for _ in range(9))
            known = self._sized(workload, name, drawn, overhead)
            self.room.blocks[workload.name, name] = known
        else:
            first = self._usable()[:1]
            self._fill(name, first, drawn)
            self._run(workload, name, first, flush=False)
        return known

    def _shortened(self, subject: str, block: Block) -> Block:
        fewer = self.events and subject != "candidate"
        return replace(block, count=min(block.count, _BASELINE_EVENTS)) if fewer else block

    def candidate_block(self, workload: Workload, drawn: Drawn) -> Block:
        """What a block of the candidate's calls is, after its first ones."""
        return self._sized(workload, "candidate", drawn, self.overhead)

    def block(self, workload: Workload, block: Block, drawn: Drawn) -> float:
        """Milliseconds per call over one block of the candidate's calls."""
        return self._block(workload, "candidate", block, drawn)

    def _sized(self, workload: Workload, subject: str, drawn: Drawn, overhead: float) -> Block:
        """How many calls make a block: enough to be measured, none on data that another call has seen."""
        block_s = _BLOCK_S[self.events]
        usable = len(self._usable())
        most = min(usable, _EVENTS) if self.events else usable
        seconds = self._first_calls(workload, subject, drawn, overhead, 1)
        if seconds < block_s / 4 and most > 1:
            seconds = self._first_calls(workload, subject, drawn, overhead, min(3 if self.events else 8, most))
        elif seconds < 10 * block_s and self.events:
            # The first call after a module was loaded can be the slow one.
            seconds = self._first_calls(workload, subject, drawn, overhead, 1)
        return Block(count=max(1, min(most, math.ceil(block_s / seconds))), overhead=overhead, seconds=seconds)

    def _first_calls(self, workload: Workload, subject: str, drawn: Drawn, overhead: float, count: int) -> float:
        """Seconds per call."""
        turns = self._usable()[:count]
        self._fill(subject, turns, drawn)
        seconds, events = self._run(workload, subject, turns, flush=self.events)
        return max(_typical(subject, events) / 1e3 if self.events else (seconds - overhead) / count, 1e-6)

    def _block(self, workload: Workload, subject: str, block: Block, drawn: Drawn) -> float:
        """Milliseconds per call over one block. What some of its calls, drawn at random, left behind is compared."""
        turns = self.rng.sample(self._sets_for(subject, block.count), block.count)
        # Half of a block at most, as long as a call of it is watched.
        watched = self.rng.sample(turns, min(_WATCHED, max(1, block.count // 2))) if subject == "candidate" else []
        self._fill(subject, turns, drawn, watched)
        if self.device.target == "cpu":
            time.sleep(_SETTLE_S)
        seconds, events = self._run(workload, subject, turns, flush=self.events)
        if watched:
            self._compare({index: Step(drawn, "mixed") for index in watched}, self.witness, called=turns)
        if not self.events:
            return max(seconds - block.overhead, 1e-7) / block.count * 1e3
        if len(events) != block.count:
            raise Rejected(Cheated(rule="protocol", evidence=f"{len(events)} events for {block.count} calls"))
        return _typical(subject, events)

    def _sets_for(self, subject: str, count: int) -> list[int]:
        """A baseline takes the sets that are fresh already, where there are enough of them."""
        return sorted(self._fresh) if self._shares(subject) and len(self._fresh) >= count else self._usable()

    def _fill(self, subject: str, sets: list[int], drawn: Drawn, watched: Sequence[int] = ()) -> None:
        """Contents for a block. The candidate's are new; baselines, which keep nothing, can share what is fresh."""
        if self._shares(subject):
            sets = [i for i in sets if i not in self._fresh]
            self._fresh.update(sets)
        else:
            self._fresh.clear()
        if sets:
            self._refresh([i for i in sets if i not in watched], drawn, "mixed", watched)

    def _shares(self, subject: str) -> bool:
        """Not where a call changes its inputs, nor where caches are as warm as the last write has left them."""
        return subject != "candidate" and self.events and not self.task.inouts

    def _clocks_agree(self, workload: Workload, drawn: Drawn, block: Block) -> float:
        """The judge's wall-clock slope per call, ms; Rejected where device events claim clearly less."""
        usable = self._usable()
        self._refresh(usable, drawn, "mixed")

        def run(count: int) -> tuple[float, float]:
            turns = [usable[i % len(usable)] for i in range(count)]
            seconds, events = self._run(workload, "candidate", turns, flush=False)
            return seconds, events[0]

        wall_ms, events_ms, agree = _slopes(run, math.ceil(_SLOPE_S / block.seconds))
        if not agree:
            evidence = f"{workload.name}: events say {events_ms:.4f} ms a call, the judge's clock {wall_ms:.4f} ms"
            raise Rejected(Cheated(rule="clocks disagree", evidence=evidence))
        return wall_ms

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


def _one_by_one(draws: list[Drawn], timed: bool) -> list[Step]:
    """Each draw, the first with a stretch exchanged, the first again: all on one set.

    Who keeps answers on workloads that are not timed gains nothing, so those have their first draw repeated once.
    """
    first = draws[0]
    # Right behind the data that they resemble: who keeps one answer only has that one.
    steps = [Step(first, keep=True), Step(first, "patched"), *map(Step, draws[1:]), Step(first, recall=True)]
    return [*steps, Step(first, "moved"), Step(first), Step(first, "patched")] if timed else steps


def _side_by_side(draws: list[Drawn], timed: bool, sets: int) -> list[list[Step]]:
    """The same steps over up to so many sets, which take turns: what resembles each other on one set, or in a row.

    Where no time can be won, one lane does for all that resembles the first draw.
    """
    first = draws[0]
    lanes = [[Step(first, keep=True), Step(first, "moved" if timed else "patched"), Step(first, recall=True)]]
    if timed:
        # Called right behind those of the first lane: who keeps one answer, of any set, has one that resembles it.
        lanes.append([Step(first, "patched"), Step(first), Step(first, "patched")])
    others = max(1, min(sets - len(lanes), len(draws) - 1))
    lanes += [[Step(drawn) for drawn in draws[1 + i :: others]] for i in range(others)]
    return [[step for lane in lanes[i::sets] for step in lane] for i in range(min(sets, len(lanes)))]


@dataclass(frozen=True)
class Rounds:
    """Milliseconds per call, by subject and round."""

    results: dict[str, list[float]]
    counts: dict[str, int]
    """Calls of each subject in a round."""
    wall_ms: float | None

    def and_then(self, later: Rounds) -> Rounds:
        """With the rounds of another process behind."""
        joined = {subject: values + later.results.get(subject, []) for subject, values in self.results.items()}
        return Rounds(joined, self.counts, self.wall_ms)


def _typical(subject: str, events_ms: Sequence[float]) -> float:
    """The mean of a candidate's block: a median would let one call do the work of others. Baselines are trusted.

    Their median leaves out the call in which the host that queues it was late.
    """
    return fmean(events_ms) if subject == "candidate" else median(events_ms)


def _disagree(results: Mapping[str, Sequence[float]]) -> bool:
    """Whether a round lies so far from another of the same subject that it says nothing about it."""
    return any(max(rounds) > _STEADY * min(rounds) for rounds in results.values())


def _slopes(run: Callable[[int], tuple[float, float]], count: int) -> tuple[float, float, bool]:
    """Milliseconds per call by this side's clock and by the events, and whether they agree; the last try's if never.

    `run` makes so many calls, and returns the seconds of the request and the milliseconds between its events.
    """
    wall_ms = events_ms = 0.0
    # A host that is late is late by so much, whatever it waits for; who hides work hides some of every call.
    for times in (1, 4, 16):
        calls = max(1, min(_SLOPE_CALLS, times * count))
        ones, twos = [], []
        for _ in range(5):
            ones.append(run(calls))
            twos.append(run(2 * calls))
            (one, events_one), (two, events_two) = min(ones), min(twos)
            wall_ms, events_ms = (two - one) / calls * 1e3, (events_two - events_one) / calls
            if events_ms >= wall_ms - max(0.1 * wall_ms, 0.01):
                return wall_ms, events_ms, True
    return wall_ms, events_ms, False


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, float | int) for value in values)


def _failure(workload: Workload, reply: dict[str, Any]) -> Verdict:
    reason = str(reply["error"])[:8000]
    if reply.get("stage") == "build":
        return BuildFailed(log=reason)
    return LaunchFailed(workload=workload.name, reason=reason[:2000])


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
