"""The memory that the trusted side shares with a worker: inputs are written and outputs read here, on this side.

On cpu a memory file, on cuda memory of the GPU that never crosses the bus. The worker can write anywhere in it, so
nothing that stands here is believed: contents are compared with what this side remembers having written.
"""

from __future__ import annotations

import math
import os
import random
from typing import Any

import torch
from torch import Tensor

from sandbox.contract import Task, Workload
from sandbox.referee.inputs import DTYPES
from sandbox.signature import dtype_of, shape_of
from sandbox.worker import wire
from sandbox.worker.layout import GUARD_BYTES, GUARD_PATTERN, POISON_BYTE, Layout

_SAMPLE = 64
"""Bytes of an output that are looked at to see whether it was written at all."""
_GUARD = GUARD_PATTERN - (1 << 16)
"""As int16, which torch has, in place of uint16, which it has only in part."""


class Arena:
    """The shared memory, and views of it by tensor and set once a workload is laid out."""

    def __init__(self, device: str, size: int) -> None:
        self.device = device
        self.cuda = device == "cuda"
        if self.cuda:
            from sandbox.worker import vmm

            torch.cuda.current_stream()  # makes the context current
            torch.empty(1, device="cuda")
            self.address, self.size, self.descriptor = vmm.create(size)
            self.bytes = torch.as_tensor(_Exported(self.address, self.size), device="cuda")
        else:
            self.size, self.descriptor = size, wire.memory_file("arena", size)
            wire.seal(self.descriptor)
            self.bytes = torch.frombuffer(wire.mapped(self.descriptor, writable=True), dtype=torch.uint8)

    def release(self) -> None:
        """Let go of the memory."""
        self.tensors: list[list[Tensor]] = []
        del self.bytes
        if self.cuda:
            from sandbox.worker import vmm

            torch.cuda.synchronize()
            vmm.release(self.address, self.size, self.descriptor)
        else:
            os.close(self.descriptor)

    def lay(self, task: Task, workload: Workload, layout: Layout) -> None:
        """Everything becomes guard; the views are those of the workload."""
        self.layout = layout
        self.bytes[: layout.total].view(torch.int16).fill_(_GUARD)
        shapes = [(shape_of(spec, workload), DTYPES[dtype_of(spec, workload)]) for spec in task.tensors]
        self.tensors = [
            [
                self.bytes[at : at + size].view(dtype).view(shape)
                for at, size, (shape, dtype) in zip(layout.offsets(i), layout.sizes, shapes, strict=True)
            ]
            for i in range(layout.sets)
        ]
        self.workspace = self.bytes[layout.workspace : layout.workspace + layout.workspace_bytes]

    def poison(self, index: int, outputs: int) -> None:
        """Fill a set's outputs, and the workspace, with what is NaN in every floating-point dtype."""
        for tensor in self.tensors[index][:outputs]:
            _raw(tensor).fill_(POISON_BYTE)
        self.workspace.fill_(POISON_BYTE)

    def unwritten(self, called: list[int], outputs: int, rng: random.Random) -> list[int]:
        """Of the sets `called`, those of which some output is poison wherever a sample looks."""
        sets = self.bytes[self.layout.first : self.layout.total].view(self.layout.sets, self.layout.stride)
        rows = torch.tensor(called, device=self.bytes.device)
        left: set[int] = set()
        for start, size in zip(self.layout.starts[:outputs], self.layout.sizes, strict=False):
            columns = torch.tensor([start + rng.randrange(size) for _ in range(_SAMPLE)], device=self.bytes.device)
            poison = (sets[rows[:, None], columns[None]] == POISON_BYTE).all(dim=1)
            left |= {called[i] for i in poison.nonzero().view(-1).tolist()}
        return sorted(left)

    def poisoned(self, index: int, outputs: int) -> bool:
        """Whether nobody has written to a set's outputs."""
        return all(bool((_raw(tensor) == POISON_BYTE).all()) for tensor in self.tensors[index][:outputs])

    def broken_guards(self, names: list[str]) -> list[str]:
        """Buffers, of any set, beside which something was written."""
        layout = self.layout
        broken = ["workspace"] if not self._intact(layout.workspace, layout.workspace_bytes) else []
        sets = self.bytes[layout.first : layout.total].view(layout.sets, layout.stride)
        for name, start, size in zip(names, layout.starts, layout.sizes, strict=True):
            # What pads a buffer to its alignment belongs to the guard behind it.
            end = start + size
            until = min(layout.stride, -(-end // 256) * 256 + GUARD_BYTES)
            zones = (sets[:, start - GUARD_BYTES : start], sets[:, end:until])
            if not all(_is_guard(zone, at) for zone, at in zip(zones, (0, end), strict=True)):
                broken.append(name)
        return broken

    def _intact(self, start: int, size: int) -> bool:
        end = start + size
        zones = (self.bytes[start - GUARD_BYTES : start], self.bytes[end : self.layout.first])
        return all(_is_guard(zone[None], at) for zone, at in zip(zones, (0, end), strict=True))


class _Exported:
    """GPU memory at an address, as PyTorch takes it from other libraries."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3, "strides": None,
        }  # fmt: skip


def _raw(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


def _is_guard(zone: Tensor, start: int) -> bool:
    """Whether a zone (sets, bytes) that starts at an even or odd byte holds nothing but the guard pattern."""
    low, high = GUARD_PATTERN & 0xFF, GUARD_PATTERN >> 8
    even, odd = zone[:, start % 2 :: 2], zone[:, 1 - start % 2 :: 2]
    return bool((even == low).all()) and bool((odd == high).all())


# ---------------------------------------------------------------- contents


def mix(target: Tensor, value: Tensor, rng: random.Random) -> None:
    """Fill a buffer with the sum of two shifted copies of a drawn value, weighed so that its variance stays.

    Nobody has seen these numbers before, nor can tell them from the drawn ones by a shift or a factor; what was
    positive stays positive.
    """
    flat, source, angle = target.view(-1), value.view(-1), rng.uniform(0.2, 1.37)
    shift, other = rng.randrange(len(flat)), rng.randrange(len(flat))
    for start, origin, count in _shifted(len(flat), shift):
        flat[start : start + count].copy_(source[origin : origin + count])
    flat.mul_(math.cos(angle))
    for start, origin, count in _shifted(len(flat), other):
        flat[start : start + count].add_(source[origin : origin + count], alpha=math.sin(angle))


def _shifted(count: int, shift: int) -> list[tuple[int, int, int]]:
    """Pieces of a rotation: where each starts, where it comes from, how long it is."""
    return [(0, shift, count - shift), *([(count - shift, 0, shift)] if shift else [])]


def move(target: Tensor, value: Tensor, rng: random.Random) -> None:
    """Fill a buffer with the same values in other places: a sum or a histogram sees no change."""
    flat, source = target.view(-1), value.view(-1)
    for start, origin, count in _shifted(len(flat), rng.randrange(len(flat))):
        flat[start : start + count].copy_(source[origin : origin + count])


def patch(target: Tensor, value: Tensor, rng: random.Random) -> None:
    """Copy a drawn value, a hundredth or less replaced by another part: who samples some elements sees no change."""
    flat, source = target.view(-1), value.view(-1)
    length = max(1, int(len(flat) ** rng.uniform(0.2, 1.0) / 100))
    start, origin = (rng.randrange(len(flat) - length + 1) for _ in range(2))
    flat.copy_(source)
    flat[start : start + length] = source[origin : origin + length]


def same_bits(left: Tensor, right: Tensor) -> bool:
    return torch.equal(_raw(left), _raw(right))
