"""The far side: serves one candidate over one connection, then dies.

    python -I -m sandbox.worker SOCKET LIFELINE TARGET KIND

Requests are JSON objects with an `op` and an `id`; the reply repeats the id. A failure of a candidate is a reply with
`error`; anything worse ends the process, which the judge sees. Inputs and outputs are bytes in the arena, memory that
the judge's side owns, fills and reads. Not covered: any decision. Nothing here knows an expected output, a seed or a
verdict.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from sandbox.worker import wire
from sandbox.worker.layout import POISON_BYTE


class Session:
    """The arena, and the prepared calls of the workload at hand."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.calls: list[Any] = []
        self.private: list[tuple[int, int, int]] = []
        """Where a sanitizer watches: own address, address in the arena and bytes of each buffer."""
        self.base = self.workspace = self.workspace_bytes = 0

    def attach(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """Map the arena behind the descriptor."""
        self.base = self.device.attach(descriptors[0], request["bytes"])
        return {}

    def load(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """Load one specialisation from the file passed along."""
        self.calls = []
        self.device.load(request, descriptors[0])
        return {}

    def bind(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Prepare a call on each set; with `private`, on one set in buffers of its own."""
        for address, _source, _size in self.private:
            self.device.free(address)
        self.private = []
        self.workspace_bytes = workspace_bytes = request["plan"]["workspace_bytes"]
        workspace = self.base + request["workspace"] if workspace_bytes else 0
        sets = [[self.base + offset for offset in offsets] for offsets in request["sets"]]
        if request.get("private"):
            workspace = self.device.allocate(workspace_bytes) if workspace_bytes else 0
            sets = [self._privately(sets[0], [tensor["size"] for tensor in request["tensors"]])]
        self.workspace = workspace
        self.calls = [self.device.prepare(request, pointers, workspace) for pointers in sets]
        self.device.synchronise()
        return {}

    def _privately(self, pointers: list[int], sizes: list[int]) -> list[int]:
        self.private = [(self.device.allocate(size), at, size) for at, size in zip(pointers, sizes, strict=True)]
        return [address for address, _, _ in self.private]

    def call(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """One call on each of the sets, the workspace poisoned between them."""
        outputs = request.get("outputs", 0)
        for address, source, size in self.private[outputs:]:
            self.device.copy(address, source, size)
        for turn, index in enumerate(request["sets"]):
            if turn and self.workspace_bytes:
                self.device.fill(self.workspace, POISON_BYTE, self.workspace_bytes)
            self.device.run([self.calls[index]])
        self.device.synchronise()
        for address, source, size in self.private:
            self.device.copy(source, address, size)
        self.device.synchronise()
        return {}

    def time(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Calls on the sets of `turns`, one after another."""
        events = self.device.time([self.calls[turn] for turn in request["turns"]], request["flush"])
        self.device.synchronise()
        return {"events_ms": events}

    def profile(self, request: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """Where the time of the calls in `turns` goes; torch sources only."""
        return {"seconds": self.device.profile([self.calls[turn] for turn in request["turns"]])}


def _open(target: str, kind: str) -> Any:
    if kind == "torch":
        from sandbox.worker.torch_calls import TorchCalls

        return TorchCalls(target)
    if target == "cpu":
        from sandbox.worker.cpu import Cpu

        return Cpu()
    from sandbox.worker.cuda import Cuda

    return Cuda()


def serve(sock: socket.socket, target: str, kind: str) -> None:
    """Answer requests until the connection closes."""
    device = _open(target, kind)
    session = Session(device)
    operations = {name: getattr(session, name) for name in ("attach", "load", "bind", "call", "time", "profile")}
    wire.send(sock, {"ready": True})
    while True:
        try:
            request, descriptors = wire.receive(sock)
        except wire.ConnectionLost:
            return
        try:
            reply = operations[request["op"]](request, descriptors)
        except device.failures as exc:
            reply = {"error": str(exc), "stage": getattr(exc, "stage", "")}
        for descriptor in descriptors if request["op"] != "load" else ():
            os.close(descriptor)
        wire.send(sock, {"id": request["id"], **reply})


if __name__ == "__main__":
    wire.die_with(int(sys.argv[2]))
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else "kernel")
