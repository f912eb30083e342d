"""The memory that the trusted side shares with a worker: inputs are written and outputs read here, on this side.

On cpu a memory file, on cuda memory of the GPU that never crosses the bus. The worker can write anywhere in it, so
nothing that stands here is believed: contents are compared with what this side remembers having written.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
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


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
        self.strips = list(self._strips())

    def _strips(self) -> Iterator[Strip]:
        """All guard zones: around the workspace, and those of every set side by side."""
        layout, none = self.layout, -1
        end = layout.workspace + layout.workspace_bytes
        yield from _strip(self.bytes[None], (0, layout.workspace, layout.workspace), none, none)
        yield from _strip(self.bytes[None], (end, layout.first, layout.first), none, none)
        sets = self.bytes[layout.first : layout.total].view(layout.sets, layout.stride)
        ends = [start + size for start, size in zip(layout.starts, layout.sizes, strict=True)]
        for i, (before, after) in enumerate(zip([0, *ends], [*layout.starts, layout.stride], strict=True)):
            # What pads a buffer to its alignment belongs to the guard behind it.
            between = after - GUARD_BYTES if 0 < i < len(ends) else after
            yield from _strip(sets, (before, between, after), max(0, i - 1), min(i, len(ends) - 1))

    def poison(self, index: int, outputs: int) -> None:
        """Fill a set's outputs with what is NaN in every floating-point dtype."""
        for tensor in self.tensors[index][:outputs]:
            _raw(tensor).fill_(POISON_BYTE)

    def poison_workspace(self) -> None:
        """The same with what all sets share."""
        if len(self.workspace):
            self.workspace.fill_(POISON_BYTE)

    def unwritten(self, called: list[int], outputs: int, rng: random.Random) -> list[int]:
        """Of the sets `called`, those of which some output is poison wherever a sample looks."""
        if not called:
            return []
        sets = self.bytes[self.layout.first : self.layout.total].view(self.layout.sets, self.layout.stride)
        rows = torch.tensor(called, device=self.bytes.device)
        left: set[int] = set()
        for start, size in zip(self.layout.starts[:outputs], self.layout.sizes, strict=False):
            columns = torch.tensor([start + rng.randrange(size) for _ in range(_SAMPLE)], device=self.bytes.device)
            poison = (sets[rows[:, None], columns[None]] == POISON_BYTE).all(dim=1)
            left |= {called[i] for i in poison.nonzero().view(-1).tolist()}
        return sorted(left)

    def poisoned(self, index: int, outputs: int) -> list[Tensor]:
        """By output of a set, whether nobody has written to it; on the device, as is all that every check looks at."""
        return [(_raw(tensor) == POISON_BYTE).all() for tensor in self.tensors[index][:outputs]]

    def intact(self) -> Tensor:
        """Whether no guard zone was written to."""
        return torch.stack([(strip.bits == strip.pattern).all() for strip in self.strips]).all()

    def broken_guards(self, names: list[str]) -> list[str]:
        """Buffers, of any set, beside which something was written."""
        beside: set[int] = set()
        for strip in self.strips:
            columns = (strip.bits != strip.pattern).any(dim=0).nonzero().view(-1).tolist()
            beside |= {strip.before if column < strip.middle else strip.after for column in columns}
        return [name for i, name in enumerate(["workspace", *names], start=-1) if i in beside]


@dataclass(frozen=True)
class Strip:
    """Guard zones between two buffers, of all sets: what must stand in each place."""

    bits: Tensor
    """By set and place."""
    pattern: int
    middle: int
    """Places before it guard the buffer `before`, the others the one `after`; -1 is the workspace."""
    before: int
    after: int


def _strip(rows: Tensor, span: tuple[int, int, int], before: int, after: int) -> Iterator[Strip]:
    """The bytes from the first of `span` to the last, in twos; an odd one that comes first stands alone."""
    start, middle, end = span
    if start % 2:
        yield Strip(rows[:, start : start + 1], GUARD_PATTERN >> 8, 1, before, after)
        start += 1
    yield Strip(rows[:, start:end].view(torch.int16), _GUARD, (middle - start) // 2, before, after)


class _Exported:
    """GPU memory at an address, as PyTorch takes it from other libraries."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3, "strides": None,
        }  # fmt: skip


def _raw(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


# ---------------------------------------------------------------- contents


def twice(value: Tensor) -> Tensor:
    """A drawn value two times in a row: any stretch of its length is a rotation of it."""
    return value.view(-1).repeat(2)


def mix(target: Tensor, doubled: Tensor, rng: random.Random) -> None:
    """Fill a buffer with the sum of two shifted copies of a drawn value, weighed so that its variance stays.

    Nobody has seen these numbers before, nor can tell them from the drawn ones by a shift or a factor; what was
    positive stays positive.
    """
    flat, angle = target.view(-1), rng.uniform(0.2, 1.37)
    torch.mul(_rotated(doubled, rng), math.cos(angle), out=flat)
    flat.add_(_rotated(doubled, rng), alpha=math.sin(angle))


def move(target: Tensor, doubled: Tensor, rng: random.Random) -> None:
    """Fill a buffer with the same values in other places: a sum or a histogram sees no change."""
    target.view(-1).copy_(_rotated(doubled, rng))


def patch(target: Tensor, doubled: Tensor, rng: random.Random) -> None:
    """Copy a drawn value, a hundredth or less replaced by another part: who samples some elements sees no change."""
    flat, source = target.view(-1), doubled[: target.numel()]
    length = max(1, int(len(flat) ** rng.uniform(0.2, 1.0) / 100))
    start, origin = (rng.randrange(len(flat) - length + 1) for _ in range(2))
    flat.copy_(source)
    flat[start : start + length] = source[origin : origin + length]


def _rotated(doubled: Tensor, rng: random.Random) -> Tensor:
    count = doubled.numel() // 2
    shift = rng.randrange(count)
    return doubled[shift : shift + count]


def same_bits(left: Tensor, right: Tensor) -> Tensor:
    """Whether two tensors are the same, on their device."""
    if not left.is_cuda:
        return torch.tensor(torch.equal(_raw(left), _raw(right)))
    return (_words(left) == _words(right)).all()


def _words(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(_INTEGERS[tensor.itemsize])
