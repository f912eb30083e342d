"""The ways PyTorch users do it today, made callable and timed exactly as candidates are.

`eager` is the reference, `compile` is torch.compile of it, `library:<name>` and others come from reference.py.
"""

from __future__ import annotations

import math
import time
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sandbox.contract import Task, Workload
from sandbox.referee.oracle import Function, call

_FLUSH_BYTES = 512 << 20


def functions(task: Task, module: ModuleType) -> dict[str, Function]:
    """Every baseline of the task by name."""
    found: dict[str, Function] = {"eager": module.reference}
    # One specialisation a shape, as the deployed model would have it.
    found["compile"] = torch.compile(getattr(module, "compiled", module.reference), dynamic=False)
    library = module.library(task.target) if hasattr(module, "library") else {}
    others = module.baselines(task.target) if hasattr(module, "baselines") else {}
    return found | {f"library:{name}": function for name, function in library.items()} | dict(others)


def run(function: Function, turns: list[list[Tensor]], workload: Workload) -> None:
    """One call for each of `turns`."""
    for values in turns:
        call(function, values, workload)


def device_times(function: Function, turns: list[list[Tensor]], workload: Workload, leads: int) -> list[float]:
    """Device milliseconds of each call from a cold L2, by CUDA events; see worker/cuda.py for the same."""
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    pairs = [(_event(), _event()) for _ in turns]
    for values, (start, stop) in zip(turns, pairs, strict=True):
        for _ in range(leads):
            flush.zero_()
        start.record()
        call(function, values, workload)
        stop.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) for start, stop in pairs]


def leads(function: Function, values: list[Tensor], workload: Workload) -> int:
    """How many flushes keep the GPU busy for twice as long as the host takes to queue one call.

    Otherwise the events of an operator of many launches would also measure the host that feeds it, and every
    candidate would look faster than it is.
    """
    call(function, values, workload)
    host_s = []
    for _ in range(3):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call(function, values, workload)
        host_s.append(time.perf_counter() - started)
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    start, stop = _event(), _event()
    start.record()
    flush.zero_()
    stop.record()
    torch.cuda.synchronize()
    return 1 + math.ceil(2 * max(host_s) * 1e3 / float(start.elapsed_time(stop)))


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
