"""The far side: serves one candidate over one connection, then dies.

    python -I -m sandbox.worker SOCKET LIFELINE TARGET

Requests are JSON objects with an `op` and an `id`; the reply repeats the id. A failure of a candidate is a reply with
`error`; anything worse ends the process, which the judge sees. Inputs come and outputs go as bytes in memory files.
Not covered: any decision. Nothing here knows an expected output, a seed or a verdict.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from typing import Any

from sandbox.worker import wire
from sandbox.worker.layout import GUARD_BYTES, POISON_BYTE, dump_offsets, offsets


class Session:
    """The buffers and prepared calls of the workload at hand."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.sets: list[list[Any]] = []
        self.calls: list[Any] = []
        self.workspace: Any = None
        self.cursor = 0
        self.dump: Any = None

    def load(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """Load one specialisation from the memory file passed along."""
        image = wire.mapped(descriptors[0], writable=False)
        self.device.load(request["key"], descriptors[0], entry=request["entry"], image=image[:])
        return {}

    def bind(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Allocate `sets` sets of buffers for a workload and prepare a call on each."""
        self.device.release()
        self.outputs, self.sizes, plan = request["outputs"], request["sizes"], request["plan"]
        self.workspace = self.device.allocate(plan["workspace_bytes"]) if plan["workspace_bytes"] else None
        self.sets = [[self.device.allocate(size) for size in self.sizes] for _ in range(request["sets"])]
        self.calls = [
            self.device.prepare(
                request["key"], [self.device.address(b) for b in buffers], request["scalars"], plan, self.workspace
            )
            for buffers in self.sets
        ]
        self.device.synchronise()
        return {}

    def fill(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """Copy in-outs and inputs in from the memory file, and poison outputs and workspace."""
        buffers = self.sets[request["set"]]
        image = wire.mapped(descriptors[0], writable=False)
        address = _address(image)
        starts, _ = offsets(self.sizes[self.outputs :])
        for buffer, start in zip(buffers[self.outputs :], starts, strict=True):
            self.device.write(buffer, address + start)
        for buffer in buffers[: self.outputs] + ([self.workspace] if self.workspace else []):
            self.device.fill(buffer, POISON_BYTE)
        self.device.synchronise()
        return {}

    def call(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """One call on one set."""
        self.device.run([self.calls[request["set"]]])
        self.device.synchronise()
        return {}

    def time(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """`calls` calls, rotating over the sets from where the last request stopped."""
        calls = [self.calls[(self.cursor + i) % len(self.calls)] for i in range(request["calls"])]
        self.cursor += request["calls"]
        return {"events_ms": self.device.time(calls, request["flush"])}

    def read(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """Copy every buffer of a set and the workspace, guards included, into the memory file of the first request."""
        if self.dump is None:
            self.dump = wire.mapped(descriptors[0], writable=True)
            self.device.pin(_address(self.dump), len(self.dump))
        buffers = self.sets[request["set"]] + ([self.workspace] if self.workspace else [])
        starts, _ = dump_offsets([buffer[2] for buffer in buffers])
        address = _address(self.dump)
        for buffer, start in zip(buffers, starts, strict=True):
            self.device.dump(buffer, address + start - GUARD_BYTES)
        return {}


def _address(image: Any) -> int:
    """Where a mapping lies; ctypes takes writable buffers only, so a read-only one is found by its own pointer."""
    view = ctypes.py_object(image)
    holder = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(view, ctypes.byref(holder), 0)
    address = int(holder.buf)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(holder))
    return address


class _PyBuffer(ctypes.Structure):
    _fields_ = (
        ("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t), ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int), ("ndim", ctypes.c_int), ("format", ctypes.c_char_p), ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p), ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p),
    )  # fmt: skip


def _open(target: str) -> tuple[Any, tuple[type[Exception], ...]]:
    if target == "cpu":
        from sandbox.worker.cpu import Cpu

        return Cpu(), (OSError, AttributeError)
    from sandbox.worker.cuda import Cuda, CudaFailure

    return Cuda(), (CudaFailure,)


def serve(sock: socket.socket, target: str) -> None:
    """Answer requests until the connection closes."""
    device, failures = _open(target)
    session = Session(device)
    operations = {name: getattr(session, name) for name in ("load", "bind", "fill", "call", "time", "read")}
    wire.send(sock, {"ready": True})
    while True:
        try:
            request, descriptors = wire.receive(sock)
        except wire.ConnectionLost:
            return
        try:
            reply = operations[request["op"]](request, descriptors)
        except failures as exc:
            reply = {"error": str(exc)}
        for descriptor in descriptors if request["op"] != "load" else ():
            os.close(descriptor)
        wire.send(sock, {"id": request["id"], **reply})


if __name__ == "__main__":
    wire.die_with(int(sys.argv[2]))
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[3])
