"""Device layer of the cpu target: a candidate's shared library, called through ctypes in this process.

The candidate owns this process; nothing it could have written here is believed by the judge.
"""

from __future__ import annotations

import ctypes
from typing import Any

from sandbox.worker import wire

_SCALARS: dict[str, Any] = {"float": ctypes.c_float, "int": ctypes.c_int, "axis": ctypes.c_int64}


class Cpu:
    """Loads and calls; addresses are plain integers."""

    failures: tuple[type[Exception], ...] = (OSError, AttributeError)

    def __init__(self) -> None:
        self.functions: dict[str, Any] = {}
        self.libc = ctypes.CDLL(None)

    def attach(self, descriptor: int, _: int) -> int:
        """Map the arena; its address."""
        self.arena = wire.mapped(descriptor, writable=True)
        return ctypes.addressof(ctypes.c_char.from_buffer(self.arena))

    def load(self, request: dict[str, Any], descriptor: int) -> None:
        """Load the shared library behind `descriptor`; OSError or AttributeError where it cannot be."""
        library = ctypes.CDLL(f"/proc/self/fd/{descriptor}", mode=ctypes.RTLD_LOCAL)
        function = library[request["entry"]]
        function.restype = None
        self.functions[request["key"]] = function

    def allocate(self, size: int) -> int:
        """A buffer of its own, whose bounds a sanitizer knows."""
        address = ctypes.c_void_p()
        if self.libc.posix_memalign(ctypes.byref(address), ctypes.c_size_t(64), ctypes.c_size_t(max(1, size))):
            raise MemoryError(f"no {size} bytes for a buffer")
        return int(address.value or 0)

    def free(self, address: int) -> None:
        self.libc.free(ctypes.c_void_p(address))

    def copy(self, target: int, source: int, size: int) -> None:
        ctypes.memmove(target, source, size)

    def fill(self, address: int, byte: int, size: int) -> None:
        ctypes.memset(address, byte, size)

    def prepare(self, request: dict[str, Any], pointers: list[int], workspace: int) -> Any:
        """One call, ready to be repeated."""
        values = [ctypes.c_void_p(pointer) for pointer in pointers]
        values += [_SCALARS[kind](value) for kind, value in request["scalars"]]
        values.append(ctypes.c_void_p(workspace or None))
        clear = request["plan"]["workspace_bytes"] if request["plan"]["zero_workspace"] else 0
        return self.functions[request["key"]], values, workspace, clear

    def run(self, calls: list[Any]) -> None:
        """Make the calls one after another."""
        for function, values, workspace, clear in calls:
            if clear:
                ctypes.memset(workspace, 0, clear)
            function(*values)

    def time(self, calls: list[Any], flush: bool) -> list[float]:
        """Make the calls; the clock that decides runs in the judge, so nothing is measured here."""
        self.run(calls)
        return []

    def synchronise(self) -> None:
        """Calls return when they are done."""
