"""The memory that the trusted side shares with a worker: inputs are written and outputs read here, on this side.

On cpu a memory file, on cuda memory of the GPU that never crosses the bus. The worker can write anywhere in it, so
nothing that stands here is believed: contents are compared with what this side remembers having written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sandbox.contract import Task, Workload
from sandbox.referee.inputs import DTYPES
from sandbox.signature import dtype_of, shape_of
from sandbox.worker import wire
from sandbox.worker.layout import GUARD_BYTES, GUARD_PATTERN, POISON_BYTE, Layout

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

Segment = tuple[int, int, int]
"""Where it starts in the buffer, where in the drawn value, and how many elements."""


def rolled(count: int, by: float) -> list[Segment]:
    """The drawn value moved along by a share of its length: the same values elsewhere, so nothing to recognise."""
    shift = int(by * count)
    return [(0, shift, count - shift), (count - shift, 0, shift)] if 0 < shift < count else [(0, 0, count)]


def patched(count: int, at: float, share: float) -> list[Segment]:
    """The drawn value with one stretch replaced by another part of it: what samples some elements sees no change."""
    length = max(1, int(share * count))
    start = int(at * max(0, count - length))
    source = (start + count // 2) % max(1, count - length + 1)
    pieces = [(0, 0, start), (start, source, length), (start + length, start + length, count - start - length)]
    return [piece for piece in pieces if piece[2] > 0]


def write(target: Tensor, value: Tensor, segments: list[Segment]) -> None:
    """Compose a buffer from pieces of a drawn value."""
    for part, piece in _pairs(target, value, segments):
        part.copy_(piece)


def holds(target: Tensor, value: Tensor, segments: list[Segment]) -> bool:
    """Whether a buffer still holds, bit by bit, what `write` put there."""
    return all(torch.equal(_raw(part), _raw(piece)) for part, piece in _pairs(target, value, segments))


def _pairs(target: Tensor, value: Tensor, segments: list[Segment]) -> Iterator[tuple[Tensor, Tensor]]:
    flat, source = target.view(-1), value.view(-1)
    for start, origin, count in segments:
        yield flat[start : start + count], source[origin : origin + count]
