"""Where the buffers of a workload lie in the arena, the memory that the trusted side shares with a worker.

An arena holds the workspace and then, `stride` bytes apart, the sets: one buffer for each tensor in parameter order.
Every buffer stands between two guard zones of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

GUARD_BYTES = 1024
"""On each side of every buffer."""
GUARD_PATTERN = 0xFFA5
"""Repeated throughout a guard zone: NaN in float16, bfloat16 and float32, so that reading beyond a buffer shows."""
POISON_BYTE = 0xFF
"""Outputs are filled with it before a call: NaN in every floating-point dtype, -1 in integers."""
ALIGNMENT = 256


def padded(size: int) -> int:
    """`size` rounded up to the alignment of buffers."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Layout:
    """Sizes in bytes; offsets count from the start of the arena."""

    sizes: tuple[int, ...]
    """Of each tensor."""
    starts: tuple[int, ...]
    """Of each tensor's data, from the start of its set."""
    stride: int
    sets: int
    workspace_bytes: int

    @property
    def workspace(self) -> int:
        return GUARD_BYTES

    @property
    def first(self) -> int:
        """Where set 0 starts."""
        return padded(self.workspace_bytes) + 2 * GUARD_BYTES

    @property
    def total(self) -> int:
        return self.first + self.sets * self.stride

    def offsets(self, index: int) -> list[int]:
        """Of the data of each tensor of a set."""
        return [self.first + index * self.stride + start for start in self.starts]


def lay_out(sizes: list[int], sets: int, workspace_bytes: int) -> Layout:
    """The layout of `sets` sets of tensors of `sizes` bytes."""
    starts, at = [], 0
    for size in sizes:
        starts.append(at + GUARD_BYTES)
        at += padded(size) + 2 * GUARD_BYTES
    return Layout(tuple(sizes), tuple(starts), at, sets, workspace_bytes)
