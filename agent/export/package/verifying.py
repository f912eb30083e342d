"""Judges the package again on this machine: every proven problem size on fresh random data, against float64.

A call that a kernel was proven for is first made with the fallback forbidden, so that a kernel answers or the row says
that none did. Calls outside the proven region, which the reference answers, and inputs that are not contiguous are
checked as well. Not covered: speed (benching), and adversarial data, which the kernels met before they were shipped.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import calls
from .calls import Call, Errors

FALLBACK = "WARPSMITH_FALLBACK"
COPIES = 6
"""Sets of float64 tensors that comparing one call takes."""


@dataclass(frozen=True)
class Row:
    """One call, compared."""

    task: str
    workload: str
    kind: str
    """`search`, `held-out`, `shape`, `outside`, or `strided`: a proven one with inputs that are not contiguous."""
    by: str
    """`kernel` or `reference`; empty where the call was not made."""
    error: float | None
    """Largest relative L2 error of a row against float64."""
    limit: float | None
    """The largest that is allowed."""
    ok: bool
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What verifying came to."""

    device: str
    torch: str
    seed: int
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether something was compared, and nothing of it is wrong."""
        return any(row.by for row in self.rows) and all(row.ok for row in self.rows)

    def plain(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {"ok": self.ok, **asdict(self)}


def verify(wanted: Sequence[str] = (), seed: int | None = None) -> Report:
    """Every call of the wanted tasks, of all where none is named; the seed is a fresh one unless it is given."""
    seed = torch.seed() % 2**62 if seed is None else seed
    found = calls.calls(wanted)
    if missing := absent({call.target for call in found}):
        return Report(missing, str(torch.__version__), seed, tuple(_untried(call, missing) for call in found))
    return Report(machine(found[0].target), str(torch.__version__), seed, tuple(_rows(found, seed)))


def absent(targets: set[str]) -> str:
    """Why nothing can be called here; empty where it can."""
    return "no NVIDIA GPU that PyTorch can use" if "cuda" in targets and not torch.cuda.is_available() else ""


def machine(target: str) -> str:
    """What calls run on, in words."""
    if target == "cuda":
        return str(torch.cuda.get_device_name())
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def _rows(found: Sequence[Call], seed: int) -> Iterator[Row]:
    again = _to_be_strided(found)
    for number, call in enumerate(found):
        rng = torch.Generator(device=call.target).manual_seed(seed + number)
        with _memory_returned(call.target):
            yield _compared(call, rng)
            if call is again.get((call.task, call.dtype)):
                yield _compared(call, rng, strided=True)


def _to_be_strided(found: Sequence[Call]) -> dict[tuple[str, str], Call]:
    """The smallest proven call of each task and dtype of which every tensor can be strided."""
    able = [call for call in found if call.kind != "outside" and all(max(t["shape"]) > 1 for t in call.tensors)]
    # The last of equal keys stays, and that is the smallest.
    return {(call.task, call.dtype): call for call in sorted(able, key=lambda call: -call.bytes)}


def _compared(call: Call, rng: torch.Generator, strided: bool = False) -> Row:
    """The operator's answer beside the exact one."""
    kind = "strided" if strided else call.kind
    if (needed := COPIES * _float64_bytes(call)) > (free := _free_bytes(call.target)):
        return _skipped(call, kind, f"it takes about {needed >> 20} MiB to compare, {free >> 20} MiB are free")
    try:
        values = calls.draw(call, call.target, rng)
        wanted = calls.exact(call, values)
        limits = calls.limits(call, values, wanted)
        given = calls.strided(values, call.inouts) if strided else values
        got, by, why = _answered(call, given)
    except torch.cuda.OutOfMemoryError:
        return _skipped(call, kind, "PyTorch's own operator does not fit into the GPU's memory")
    except RuntimeError as exc:
        return Row(call.task, call.name, kind, "", None, None, ok=False, note=_first_line(exc))
    return _row(call, kind, by, [calls.distance(*pair) for pair in zip(got, wanted, strict=True)], limits, why)


def _row(call: Call, kind: str, by: str, errors: Sequence[Errors], limits: Sequence[Errors], why: str) -> Row:
    """Of several outputs the one that is nearest to its limit, or furthest beyond."""
    worst, limit = max(zip(errors, limits, strict=True), key=lambda pair: pair[0][0] / max(pair[1][0], 1e-300))
    return Row(call.task, call.name, kind, by, worst[0], limit[0], ok=calls.within(errors, limits), note=why)


def _answered(call: Call, values: Sequence[Tensor]) -> tuple[list[Tensor], str, str]:
    """The operator's answer, who gave it, and why it was not a kernel where one was proven."""
    why = ""
    if call.kind != "outside":
        try:
            with fallback("error"):
                return calls.answer(call.operator, call, values), "kernel", ""
        except RuntimeError as exc:
            why = _first_line(exc)
    with fallback(""), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return calls.answer(call.operator, call, values), "reference", why


@contextlib.contextmanager
def fallback(value: str) -> Iterator[None]:
    """What a call that no kernel serves does meanwhile: `error`, or as usual."""
    before = os.environ.get(FALLBACK)
    os.environ[FALLBACK] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[FALLBACK]
        else:
            os.environ[FALLBACK] = before


@contextlib.contextmanager
def _memory_returned(target: str) -> Iterator[None]:
    """What the caching allocator kept of one call is free for the next, whose sizes are others."""
    try:
        yield
    finally:
        if target == "cuda":
            torch.cuda.empty_cache()


def _untried(call: Call, why: str) -> Row:
    return Row(call.task, call.name, call.kind, "", None, None, ok=True, note=why)


def _skipped(call: Call, kind: str, why: str) -> Row:
    return Row(call.task, call.name, kind, "", None, None, ok=True, note=f"skipped: {why}")


def _float64_bytes(call: Call) -> int:
    own = torch.empty((), dtype=getattr(torch, call.dtype)).element_size()
    return call.bytes * 8 // own


def _free_bytes(target: str) -> int:
    if target == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def _first_line(exc: Exception) -> str:
    return str(exc).partition("\n")[0]
