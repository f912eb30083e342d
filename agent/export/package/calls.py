"""Calls of the tasks: their arguments drawn afresh, and how far an answer is from the exact one.

An error counts by row and by element, relative to the row. What may be held against a kernel is what exceeds the error
of PyTorch itself in the same dtype, and what the exact answer moves by when inputs are rounded (Higham, Accuracy and
Stability of Numerical Algorithms, section 1.5). Not covered: adversarial data; that is the judge's, before shipping.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import operators

Function = Callable[..., Any]
Errors = tuple[float, float]
"""Largest relative L2 error of a row, and largest error of an element over its row's largest magnitude."""

FLOORS = {"float64": 1e-12, "float32": 1e-5, "float16": 5e-4, "bfloat16": 4e-3}
"""An error that is always allowed, by dtype."""
NEARLY_ZERO = 1e-3
"""A row counts at least as this share of the typical row."""
UNIT = 2.0**-23
"""Of float32's last place."""


@dataclass(frozen=True)
class Call:
    """One problem size of a task."""

    task: str
    name: str
    kind: str
    """`search`, `held-out` or `shape`, where a kernel was proven; `outside`, where the reference answers."""
    dtype: str
    scalars: dict[str, Any]
    tensors: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    inouts: int
    tolerance: float
    target: str

    @property
    def operator(self) -> Function:
        function: Function = getattr(operators, self.task)
        return function

    @property
    def reference(self) -> ModuleType:
        return importlib.import_module(f".references.{self.task}", __package__)

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(_bytes(tensor) for tensor in (*self.tensors, *self.outputs))


def calls(wanted: Sequence[str] = ()) -> list[Call]:
    """Every call that is known of the wanted tasks, of all where none is named; ValueError for an unknown one."""
    known: dict[str, Any] = json.loads(Path(__file__).with_name("workloads.json").read_text())
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"no task {unknown[0]!r} in this package; it has {', '.join(known)}")
    return [_call(name, task, size) for name, task in known.items() for size in task["workloads"] if fits(name, wanted)]


def fits(name: str, wanted: Sequence[str]) -> bool:
    return not wanted or name in wanted


def _call(name: str, task: dict[str, Any], size: dict[str, Any]) -> Call:
    return Call(
        task=name,
        name=size["name"],
        kind=size["kind"],
        dtype=size["dtype"],
        scalars=size["scalars"],
        tensors=size["tensors"],
        outputs=size["outputs"],
        inouts=task["inouts"],
        tolerance=task["tolerance"],
        target=task["target"],
    )


def _bytes(tensor: dict[str, Any]) -> int:
    size: int = math.prod(tensor["shape"])
    return size * torch.empty((), dtype=getattr(torch, tensor["dtype"])).element_size()


# ---------------------------------------------------------------- arguments


def draw(call: Call, device: str, rng: torch.Generator) -> list[Tensor]:
    """Values for the in-outs and inputs, contiguous, in the order of the operator's parameters."""
    scale = 0.5 + 1.5 * float(torch.rand((), generator=rng, device=rng.device))
    return [_values(tensor, scale, rng).to(device) for tensor in call.tensors]


def _values(tensor: dict[str, Any], scale: float, rng: torch.Generator) -> Tensor:
    shape, dtype = tensor["shape"], getattr(torch, tensor["dtype"])
    if tensor["fill"] == "integers":
        low, high = tensor["bounds"]
        return torch.randint(low, high + 1, shape, dtype=dtype, generator=rng, device=rng.device)
    values = torch.randn(shape, dtype=torch.float32, generator=rng, device=rng.device)
    if tensor["fill"] == "activation":
        values *= scale
    elif len(shape) > 1:
        # As trained matrices are: products keep their variance.
        values /= math.sqrt(shape[-1])
    return values.to(dtype)


def strided(values: Sequence[Tensor], inouts: int) -> list[Tensor]:
    """The same values where no input is contiguous; what is changed in place stays as it is."""
    return [*values[:inouts], *(_strided(value) for value in values[inouts:])]


def _strided(value: Tensor) -> Tensor:
    if value.dim() > 1:
        return value.transpose(-1, -2).contiguous().transpose(-1, -2)
    return torch.stack([value, value], dim=-1)[..., 0]


# ---------------------------------------------------------------- answers


def answer(function: Function, call: Call, values: Sequence[Tensor]) -> list[Tensor]:
    """Outputs of the function, then what became of the in-outs; `values` stay as they are."""
    own = [value.clone() for value in values[: call.inouts]]
    with torch.no_grad():
        result = function(*own, *values[call.inouts :], **call.scalars)
    outputs = [] if result is None else [result] if isinstance(result, Tensor) else list(result)
    return outputs + own


def exact(call: Call, values: Sequence[Tensor], shaken: bool = False) -> list[Tensor]:
    """The answer in float64; `shaken` to inputs that are off by up to a unit in float32's last place."""
    wide = [_widened(value, shaken) for value in values]
    return answer(getattr(call.reference, "oracle", call.reference.reference), call, wide)


def _widened(value: Tensor, shaken: bool) -> Tensor:
    if not value.is_floating_point():
        return value
    wide = value.double()
    return wide * (1 + (torch.rand_like(wide) * 2 - 1) * UNIT) if shaken else wide


def limits(call: Call, values: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Errors]:
    """The largest errors that a kernel may have, by output and in-out."""
    own = answer(call.reference.reference, call, values)
    rounded = exact(call, values, shaken=True)
    return [_limit(call, a, b, want) for a, b, want in zip(own, rounded, wanted, strict=True)]


def _limit(call: Call, own: Tensor, rounded: Tensor, wanted: Tensor) -> Errors:
    floor = FLOORS.get(str(own.dtype).removeprefix("torch."), 0.0)
    by_own, by_rounding = distance(own, wanted), distance(rounded, wanted)
    row, element = (max(pair) for pair in zip(by_own, by_rounding, strict=True))
    return call.tolerance * row + floor, call.tolerance * element + 2 * floor


def distance(got: Tensor, wanted: Tensor) -> Errors:
    """How far an answer is from the exact one; infinite where it is no number and should be one."""
    if got.shape != wanted.shape:
        return math.inf, math.inf
    if got.numel() == 0:
        return 0.0, 0.0
    rows, exact_rows = (x.double().reshape(-1, x.shape[-1] if x.dim() else 1) for x in (got, wanted))
    error = rows - exact_rows
    norms, peaks = exact_rows.norm(dim=1), exact_rows.abs().amax(dim=1)
    typical = norms.mean() * NEARLY_ZERO
    by_row = (error.norm(dim=1) / norms.clamp_min(max(float(typical), 1e-30))).max()
    least = max(float(typical) / math.sqrt(rows.shape[1]), 1e-30)
    by_element = (error.abs().amax(dim=1) / peaks.clamp_min(least)).max()
    return _number(by_row), _number(by_element)


def _number(value: Tensor) -> float:
    found = float(value)
    return math.inf if math.isnan(found) else found


def within(errors: Sequence[Errors], limits: Sequence[Errors]) -> bool:
    return all(e[0] <= limit[0] and e[1] <= limit[1] for e, limit in zip(errors, limits, strict=True))
