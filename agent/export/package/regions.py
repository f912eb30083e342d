"""Which calls the kernels of this package were proven for, as Python can see it: `provenance.json`, read once.

Layers ask it before they call an operator, because PyTorch often has something better than the operator's own fallback.
Not covered: whether this GPU or CPU can run the kernels; that is known at the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import loading, operators


class Region(NamedTuple):
    """What one kernel was compiled and proven for."""

    device: str
    """`cpu` or `cuda`."""
    dtype: torch.dtype
    bounds: tuple[tuple[str, int, int], ...]
    """Axes with their least and greatest size."""
    choices: tuple[tuple[str, tuple[int, ...]], ...]
    """Axes and int scalars that may have these values only."""


def read() -> dict[str, tuple[Region, ...]]:
    """By operator; those that the package does not have are not among them."""
    known = loading.provenance()
    return {name: of_task(known["target"], known["tasks"][name]) for name in operators.NAMES}


def of_task(device: str, task: dict[str, Any]) -> tuple[Region, ...]:
    compiled = (spec for candidate in task["candidates"].values() for spec in candidate["specialisations"])
    return tuple(region(device, spec) for spec in compiled)


def region(device: str, spec: dict[str, Any]) -> Region:
    statics = {name: [value] for name, value in spec["statics"].items()}
    return Region(
        device=device,
        dtype=getattr(torch, spec["dtype"]),
        bounds=tuple((name, low, high) for name, (low, high) in spec["bounds"].items()),
        choices=tuple((name, tuple(values)) for name, values in {**spec["flags"], **statics}.items()),
    )


class Kept(NamedTuple):
    """A shape at which something of PyTorch's own was faster than the package's kernel."""

    dtype: torch.dtype
    sizes: tuple[tuple[str, int], ...]


def read_kept() -> dict[str, tuple[Kept, ...]]:
    """By operator; where several devices judged a shape, the kernel must have lost on all of them."""
    known = loading.provenance()["tasks"]
    return {name: kept_of(known[name].get("shapes", ())) for name in operators.NAMES}


def kept_of(shapes: Sequence[dict[str, Any]]) -> tuple[Kept, ...]:
    won = {shape["workload"] for shape in shapes if not shape["faster"]}
    lost = (shape for shape in shapes if shape["workload"] not in won)
    return tuple(Kept(getattr(torch, shape["dtype"]), tuple(shape["sizes"].items())) for shape in lost)


REGIONS = read()
KEPT = read_kept()


def serves(task: str, like: Tensor, **sizes: int) -> bool:
    """Whether a kernel was proven for the axes and int scalars given, on the device and in the dtype of `like`.

    Not where PyTorch's own was faster on this very shape.
    """
    if not any(inside(region, like, sizes) for region in REGIONS.get(task, ())):
        return False
    return not any(same(kept, like, sizes) for kept in KEPT.get(task, ()))


def same(kept: Kept, like: Tensor, sizes: dict[str, int]) -> bool:
    return kept.dtype == like.dtype and all(sizes[name] == value for name, value in kept.sizes)


def inside(region: Region, like: Tensor, sizes: dict[str, int]) -> bool:
    if region.device != like.device.type or region.dtype != like.dtype:
        return False
    if any(sizes[name] not in values for name, values in region.choices):
        return False
    return all(low <= sizes[name] <= high for name, low, high in region.bounds)
