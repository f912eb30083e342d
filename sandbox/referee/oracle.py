"""Expected outputs in float64, and how far something is from them.

The yardstick is the error that PyTorch's own operator makes in the workload's dtype on the same input.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
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
    """The outputs of a reference, baseline or oracle; in-outs among `values` are changed in place."""
    with torch.no_grad():
        result = function(*values, **workload.scalars)
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


def distance(actual: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Largest relative L2 error of a row, and largest error of an element over its row's largest magnitude.

    A row is what the last dimension spans. Rows that are nearly zero are measured against a thousandth of the
    tensor's typical row. NaN or infinity where the wanted value is finite gives infinity.
    """
    if actual.dtype == wanted.dtype and torch.equal(actual, wanted):
        return 0.0, 0.0
    rows = wanted.reshape(-1, wanted.shape[-1])
    worst_row, worst_element = 0.0, 0.0
    typical = max((float(part.double().norm(dim=-1).mean()) for part in _parts(rows)), default=0.0)
    for part, wanted_part in zip(_parts(actual.reshape(rows.shape)), _parts(rows), strict=True):
        got, want = part.double(), wanted_part.double()
        if bool((~got.isfinite() & want.isfinite()).any()):
            return float("inf"), float("inf")
        error = (got - want).nan_to_num(0.0)
        norms = want.norm(dim=-1).clamp_min(max(typical * 1e-3, 1e-30))
        peaks = want.abs().amax(dim=-1).clamp_min(max(typical * 1e-3 / rows.shape[-1] ** 0.5, 1e-30))
        worst_row = max(worst_row, float((error.norm(dim=-1) / norms).max()))
        worst_element = max(worst_element, float((error.abs().amax(dim=-1) / peaks).max()))
    return worst_row, worst_element


def _parts(rows: Tensor) -> tuple[Tensor, ...]:
    """In pieces of at most 64 Mi elements, so that a float64 copy stays small."""
    return torch.split(rows, max(1, (64 << 20) // max(1, rows.shape[-1])))
