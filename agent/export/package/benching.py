"""Times the package's operators on this machine, beside eager PyTorch, torch.compile and library calls.

In every round each subject has a turn, in random order, on data that no cache holds: what disturbs a round disturbs
all of it. A ratio is paired by round; intervals are percentiles of bootstrap resamples of the rounds (Efron, 1979).
Not covered: correctness (verifying), and the judge's care against operators that know they are being timed.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from . import calls, verifying
from .calls import Call, Function

ROUNDS = 20
BLOCK_S = 0.01
"""A block of calls on the CPU lasts about so long; a call that takes longer is a block of its own."""
SPREAD_BYTES = 128 << 20
"""Data that a block on the CPU goes through before it comes back to the same: more than caches hold."""
MOST_SETS = 32
FLUSH_BYTES = 512 << 20
"""Written before each call on a GPU: its L2 cache holds nothing of the call's data then."""
RESAMPLES = 2000
COVERED = 0.95


@dataclass(frozen=True)
class Timing:
    """One subject on one problem size."""

    subject: str
    """`kernel`, or the baselines `eager`, `compile` and `library:<call>`."""
    median_ms: float
    interval_ms: tuple[float, float]
    speedup: float
    """Of the kernel over it: its time over the kernel's, the median of the rounds' ratios."""
    speedup_interval: tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One problem size."""

    task: str
    workload: str
    timings: tuple[Timing, ...]
    missing: dict[str, str]
    """Subjects that could not be timed, and why."""


@dataclass(frozen=True)
class Report:
    """What was measured."""

    device: str
    torch: str
    rounds: int
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        return any(row.timings for row in self.rows)

    def plain(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {"ok": self.ok, **asdict(self)}


def bench(wanted: Sequence[str] = (), rounds: int = ROUNDS, compiling: bool = True) -> Report:
    """Every search workload of the wanted tasks, of all where none is named."""
    found = [call for call in calls.calls(wanted) if call.kind in ("search", "shape")]
    if missing := verifying.absent({call.target for call in found}):
        rows = tuple(Row(call.task, call.name, (), {"kernel": missing}) for call in found)
        return Report(missing, str(torch.__version__), rounds, rows)
    with verifying.fallback("error"), warnings.catch_warnings():
        # What a baseline warns of is none of the user's doing.
        warnings.simplefilter("ignore")
        rows = tuple(_row(call, rounds, compiling) for call in found)
    return Report(verifying.machine(found[0].target), str(torch.__version__), rounds, rows)


def _row(call: Call, rounds: int, compiling: bool) -> Row:
    subjects, missing = _subjects(call, compiling)
    try:
        sets = _sets(call)
    except torch.cuda.OutOfMemoryError:
        return Row(call.task, call.name, (), {"kernel": "its data does not fit into the GPU's memory"})
    turns: dict[str, Callable[[], float]] = {}
    for name, function in subjects.items():
        try:
            turns[name] = _turn(call, function, sets)
        except RuntimeError as exc:
            missing[name] = str(exc).partition("\n")[0]
    if "kernel" not in turns:
        return Row(call.task, call.name, (), missing)
    return Row(call.task, call.name, tuple(_timings(_measured(turns, rounds))), missing)


def _subjects(call: Call, compiling: bool) -> tuple[dict[str, Function], dict[str, str]]:
    """Who is timed, and why others are not."""
    module = call.reference
    subjects: dict[str, Function] = {"kernel": call.operator, "eager": module.reference}
    missing = {"compile": _no_compiler(call.target) if compiling else "not asked for"}
    if not missing["compile"]:
        torch.compiler.reset()
        subjects["compile"] = torch.compile(getattr(module, "compiled", module.reference), dynamic=False)
        del missing["compile"]
    library = module.library(call.target) if hasattr(module, "library") else {}
    return subjects | {f"library:{name}": function for name, function in library.items()}, missing


def _no_compiler(target: str) -> str:
    """Why torch.compile cannot work here; empty where it may."""
    if not shutil.which(os.environ.get("CXX", "g++")):
        return "no C++ compiler"
    return "no triton" if target == "cuda" and find_spec("triton") is None else ""


def _sets(call: Call) -> list[list[Tensor]]:
    """Arguments that a block goes through in turn."""
    rng = torch.Generator(device=call.target)
    rng.seed()
    spread = min(MOST_SETS, 1 + SPREAD_BYTES // max(1, call.bytes)) if call.target == "cpu" else 1
    return [calls.draw(call, call.target, rng) for _ in range(spread)]


# ---------------------------------------------------------------- clocks


def _turn(call: Call, function: Function, sets: Sequence[Sequence[Tensor]]) -> Callable[[], float]:
    """What gives the milliseconds of one call, over a block of them. The first calls, which compile, are not timed."""
    _run(call, function, sets[0])
    _run(call, function, sets[0])
    return _device_turn(call, function, sets) if call.target == "cuda" else _host_turn(call, function, sets)


def _run(call: Call, function: Function, values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        function(*values, **call.scalars)


def _host_turn(call: Call, function: Function, sets: Sequence[Sequence[Tensor]]) -> Callable[[], float]:
    started = time.perf_counter()
    _run(call, function, sets[-1])
    count = max(1, math.ceil(BLOCK_S / max(time.perf_counter() - started, 1e-6)))
    place = 0

    def turn() -> float:
        nonlocal place
        started = time.perf_counter()
        for _ in range(count):
            _run(call, function, sets[place % len(sets)])
            place += 1
        return (time.perf_counter() - started) * 1e3 / count

    return turn


def _device_turn(call: Call, function: Function, sets: Sequence[Sequence[Tensor]]) -> Callable[[], float]:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    leads = _leads(call, function, sets[0], flush)

    def turn() -> float:
        for _ in range(leads):
            flush.zero_()
        return _between(lambda: _run(call, function, sets[0]))

    return turn


def _leads(call: Call, function: Function, values: Sequence[Tensor], flush: Tensor) -> int:
    """How many flushes keep the GPU busy while the host queues a call: else events would measure the host."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    _run(call, function, values)
    host_ms = (time.perf_counter() - started) * 1e3
    return 1 + math.ceil(2 * host_ms / max(_between(flush.zero_), 1e-3))


def _between(work: Callable[[], Any]) -> float:
    """Milliseconds on the device."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    work()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop))


# ---------------------------------------------------------------- statistics


def _measured(turns: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds by subject and round."""
    found: dict[str, list[float]] = {name: [] for name in turns}
    order = list(turns)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            found[name].append(turns[name]())
    return found


def _timings(found: dict[str, list[float]]) -> list[Timing]:
    kernel = found["kernel"]
    return [
        Timing(
            subject=name,
            median_ms=statistics.median(own),
            interval_ms=bootstrap(own),
            speedup=statistics.median(ratios),
            speedup_interval=bootstrap(ratios),
        )
        for name, own in found.items()
        for ratios in [[theirs / ours for theirs, ours in zip(own, kernel, strict=True)]]
    ]


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    cut = round(RESAMPLES * (1 - COVERED) / 2)
    return medians[cut], medians[-1 - cut]
