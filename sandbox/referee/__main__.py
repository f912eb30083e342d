"""The referee process: `python -m sandbox.referee SOCKET LIFELINE DEVICE`, spoken to as a worker is.

Operations: open, prepare, make_arena, lay, refresh, compare, stale, baselines, time, drop, peaks. A slot is one drawn
input with what is expected of it; slots never leave this process. Inputs leave by way of the arena (arena.py), in which
this process alone writes and reads on the judge's behalf.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sandbox.contract import Task, Workload
from sandbox.referee import baselines, oracle
from sandbox.referee.arena import Arena, Segment, holds, patched, rolled, write
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


@dataclass(frozen=True)
class Content:
    """What this side wrote into a set: a slot's values, piece by piece, and what a call must make of them."""

    slot: Slot
    pieces: list[list[Segment]]
    expected: list[Tensor] | None
    """None where nobody will ask."""


class Referee:
    """State of the process: the task, its reference, the slots, the arena and what stands in it."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.slots: dict[str, Slot] = {}
        self.arena: Arena | None = None
        self.workload: Workload | None = None
        self.content: dict[int, Content] = {}
        self.before: dict[int, list[Tensor]] = {}
        """Expected outputs of what stood in a set before."""
        self.kept: list[Tensor] = []
        self.leads: dict[tuple[str, str], int] = {}

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
        return {
            "yardsticks": [oracle.distance(got, want) for got, want in zip(reached, wanted, strict=True)],
            "trivial": self._trivial(values, wanted, other, workload) if request["admit"] else {},
        }

    def _draw(self, workload: Workload, distribution: str, seed: int) -> list[Tensor]:
        own = getattr(self.module, "draw", None)
        if own is None:
            return draw(self.task, workload, distribution, seed, self.device)
        return [value.contiguous() for value in own(seed, distribution, self.device)]

    def _trivial(
        self, values: list[Tensor], wanted: list[Tensor], other: list[Tensor], workload: Workload
    ) -> dict[str, Any]:
        """Errors of the answers that need no kernel, on every output; in-outs are compared with what they were."""
        outputs = len(self.task.outputs)
        guesses = {
            "zeros": [torch.zeros_like(want) for want in wanted[:outputs]],
            "a constant": [torch.full_like(want, float(want.double().mean())) for want in wanted[:outputs]],
        }
        for spec, value in zip((*self.task.inouts, *self.task.inputs), values, strict=True):
            if value.is_floating_point() and all(value.shape == want.shape for want in wanted[:outputs]):
                guesses[f"a copy of {spec.name}"] = [value] * outputs
        answer = oracle.achieved(self.task, self.module.reference, other, workload)
        guesses["the answer to other inputs"] = answer[:outputs]
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
        """Write inputs into sets and poison their outputs.

        `expect` is the set that will be compared, `by` the baseline whose answer counts where no oracle was asked.
        """
        for index, slot, change, at, tensor in request["sets"]:
            by = request["by"] if index == request["expect"] else ""
            self._write(index, self.slots[slot], change, at, tensor, by)
        self._synchronise()
        return {}

    def _write(self, index: int, slot: Slot, change: str, at: float, tensor: int, by: str) -> None:
        assert self.arena is not None
        known = self.content.get(index)
        if known is not None and known.expected is not None:
            self.before[index] = known.expected
        rigid = getattr(self.module, "rigid", ())
        pieces = [
            _pieces(value, "plain" if i in rigid else change, at, tensor == i) for i, value in enumerate(slot.values)
        ]
        outputs = len(self.task.outputs)
        for target, value, segments in zip(self.arena.tensors[index][outputs:], slot.values, pieces, strict=True):
            write(target, value, segments)
        self.arena.poison(index, outputs)
        expected = slot.expected if change == "plain" else self._by(by, index, slot) if by else None
        self.content[index] = Content(slot, pieces, expected)

    def _by(self, baseline: str, index: int, slot: Slot) -> list[Tensor]:
        """What a baseline makes of a set as it stands."""
        assert self.arena is not None
        values = self.arena.tensors[index][len(self.task.outputs) :]
        return oracle.achieved(self.task, self.functions[baseline], values, slot.workload)

    def compare(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Judge what stands in a set: errors, damaged guards, changed inputs, what was done to another set."""
        assert self.arena is not None
        index = request["set"]
        content, tensors = self.content[index], self.arena.tensors[index]
        assert content.expected is not None
        results = tensors[: len(content.expected)]
        scales = content.slot.scales if content.expected is content.slot.expected else [None] * len(results)
        triples = zip(results, content.expected, scales, strict=True)
        errors = [oracle.distance(got, want, scale) for got, want, scale in triples]
        kept, self.kept = self.kept, [tensor.clone() for tensor in results] if request.get("keep") else self.kept
        return {
            "errors": errors,
            "guards": self.arena.broken_guards([tensor.name for tensor in self.task.tensors]),
            "changed": self._changed(index),
            "trespassed": self._trespassed(request.get("witness")),
            "same": all(torch.equal(_raw(a), _raw(b)) for a, b in zip(kept, results, strict=True))
            if request.get("recall")
            else True,
        }

    def stale(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """How far a set's outputs are from what its contents before should have given; nothing where nobody knows."""
        assert self.arena is not None
        before = self.before.get(request["set"], [])[: len(self.task.outputs)]
        results = self.arena.tensors[request["set"]]
        return {"errors": [oracle.distance(got, old) for got, old in zip(results, before, strict=False)]}

    def _changed(self, index: int) -> list[str]:
        assert self.arena is not None
        content, skipped = self.content[index], len(self.task.inouts)
        given = self.arena.tensors[index][len(self.task.outputs) + skipped :]
        pieces, values = content.pieces[skipped:], content.slot.values[skipped:]
        return [
            spec.name
            for spec, target, value, segments in zip(self.task.inputs, given, values, pieces, strict=True)
            if not holds(target, value, segments)
        ]

    def _trespassed(self, witness: int | None) -> bool:
        """Whether a set that no call was made on has changed."""
        assert self.arena is not None
        if witness is None or witness not in self.content:
            return False
        return bool(self._changed(witness)) or not self.arena.poisoned(witness, len(self.task.outputs))

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


def _raw(value: Tensor) -> Tensor:
    return value.reshape(-1).view(torch.uint8)


def _pieces(value: Tensor, change: str, at: float, chosen: bool) -> list[Segment]:
    """How a drawn value is put together in a set. Integers are positions and lengths, and stay where they are."""
    if change == "rolled" and value.is_floating_point():
        return rolled(value.numel(), at)
    if change == "patched" and chosen:
        return patched(value.numel(), at, 0.01)
    return [(0, 0, value.numel())]


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
