"""Starts compile processes inside a container, each a fork of this one: the interpreter is warm already.

Runs as `module` of start.py: SOCKET LIFELINE and the path of compiler.py. Requests: `start` {kind} with the descriptors
of standard input, output and error; the reply names the process and its folder. `end` {process, patience_s} kills it,
removes its folder, and replies with its exit status. Not covered: what is compiled (compiler.py), and any trust:
candidate text may have taken over everything in this container.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from sandbox.worker import wire


class Server:
    """The compile processes of one container."""

    def __init__(self, compiler: str) -> None:
        self.compiler = compiler
        self.program = compile(Path(compiler).read_bytes(), compiler, "exec")
        self.folders: dict[int, str] = {}

    def start(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        folder = tempfile.mkdtemp(prefix="warpsmith-compile-")
        parent, process = os.getpid(), os.fork()
        if process == 0:
            self._become(request["kind"], parent, folder, descriptors)
        self.folders[process] = folder
        return {"process": process, "folder": folder}

    def _become(self, kind: str, parent: int, folder: str, descriptors: list[int]) -> None:
        """The rest of the child's life."""
        try:
            os.setsid()
            for standard, descriptor in enumerate(descriptors):
                os.dup2(descriptor, standard)
            os.closerange(3, 256)
            os.chdir(folder)
            os.environ["TMPDIR"] = folder
            sys.argv = [self.compiler, kind, str(parent)]
            exec(self.program, {"__name__": "__main__", "__file__": self.compiler})
            sys.stdout.flush()
        except BaseException:  # noqa: BLE001  A child that went on would serve a second time.
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def end(self, request: dict[str, Any], _descriptors: list[int]) -> dict[str, Any]:
        process = request["process"]
        folder = self.folders.pop(process)
        with os.fdopen(os.pidfd_open(process)) as running:
            select.select([running], [], [], request["patience_s"])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        shutil.rmtree(folder, ignore_errors=True)
        return {"status": os.waitstatus_to_exitcode(status)}


def main() -> None:
    wire.die_with(int(sys.argv[2]))
    connection = socket.socket(fileno=int(sys.argv[1]))
    server = Server(sys.argv[3])
    operations = {"start": server.start, "end": server.end}
    wire.send(connection, {"ready": True})
    while True:
        try:
            request, descriptors = wire.receive(connection)
        except wire.ConnectionLost:
            return
        reply = operations[request["op"]](request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        wire.send(connection, {"id": request["id"], **reply})


if __name__ == "__main__":
    main()
