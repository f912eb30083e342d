"""Device layer of the cpu target: a candidate's shared library, called through ctypes in this process.

The candidate owns this process; nothing it could have written here is believed by the judge.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

from sandbox.worker.layout import ALIGNMENT, GUARD_BYTE, GUARD_BYTES

Buffer = tuple[mmap.mmap, int, int]
"""Mapping that keeps it alive, address of the data, bytes of data."""

_SCALARS: dict[str, Any] = {"float": ctypes.c_float, "int": ctypes.c_int, "axis": ctypes.c_int64}


class Cpu:
    """Loads, allocates, copies and calls; addresses are plain integers."""

    def __init__(self) -> None:
        self.functions: dict[str, Any] = {}

    def load(self, key: str, descriptor: int, entry: str, **_: Any) -> None:
        """Load the shared library behind `descriptor`; OSError or AttributeError where it cannot be."""
        library = ctypes.CDLL(f"/proc/self/fd/{descriptor}", mode=ctypes.RTLD_LOCAL)
        function = library[entry]
        function.restype = None
        self.functions[key] = function

    def allocate(self, size: int) -> Buffer:
        """A buffer of `size` bytes between two guard zones."""
        mapping = mmap.mmap(-1, size + 2 * GUARD_BYTES + ALIGNMENT)
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        ctypes.memset(start, GUARD_BYTE, len(mapping))
        return mapping, start + GUARD_BYTES, size

    def address(self, buffer: Buffer) -> int:
        return buffer[1]

    def write(self, buffer: Buffer, source: int) -> None:
        """Copy from host memory at `source`."""
        ctypes.memmove(buffer[1], source, buffer[2])

    def fill(self, buffer: Buffer, byte: int) -> None:
        ctypes.memset(buffer[1], byte, buffer[2])

    def dump(self, buffer: Buffer, target: int) -> None:
        """Copy guard, data, guard to host memory at `target`."""
        ctypes.memmove(target, buffer[1] - GUARD_BYTES, buffer[2] + 2 * GUARD_BYTES)

    def pin(self, address: int, size: int) -> None:
        """Host memory is as near as it gets."""

    def prepare(
        self, key: str, pointers: list[int], scalars: list[list[Any]], plan: dict[str, Any], workspace: Buffer | None
    ) -> Any:
        """One call, ready to be repeated."""
        values = [ctypes.c_void_p(pointer) for pointer in pointers]
        values += [_SCALARS[kind](value) for kind, value in scalars]
        values.append(ctypes.c_void_p(workspace[1] if workspace else None))
        clear = workspace if plan["zero_workspace"] else None
        return self.functions[key], values, clear

    def run(self, calls: list[Any]) -> None:
        """Make the calls one after another."""
        for function, values, clear in calls:
            if clear is not None:
                self.fill(clear, 0)
            function(*values)

    def time(self, calls: list[Any], flush: bool) -> list[float]:
        """Make the calls; the clock that decides runs in the judge, so nothing is measured here."""
        self.run(calls)
        return []

    def synchronise(self) -> None:
        """Calls return when they are done."""

    def release(self) -> None:
        """Mappings go with the last reference."""
