"""The referee process: `python -m sandbox.referee SOCKET LIFELINE DEVICE`, spoken to as a worker is.

Operations: open, prepare, make_arena, lay, refresh, compare, stale, baselines, time, idle, look, drop, peaks. A slot
is one drawn input with what is expected of it; slots never leave this process. Inputs leave by way of the arena
(arena.py), in which this process alone writes and reads on the judge's behalf.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sandbox.contract import Task, Workload
from sandbox.referee import baselines, conditions, oracle
from sandbox.referee.arena import Arena, mix, move, patch, same_bits, twice
from sandbox.referee.inputs import draw
from sandbox.worker import wire
from sandbox.worker.layout import lay_out


@dataclass(frozen=True)
class Slot:
    """Drawn values (in-outs, inputs) and what a call must make of them (outputs, in-outs)."""

    workload: Workload
    values: list[Tensor]
    expected: list[Tensor]
    scales: list[oracle.Scale]
    doubled: dict[int, Tensor] = field(default_factory=dict)
    """By position, the values that were changed so far, twice in a row."""

    def twice(self, i: int) -> Tensor:
        if i not in self.doubled:
            self.doubled[i] = twice(self.values[i])
        return self.doubled[i]


@dataclass(frozen=True)
class Content:
    """What this side wrote into a set, and what a call must make of it."""

    slot: Slot
    values: list[Tensor]
    expected: list[Tensor]


CHANGES = {"mixed": mix, "moved": move, "patched": patch}


class Referee:
    """State of the process: the task, its reference, the slots, the arena and what stands in it."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.slots: dict[str, Slot] = {}
        self.arena: Arena | None = None
        self.workload: Workload | None = None
        self.content: dict[int, Content] = {}
        """Of the sets that are watched, in memory of this process alone."""
        # Never seeded from the outside: what can be replayed can be known.
        self.rng = random.Random(secrets.randbits(128))
        self.before: dict[int, list[Tensor]] = {}
        """Expected outputs of what stood in a set before."""
        self.kept: list[Tensor] = []
        self.leads: dict[tuple[str, str], int] = {}
        self.nvml: tuple[tuple[Any, Any] | None] | None = None
        """What was found when it was first asked for, which may be nothing."""

    def open(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Load a task."""
        self.task = Task.model_validate_json(request["task"])
        self.module = oracle.load_reference(self.task)
        self.functions = baselines.functions(self.task, self.module)
        self.slots.clear()
        return {"torch": str(torch.__version__)}

    def prepare(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Draw inputs; answer the yardsticks of outputs and in-outs, and how far trivial answers are off."""
        workload = Workload.model_validate(request["workload"])
        values = self._draw(workload, request["distribution"], request["seed"])
        wanted = oracle.expected(self.task, self.module, values, workload)
        reached = oracle.achieved(self.task, self.module.reference, values, workload)
        scales = [oracle.scale(want) for want in wanted]
        self.slots[request["slot"]] = Slot(workload, values, wanted, scales)
        other = self._draw(workload, request["distribution"], request["seed"] + 1) if request["admit"] else []
        shaken = oracle.expected(
            self.task, self.module, self._shaken(values, 64.0 if request["distribution"] == "large" else 1.0), workload
        )
        pairs = zip(reached, shaken, wanted, scales, strict=True)
        return {
            "yardsticks": [oracle.yardstick(own, nearby, want, scale) for own, nearby, want, scale in pairs],
            "trivial": self._trivial(values, wanted, other, workload) if request["admit"] else {},
        }

    def _draw(self, workload: Workload, distribution: str, seed: int) -> list[Tensor]:
        own = getattr(self.module, "draw", None)
        if own is None:
            return draw(self.task, workload, distribution, seed, self.device)
        return [value.contiguous() for value in own(seed, distribution, self.device, workload.axes)]

    def _shaken(self, values: list[Tensor], units: float) -> list[Tensor]:
        """The same inputs, floating-point ones in float64 and each off by up to so many units in float32's last place.

        Large scores make much of the order of a sum, so more is allowed there: they are for finding overflows.
        """
        return [
            value.double() * (1 + (torch.rand_like(value, dtype=torch.float64) * 2 - 1) * units * 2.0**-23)
            if value.is_floating_point()
            else value.clone()
            for value in values
        ]

    def _trivial(
        self, values: list[Tensor], wanted: list[Tensor], other: list[Tensor], workload: Workload
    ) -> dict[str, Any]:
        """Errors of the answers that need no kernel, on every output; in-outs are compared with what they were."""
        outputs = len(self.task.outputs)
        answer = oracle.achieved(self.task, self.module.reference, other, workload)[:outputs]
        guesses = {
            "zeros": [torch.zeros_like(want) for want in wanted[:outputs]],
            # The mean of other answers: a single number would be its own.
            "a constant": [
                torch.full_like(want, float(known.double().mean())) for want, known in zip(wanted, answer, strict=False)
            ],
            "the answer to other inputs": answer,
        }
        for spec, value in zip((*self.task.inouts, *self.task.inputs), values, strict=True):
            if value.is_floating_point() and all(value.shape == want.shape for want in wanted[:outputs]):
                guesses[f"a copy of {spec.name}"] = [value] * outputs
        unchanged = values[: len(self.task.inouts)]
        return {
            name: [oracle.distance(got, want) for got, want in zip([*guess, *unchanged], wanted, strict=True)]
            for name, guess in guesses.items()
        }

    def make_arena(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """A new arena of at least `bytes`; its descriptor goes out over the socket that came along."""
        if self.arena is not None:
            self.content.clear()
            self.before.clear()
            self.arena.release()
        self.arena = Arena(self.device, request["bytes"])
        with socket.socket(fileno=os.dup(descriptors[0])) as out:
            socket.send_fds(out, [b"x"], [self.arena.descriptor])
        return {"bytes": self.arena.size}

    def lay(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Lay the arena out for a workload."""
        assert self.arena is not None
        self.workload = Workload.model_validate(request["workload"])
        self.content.clear()
        self.before.clear()
        self.arena.lay(self.task, self.workload, lay_out(request["sizes"], request["sets"], request["workspace_bytes"]))
        self._synchronise()
        return {}

    def refresh(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Write inputs into the sets of each step and poison their outputs.

        What the sets `watched` hold is remembered, and what the baseline `by` (the oracle, if empty) makes of it.
        """
        for step in request["steps"]:
            slot, change = self.slots[step["slot"]], step["change"]
            for index in step["sets"]:
                self._write(index, slot, change)
            for index in step["watched"]:
                self._write_watched(index, slot, change, step["by"])
        assert self.arena is not None
        self.arena.poison_workspace()
        self._synchronise()
        return {}

    def _write(self, index: int, slot: Slot, change: str) -> None:
        """Contents that nobody will ask about are made where they are to stand."""
        assert self.arena is not None
        outputs = len(self.task.outputs)
        self._fill(self.arena.tensors[index][outputs:], slot, change)
        self.arena.poison(index, outputs)
        self.content.pop(index, None)

    def _write_watched(self, index: int, slot: Slot, change: str, by: str) -> None:
        assert self.arena is not None
        if known := self.content.get(index):
            self.before[index] = known.expected
        values, outputs = slot.values, len(self.task.outputs)
        if change != "plain":
            values = [torch.empty_like(value) for value in slot.values]
            self._fill(values, slot, change)
        for target, value in zip(self.arena.tensors[index][outputs:], values, strict=True):
            target.copy_(value)
        self.arena.poison(index, outputs)
        expected = slot.expected if not by else oracle.achieved(self.task, self.functions[by], values, slot.workload)
        self.content[index] = Content(slot, values, expected)

    def _fill(self, targets: list[Tensor], slot: Slot, change: str) -> None:
        """Integers are positions and lengths, and stay where they are; so does what a task calls rigid."""
        rigid = getattr(self.module, "rigid", ())
        loose = [i for i, value in enumerate(slot.values) if value.is_floating_point() and i not in rigid]
        changed = [] if change == "plain" else loose
        for i, (target, value) in enumerate(zip(targets, slot.values, strict=True)):
            if i not in changed:
                target.copy_(value)
            else:
                CHANGES[change](target, slot.twice(i), self.rng)

    def compare(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Judge what stands in the set of each step: errors, changed inputs; and damage to guards and other sets."""
        assert self.arena is not None
        outputs, steps = len(self.task.outputs), request["steps"]
        recalled = [self._recalled(step) for step in steps]
        unchanged = [self._unchanged(step["set"]) for step in steps]
        (intact,), left_alone, *seen = _seen(
            [self.arena.intact()], self._left_alone(request["witness"]), *unchanged, *recalled
        )
        shared = {
            "guards": [] if intact else self.arena.broken_guards([tensor.name for tensor in self.task.tensors]),
            "trespassed": not all(left_alone),
            "unwritten": self.arena.unwritten(request["called"], outputs, self.rng),
        }
        errors = iter(oracle.distances(pair for step in steps for pair in self._beside_expected(step["set"])))
        return {
            "seen": [
                {
                    "errors": list(itertools.islice(errors, len(self.content[step["set"]].expected))),
                    "changed": [spec.name for spec, own in zip(self.task.inputs, kept, strict=True) if not own],
                    "same": all(same),
                    **shared,
                }
                for step, kept, same in zip(steps, seen[: len(steps)], seen[len(steps) :], strict=True)
            ]
        }

    def _results(self, index: int) -> list[Tensor]:
        """Outputs and in-outs of a set."""
        assert self.arena is not None
        return self.arena.tensors[index][: len(self.content[index].expected)]

    def _recalled(self, step: dict[str, Any]) -> list[Tensor]:
        """By result of a step's set, whether it is what was kept; keep it where that is asked for."""
        results = self._results(step["set"])
        same = list(map(same_bits, self.kept, results)) if step["recall"] else []
        if step["keep"]:
            self.kept = [tensor.clone() for tensor in results]
        return same

    def _beside_expected(self, index: int) -> Iterator[tuple[Tensor, Tensor, oracle.Scale | None]]:
        """The results of a set beside what they must be, and the scale of that where it is known."""
        content = self.content[index]
        known = content.slot.scales if content.expected is content.slot.expected else itertools.repeat(None)
        return zip(self._results(index), content.expected, known, strict=False)

    def stale(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """How far a set's outputs are from what should have come of earlier contents, or of those of other sets."""
        outputs, index = len(self.task.outputs), request["set"]
        elsewhere = [content.expected for at, content in self.content.items() if at != index]
        known = [*self.before.values(), *elsewhere]
        results = self._results(index)[:outputs]
        return {
            "errors": [
                oracle.distances((got, old, None) for got, old in zip(results, answer, strict=False))
                for answer in known
            ]
        }

    def _unchanged(self, index: int) -> list[Tensor]:
        """By input of a set, whether it is what it was."""
        assert self.arena is not None
        skipped = len(self.task.inouts)
        given = self.arena.tensors[index][len(self.task.outputs) + skipped :]
        return list(map(same_bits, given, self.content[index].values[skipped:]))

    def _left_alone(self, witness: int | None) -> list[Tensor]:
        """Of a set that no call was made on, whether it is what it was."""
        assert self.arena is not None
        if witness is None or witness not in self.content:
            return []
        return [*self._unchanged(witness), *self.arena.poisoned(witness, len(self.task.outputs))]

    def baselines(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Which baselines run on a slot, how far they are from the oracle, and why the others do not."""
        slot = self.slots[request["slot"]]
        errors: dict[str, list[tuple[float, float]]] = {}
        failures: dict[str, str] = {}
        for name, function in self.functions.items():
            try:
                reached = oracle.achieved(self.task, function, slot.values, slot.workload)[: len(self.task.outputs)]
            # A library backend may refuse a shape in any way it likes; that is an answer, not a fault.
            except Exception as exc:  # noqa: BLE001
                failures[name] = f"{type(exc).__name__}: {exc}".splitlines()[0][:300]
                continue
            errors[name] = [oracle.distance(got, want) for got, want in zip(reached, slot.expected, strict=False)]
        return {"errors": errors, "failures": failures}

    def time(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """One baseline on each set of `turns`; device times with `flush` on cuda, else the judge's clock decides."""
        assert self.workload is not None
        assert self.arena is not None
        name, outputs = request["baseline"], len(self.task.outputs)
        function = self.functions[name]
        turns = [self.arena.tensors[index][outputs:] for index in request["turns"]]
        if self.device == "cuda" and request["flush"]:
            return {"events_ms": baselines.device_times(function, turns, self.workload, self._leads(name, turns))}
        baselines.run(function, turns, self.workload)
        self._synchronise()
        return {"events_ms": []}

    def _leads(self, name: str, turns: list[list[Tensor]]) -> int:
        """Measured once, on copies: a call may change in-outs."""
        assert self.workload is not None
        key = (self.workload.name, name)
        if key not in self.leads:
            values = [value.clone() for value in turns[0]]
            self.leads[key] = baselines.leads(self.functions[name], values, self.workload)
        return self.leads[key]

    def idle(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Seconds until the GPU has done next to nothing."""
        return {"seconds": conditions.idle_seconds()}

    def look(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """The GPU's clocks as they are, then how long it takes to do next to nothing."""
        if self.nvml is None:
            self.nvml = (conditions.nvml(),)
        known = conditions.clocks(*self.nvml[0]) if self.nvml[0] else {}
        return {**known, "idle_ms": conditions.idle_seconds() * 1e3}

    def drop(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Forget slots, to free memory."""
        self.content.clear()
        self.before.clear()
        for name in request["slots"]:
            self.slots.pop(name, None)
        if self.device == "cuda":
            torch.cuda.empty_cache()
        return {}

    def peaks(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """GB/s (read plus written) of a large copy and TFLOP/s of the library passed (peaks.cpp), best of several."""
        source = torch.rand(request["copy_bytes"] // 4, device=self.device)
        target = torch.empty_like(source)
        copy_s = min(self._seconds(lambda: target.copy_(source)) for _ in range(15))
        arithmetic = ctypes.CDLL(f"/proc/self/fd/{descriptors[0]}")["peaks"]
        arithmetic.restype = ctypes.c_int64
        sink, iterations = (ctypes.c_float * 16)(), ctypes.c_int64(1_000_000)
        operations = arithmetic(sink, iterations)
        arithmetic_s = min(self._seconds(lambda: arithmetic(sink, iterations)) for _ in range(10))
        return {"bandwidth_gbs": 2 * source.nbytes / copy_s / 1e9, "float32_tflops": operations / arithmetic_s / 1e12}

    def _seconds(self, action: Any) -> float:
        start = time.perf_counter()
        action()
        self._synchronise()
        return time.perf_counter() - start

    def _synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def _seen(*groups: list[Tensor]) -> list[list[bool]]:
    """The truth values of tensors in groups; a GPU is waited for once."""
    values = iter(torch.stack([flag for group in groups for flag in group]).tolist())
    return [list(itertools.islice(values, len(group))) for group in groups]


def serve(sock: socket.socket) -> None:
    """Answer requests until the connection closes; a bug in a reference ends the process with its traceback."""
    referee = Referee(sys.argv[3])
    wire.send(sock, {"ready": True})
    names = (
        "open",
        "prepare",
        "make_arena",
        "lay",
        "refresh",
        "compare",
        "stale",
        "baselines",
        "time",
        "idle",
        "look",
        "drop",
        "peaks",
    )
    operations = {name: getattr(referee, name) for name in names}
    while True:
        try:
            request, descriptors = wire.receive(sock)
        except wire.ConnectionLost:
            return
        reply = operations[request["op"]](request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        wire.send(sock, {"id": request["id"], **reply})


if __name__ == "__main__":
    wire.die_with(int(sys.argv[2]))
    serve(socket.socket(fileno=int(sys.argv[1])))
