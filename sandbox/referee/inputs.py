"""Input distributions of the checks: fresh, unpredictable, adversarial where it hurts.

Every scale and offset is drawn at random from the check's seed, so that no constant can be baked into a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sandbox.contract import Task, TensorSpec, Workload
from sandbox.expressions import parse_expr
from sandbox.signature import dtype_of, shape_of

Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]

DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "int32", "int64", "uint8")}


def draw(task: Task, workload: Workload, distribution: str, seed: int, device: str) -> list[Tensor]:
    """Values for the in-outs and inputs of `task`, in parameter order, on `device`."""
    rng = torch.Generator(device=device).manual_seed(seed)
    return [_tensor(spec, workload, distribution, rng) for spec in (*task.inouts, *task.inputs)]


def _tensor(spec: TensorSpec, workload: Workload, distribution: str, rng: torch.Generator) -> Tensor:
    shape, dtype = shape_of(spec, workload), DTYPES[dtype_of(spec, workload)]
    if spec.fill.kind == "integers":
        low, high = (parse_expr(bound).evaluate(workload.axes) for bound in (spec.fill.low, spec.fill.high))
        low = high if distribution == "timed" else low
        return torch.empty(shape, dtype=dtype, device=rng.device).random_(low, high + 1, generator=rng)
    values = _weight(shape, rng) if spec.fill.kind == "weight" else DISTRIBUTIONS[distribution](shape, rng)
    return values.to(dtype).contiguous()


def _uniform(low: float, high: float, rng: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng, device=rng.device))


def _randn(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return torch.empty(shape, device=rng.device).normal_(generator=rng)


def _weight(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Matrices keep the variance of what they multiply; vectors have a random scale and offset."""
    if len(shape) > 1:
        return _randn(shape, rng) * (_uniform(0.5, 1.5, rng) / math.sqrt(shape[-1]))
    return _randn(shape, rng) * _uniform(0.2, 1.0, rng) + _uniform(-1.0, 1.0, rng)


def _normal(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return _randn(shape, rng) * _uniform(0.5, 2.0, rng)


def _shifted(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """A mean many times the deviation: E[x²] − E[x]² in the working precision loses it."""
    sign = 1.0 if _uniform(-1.0, 1.0, rng) > 0 else -1.0
    return _randn(shape, rng) * _uniform(0.25, 1.0, rng) + sign * _uniform(8.0, 40.0, rng)


def _flat(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=rng, device=rng.device) * 2 - 1) * _uniform(0.5, 3.0, rng)


def _outliers(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """A heavy tail off any regular grid."""
    values = _randn(shape, rng)
    hit = torch.rand(shape, generator=rng, device=rng.device) < 0.003
    return torch.where(hit, values * _uniform(10.0, 40.0, rng), values)


def _sharp(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Scores of hundreds: softmax rows near one-hot, which overflow where the maximum is not taken out."""
    return _randn(shape, rng) * _uniform(3.0, 6.0, rng)


def _equal_rows(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """A quarter of the rows hold one value throughout: zero variance, uniform softmax."""
    values = _normal(shape, rng)
    rows = torch.rand((*shape[:-1], 1), generator=rng, device=rng.device) < 0.25
    return torch.where(rows, values[..., :1].expand(shape), values)


def _large(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Magnitudes at which squares and sums overflow half precision."""
    return _randn(shape, rng) * _uniform(30.0, 100.0, rng)


def _tiny(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Magnitudes at which an added eps, or a flushed subnormal, shows."""
    return _randn(shape, rng) * 10 ** _uniform(-4.0, -2.0, rng)


def _amplified_tail(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """A prefix that looks normal and a suffix that weighs more than all of it."""
    values = _randn(shape, rng)
    flat = values.view(-1)
    flat[int(flat.numel() * _uniform(0.7, 0.95, rng)) :] *= _uniform(4.0, 8.0, rng)
    return values


DISTRIBUTIONS: dict[str, Draw] = {
    "timed": _normal,
    "normal": _normal,
    "shifted": _shifted,
    "uniform": _flat,
    "outliers": _outliers,
    "sharp": _sharp,
    "equal_rows": _equal_rows,
    "amplified_tail": _amplified_tail,
    "large": _large,
    "tiny": _tiny,
}
