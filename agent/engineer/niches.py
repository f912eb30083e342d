"""Kernels that differ in kind: what limits them × how they reach memory × whether they use tensor cores.

The best of each kind is kept (MAP-Elites: Mouret, Clune, arXiv 1504.04909), so that a slow start of a better structure
is not lost to a well-tuned old one. What a kernel does is read off its text, not traced: code behind `#if 0` counts,
and of several kernels the most elaborate one names the cell.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Literal

from agent.engineer import roofline
from agent.engineer.scores import Scored, scored
from agent.steps import Judged
from sandbox.contract import Candidate, Counter, Device, Passed, Profile, Record, Task
from sandbox.duplicates import without_comments
from sandbox.plan import Plan, parse

Bottleneck = Literal["memory", "compute", "latency"]
"""`latency`: neither rate is near its peak, be it for waiting, for launches or for too few threads."""
MemoryStrategy = Literal["direct", "vectorised", "shared", "async_copy", "tma", "scalar", "simd", "blocked"]
"""The last three on cpu, the others on cuda."""
TensorCores = Literal["none", "mma", "wgmma", "tcgen05", "n/a"]

BUSY_PERCENT = 60.0
"""Below it a unit is not what limits a kernel: the threshold of Nsight Compute's own speed-of-light rule."""
LEAST_SHARE = 0.3
"""Of the roofline; below it, without counters, a kernel is taken to wait."""
SCRATCH_BYTES = 1024
"""Static shared memory up to this holds partial sums of warps, not tiles."""

_TMA = re.compile(r"cp\.async\.bulk|cp_async_bulk|CUtensorMap")
_ASYNC_COPY = re.compile(r"cp\.async|cp_async|memcpy_async")
_WIDE_CUDA = re.compile(
    r"\bu?(?:char|short|int|long|longlong)[248]\b|\b(?:float|double)[24]\b|\b(?:__)?half2\b|\b__nv_bfloat162\b"
    r"|\.v[248]\.|\balignas\s*\(|__align__\s*\("
)
_STRIDED_LOOP = re.compile(r"\bfor\s*\([^;]*;[^;]*;[^;{)]*\+=\s*(\w+)")
_TILE_NAME = re.compile(r"TILE|BLOCK|PANEL|TOKENS|ROWS|COLUMNS|KEYS|^[KMNB][CR]$|^B[KMN]$")
_SIMD = re.compile(
    r"\b_mm\d*_\w+|\bvector_size\b|\bomp\s+(?:parallel\s+for\s+|for\s+)?simd\b|std::experimental|\bv\w+q_[fsu]\d+\b"
)


class Cell(Record):
    """One kind of kernel."""

    bottleneck: Bottleneck
    memory: MemoryStrategy
    tensor_cores: TensorCores


def elites(history: Sequence[Judged], task: Task, device: Device) -> dict[Cell, Scored]:
    """The best candidate of each cell, of those that passed; the earliest of equals."""
    return best_by_cell(scored(history), task, device)


def best_by_cell(pool: Sequence[Scored], task: Task, device: Device) -> dict[Cell, Scored]:
    """As `elites`, of candidates whose scores are known."""
    best: dict[Cell, Scored] = {}
    for entry in pool:
        own = cell(entry, task, device)
        if own not in best or entry.score > best[own].score:
            best[own] = entry
    return best


def cell(entry: Scored, task: Task, device: Device) -> Cell:
    """The kind of a candidate that passed."""
    candidate, verdict = entry.candidate, entry.judgement.verdict
    assert isinstance(verdict, Passed)
    plan = parse(candidate.source, task) if candidate.form == "kernel" else Plan()
    static_bytes = [kernel.smem_bytes for kernel in verdict.resources]
    return Cell(
        bottleneck=bottleneck(verdict, task, device),
        memory=memory_strategy(candidate, plan, max(static_bytes) if static_bytes else None),
        tensor_cores=tensor_cores(candidate),
    )


# ---------------------------------------------------------------- what limits it


def bottleneck(verdict: Passed, task: Task, device: Device) -> Bottleneck:
    """By the profiler's counters where it counted, else by the share of the roofline and what the task asks for."""
    counted = _by_counters(verdict.profile, device)
    if counted is not None:
        return counted
    shares = [timing.roofline_share for timing in verdict.timings if timing.roofline_share is not None]
    if shares and statistics.median(shares) < LEAST_SHARE:
        return "latency"
    return roofline.bound(task, device)


def _by_counters(profile: Profile | None, device: Device) -> Bottleneck | None:
    """Of the kernel that took longest. perf sees no memory traffic: it only tells idle cores."""
    if profile is None or not profile.kernels:
        return None
    kernels = [_values(kernel.counters) for kernel in profile.kernels]
    values = max(kernels, key=lambda counted: counted.get("duration", 0.0))
    if profile.tool == "perf":
        return "latency" if values.get("cores busy", device.threads) < device.threads / 2 else None
    arithmetic = values.get("SM throughput")
    memory = max((values[name] for name in ("memory throughput", "DRAM throughput") if name in values), default=None)
    if arithmetic is None or memory is None:
        return None
    if max(arithmetic, memory) < BUSY_PERCENT:
        return "latency"
    return "compute" if arithmetic > memory else "memory"


def _values(counters: Sequence[Counter]) -> dict[str, float]:
    return {counter.name: counter.value for counter in counters}


# ---------------------------------------------------------------- how it is made


def memory_strategy(candidate: Candidate, plan: Plan, static_bytes: int | None) -> MemoryStrategy:
    """How data reaches the arithmetic: the most elaborate way that the source shows.

    `static_bytes` is the most static shared memory that the compiler gave a kernel; None where nobody knows.
    """
    code = without_comments(candidate.source)
    if candidate.target == "cpu":
        return _memory_cpu(code)
    if plan.tensormaps or _TMA.search(code):
        return "tma"
    if _ASYNC_COPY.search(code):
        return "async_copy"
    if "__shared__" in code and _holds_tiles(plan, static_bytes):
        return "shared"
    return "vectorised" if _WIDE_CUDA.search(code) else "direct"


def _holds_tiles(plan: Plan, static_bytes: int | None) -> bool:
    dynamic = any(launch.smem is not None for launch in plan.launches)
    return dynamic or static_bytes is None or static_bytes > SCRATCH_BYTES


def _memory_cpu(code: str) -> MemoryStrategy:
    if any(_TILE_NAME.search(step) for step in _STRIDED_LOOP.findall(code)):
        return "blocked"
    return "simd" if _SIMD.search(code) else "scalar"


def tensor_cores(candidate: Candidate) -> TensorCores:
    """The newest matrix instruction in the source."""
    if candidate.target == "cpu":
        return "n/a"
    code = without_comments(candidate.source)
    if "tcgen05" in code:
        return "tcgen05"
    if "wgmma" in code:
        return "wgmma"
    return "mma" if re.search(r"\bmma\.(?:sync|sp)|\bwmma\b|\bmma_sync\b", code) else "none"
