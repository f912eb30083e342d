"""The referee process: `python -m sandbox.referee SOCKET LIFELINE DEVICE`, spoken to as a worker is.

Operations: open, prepare, compare, baselines, bind, time, drop, peaks. A slot is one drawn input with what is expected
of it; slots never leave this process, the drawn inputs leave as bytes in a memory file.
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

from sandbox.contract import Task, TensorSpec, Workload
from sandbox.referee import baselines, oracle
from sandbox.referee.inputs import DTYPES, draw
from sandbox.signature import dtype_of, nbytes, shape_of
from sandbox.worker import wire
from sandbox.worker.layout import GUARD_BYTE, GUARD_BYTES, dump_offsets, offsets


@dataclass(frozen=True)
class Slot:
    """Drawn values (in-outs, inputs) and what a call must make of them (outputs, in-outs)."""

    workload: Workload
    values: list[Tensor]
    expected: list[Tensor]


class Referee:
    """State of the process: the task, its reference, the slots, the baselines bound for timing."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.slots: dict[str, Slot] = {}
        self.sets: list[list[Tensor]] = []
        self.workload: Workload | None = None
        self.cursor = 0

    def open(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Load a task."""
        self.task = Task.model_validate_json(request["task"])
        self.module = oracle.load_reference(self.task)
        self.functions = baselines.functions(self.task, self.module)
        self.slots.clear()
        return {"torch": str(torch.__version__)}

    def prepare(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """Draw inputs into the memory file; answer the yardsticks of outputs and in-outs."""
        workload = Workload.model_validate(request["workload"])
        values = draw(self.task, workload, request["distribution"], request["seed"], self.device)
        wanted = oracle.expected(self.task, self.module, values, workload)
        reached = oracle.achieved(self.task, self.module.reference, values, workload)
        self.slots[request["slot"]] = Slot(workload, values, wanted)
        self._write(values, descriptors[0])
        return {"yardsticks": [oracle.distance(got, want) for got, want in zip(reached, wanted, strict=True)]}

    def _write(self, values: list[Tensor], descriptor: int) -> None:
        image = wire.mapped(descriptor, writable=True)
        raw = torch.frombuffer(image, dtype=torch.uint8)
        starts, _ = offsets([value.nbytes for value in values])
        for value, start in zip(values, starts, strict=True):
            raw[start : start + value.nbytes].copy_(_bytes(value))

    def compare(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """Judge a worker's dump against a slot: errors, damaged guards, changed inputs."""
        slot = self.slots[request["slot"]]
        raw = torch.frombuffer(wire.mapped(descriptors[0], writable=True), dtype=torch.uint8)
        names = [tensor.name for tensor in self.task.tensors] + ["workspace"] * bool(request["workspace_bytes"])
        sizes = [nbytes(tensor, slot.workload) for tensor in self.task.tensors]
        sizes += [request["workspace_bytes"]] * bool(request["workspace_bytes"])
        starts, _ = dump_offsets(sizes)
        regions = dict(zip(names, zip(starts, sizes, strict=True), strict=True))
        return {
            "errors": [
                oracle.distance(self._tensor(raw, spec, slot.workload, regions[spec.name][0]), want)
                for spec, want in zip((*self.task.outputs, *self.task.inouts), slot.expected, strict=True)
            ],
            "guards": [name for name, region in regions.items() if not _intact(raw, *region)],
            "changed": self._changed(raw, slot, regions),
        }

    def _tensor(self, raw: Tensor, spec: TensorSpec, workload: Workload, start: int) -> Tensor:
        part = raw[start : start + nbytes(spec, workload)].view(DTYPES[dtype_of(spec, workload)])
        return part.reshape(shape_of(spec, workload)).to(self.device)

    def _changed(self, raw: Tensor, slot: Slot, regions: dict[str, tuple[int, int]]) -> list[str]:
        given = slot.values[len(self.task.inouts) :]
        return [
            spec.name
            for spec, value in zip(self.task.inputs, given, strict=True)
            if not torch.equal(raw[regions[spec.name][0] :][: value.nbytes].to(self.device), _bytes(value))
        ]

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

    def bind(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Make `sets` sets of values for timing, alternating between the slots."""
        slots = [self.slots[name] for name in request["slots"]]
        self.workload = slots[0].workload
        self.sets = []
        for i in range(request["sets"]):
            self.sets.append([value.clone() for value in slots[i % len(slots)].values])
        self._synchronise()
        return {}

    def time(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """`calls` calls of one baseline; device times on cuda, nothing on cpu, where the judge's clock decides."""
        assert self.workload is not None
        function = self.functions[request["baseline"]]
        turns = [self.sets[(self.cursor + i) % len(self.sets)] for i in range(request["calls"])]
        self.cursor += request["calls"]
        if self.device == "cuda" and request["flush"]:
            return {"events_ms": baselines.device_times(function, turns, self.workload)}
        baselines.run(function, turns, self.workload)
        self._synchronise()
        return {"events_ms": []}

    def drop(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Forget slots and bound sets, to free memory."""
        self.sets = []
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


def _bytes(value: Tensor) -> Tensor:
    return value.contiguous().reshape(-1).view(torch.uint8)


def _intact(raw: Tensor, start: int, size: int) -> bool:
    before, after = raw[start - GUARD_BYTES : start], raw[start + size : start + size + GUARD_BYTES]
    return bool((before == GUARD_BYTE).all()) and bool((after == GUARD_BYTE).all())


def serve(sock: socket.socket) -> None:
    """Answer requests until the connection closes; a bug in a reference ends the process with its traceback."""
    referee = Referee(sys.argv[3])
    wire.send(sock, {"ready": True})
    names = ("open", "prepare", "compare", "baselines", "bind", "time", "drop", "peaks")
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
