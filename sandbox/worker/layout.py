"""Where a buffer's bytes and its guard zones lie, in the worker's memory and in what it sends back.

A dump is, for each buffer in parameter order and then for the workspace: guard, data, guard.
"""

from __future__ import annotations

GUARD_BYTES = 1024
"""On each side of every buffer."""
GUARD_BYTE = 0xA5
POISON_BYTE = 0xFF
"""Outputs are filled with it before a call: NaN in every floating-point dtype, -1 in integers."""
ALIGNMENT = 256


def padded(size: int) -> int:
    """`size` rounded up to the alignment of buffers."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def offsets(sizes: list[int]) -> tuple[list[int], int]:
    """Start of each piece when pieces of `sizes` bytes follow each other aligned, and the end of the last."""
    starts, at = [], 0
    for size in sizes:
        starts.append(at)
        at += padded(size)
    return starts, at


def dump_offsets(sizes: list[int]) -> tuple[list[int], int]:
    """Start of each buffer's data in a dump, and the dump's size; its guards lie directly before and after it."""
    starts, at = [], 0
    for size in sizes:
        starts.append(at + GUARD_BYTES)
        at += padded(size + 2 * GUARD_BYTES)
    return starts, at
