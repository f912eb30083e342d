"""Expected outputs in float64, and how far something is from them.

The yardstick is the error that PyTorch's own operator makes in the workload's dtype on the same input.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sandbox.contract import Task, Workload
from sandbox.errors import TaskError

Function = Callable[..., Any]


def load_reference(task: Task) -> ModuleType:
    """The task's reference.py as a module; TaskError where it cannot be loaded or has no `reference`."""
    path = task.folder / "reference.py"
    spec = importlib.util.spec_from_file_location(f"warpsmith_reference_{task.name}", path)
    if spec is None or spec.loader is None:
        raise TaskError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "reference", None)):
        raise TaskError(f"{path} defines no function `reference`")
    return module


def call(function: Function, values: Sequence[Tensor], workload: Workload) -> tuple[Tensor, ...]:
    """The outputs of a reference, baseline or oracle, none if it returns None; in-outs are changed in place."""
    with torch.no_grad():
        result = function(*values, **workload.scalars)
    if result is None:
        return ()
    return (result,) if isinstance(result, Tensor) else tuple(result)


def widened(values: Sequence[Tensor]) -> list[Tensor]:
    """Copies, floating-point ones in float64."""
    return [value.double() if value.is_floating_point() else value.clone() for value in values]


def expected(task: Task, module: ModuleType, values: Sequence[Tensor], workload: Workload) -> list[Tensor]:
    """Outputs in float64 and changed in-outs in their own dtype, in parameter order."""
    wide = widened(values)
    outputs = call(getattr(module, "oracle", module.reference), wide, workload)
    if len(outputs) != len(task.outputs):
        raise TaskError(
            f"{task.name}: the reference gave {len(outputs)} outputs, task.toml declares {len(task.outputs)}"
        )
    changed = [value.to(given.dtype) for value, given in zip(wide, values, strict=True)]
    return [*(output.double() for output in outputs), *changed[: len(task.inouts)]]


def achieved(task: Task, function: Function, values: Sequence[Tensor], workload: Workload) -> list[Tensor]:
    """What `function` makes of copies of `values` in the workload's own dtype: outputs and changed in-outs."""
    own = [value.clone() for value in values]
    outputs = call(function, own, workload)
    return [*outputs, *own[: len(task.inouts)]]


@dataclass(frozen=True)
class Scale:
    """What errors of a tensor are measured against, by row: L2 norm and largest magnitude, each with a floor."""

    norms: Tensor
    peaks: Tensor


def scale(wanted: Tensor) -> Scale:
    """A row is what the last dimension spans. One that is nearly zero counts as a thousandth of the typical row."""
    rows = wanted.reshape(-1, wanted.shape[-1])
    parts = [part.double() for part in _parts(rows)]
    norms = torch.cat([torch.linalg.vector_norm(part, dim=-1) for part in parts])
    peaks = torch.cat([torch.linalg.vector_norm(part, ord=float("inf"), dim=-1) for part in parts])
    finite = norms.isfinite()
    typical = torch.where(finite, norms, 0.0).sum() / finite.sum().clamp_min(1)
    return Scale(
        torch.maximum(norms, (typical * 1e-3).clamp_min(1e-30)),
        torch.maximum(peaks, (typical * 1e-3 / rows.shape[-1] ** 0.5).clamp_min(1e-30)),
    )


def distance(actual: Tensor, wanted: Tensor, known: Scale | None = None) -> tuple[float, float]:
    """Largest relative L2 error of a row, and largest error of an element over its row's largest magnitude.

    `known` is `scale(wanted)`, where it is at hand. NaN or infinity where the wanted value is finite gives infinity.
    """
    return distances([(actual, wanted, known)])[0]


def distances(triples: Iterable[tuple[Tensor, Tensor, Scale | None]]) -> list[tuple[float, float]]:
    """As `distance`, of several tensors; a GPU is waited for once."""
    known = [(actual, wanted, at_hand or scale(wanted)) for actual, wanted, at_hand in triples]
    if not known:
        return []
    worst = torch.stack([_worst(*triple, _error) for triple in known]).tolist()
    return [
        (row, element)
        if math.isfinite(row) and math.isfinite(element)
        else tuple(_worst(*triple, _error_where_finite).tolist())
        for (row, element), triple in zip(worst, known, strict=True)
    ]


def _worst(actual: Tensor, wanted: Tensor, known: Scale, error: Callable[..., Tensor]) -> Tensor:
    """Errors by row and by element, both on the device; NaN where anything is."""
    rows = wanted.reshape(-1, wanted.shape[-1])
    found, at = [], 0
    for part, wanted_part in zip(_parts(actual.reshape(rows.shape)), _parts(rows), strict=True):
        found.append(error(part, wanted_part, known.norms[at : at + len(part)], known.peaks[at : at + len(part)]))
        at += len(part)
    return torch.stack(found).amax(dim=0)


def _error(got: Tensor, want: Tensor, norms: Tensor, peaks: Tensor) -> Tensor:
    error = want.double() - got
    row = torch.linalg.vector_norm(error, dim=-1) / norms
    element = torch.linalg.vector_norm(error, ord=float("inf"), dim=-1) / peaks
    return torch.stack((row, element)).amax(dim=1)


def yardstick(own: Tensor, nearby: Tensor, wanted: Tensor, known: Scale) -> tuple[float, float]:
    """What error cannot be held against a candidate: PyTorch's own, or what a rounded input makes of the exact answer.

    The second is backward error (Higham, Accuracy and Stability of Numerical Algorithms, section 1.5):
    where a row of equal values is normalised, the last bit of the mean decides, and PyTorch may have it by luck.
    """
    by_own, by_rounding = distance(own, wanted, known), distance(nearby, wanted, known)
    return max(by_own[0], by_rounding[0]), max(by_own[1], by_rounding[1])


def _error_where_finite(got: Tensor, want: Tensor, norms: Tensor, peaks: Tensor) -> Tensor:
    """The same where not all that is wanted is finite: infinity must be met, what is no number need not."""
    got, want = got.double(), want.double()
    if bool(((~got.isfinite() & want.isfinite()) | (want.isinf() & (got != want))).any()):
        return torch.full((2,), float("inf"), dtype=torch.float64, device=got.device)
    error = torch.where(want.isfinite(), got - want, 0.0)
    finite = torch.where(want.isfinite(), want, 0.0)
    row = error.norm(dim=-1) / torch.where(norms.isfinite(), norms, finite.norm(dim=-1).clamp_min(1e-30))
    element = error.abs().amax(dim=-1) / torch.where(
        peaks.isfinite(), peaks, finite.abs().amax(dim=-1).clamp_min(1e-30)
    )
    return torch.stack((row, element)).amax(dim=1)


def _parts(rows: Tensor) -> tuple[Tensor, ...]:
    """In pieces of at most 64 Mi elements, so that a float64 copy stays small."""
    return torch.split(rows, max(1, (64 << 20) // max(1, rows.shape[-1])))
