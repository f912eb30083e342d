"""One container and the process in it that speaks to us: brought up in the background, held, ended.

Not covered: what the container is for (docker.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import Any

from sandbox.descendants import Family
from sandbox.engine import Container, Engine
from sandbox.errors import EngineUnreachable, WorkerLost
from sandbox.peer import Body, Peer

SOCKET_FOLDER = "/run/warpsmith"
_CONNECT_TIMEOUT_S = 60.0
_LOOK_S = 0.25
_LAST_WORDS = 2000
_SIGNALLED = 128


class Box:
    """A container on its way up, or running. Always `end` it."""

    def __init__(self, engine: Engine, wanted: Container, folder: Path, watch: Callable[[int], None]) -> None:
        """`folder` is made for its socket alone; `watch` is told the process to kill should this program die."""
        self.engine, self.folder, self.watch = engine, folder, watch
        self.wanted = dataclasses.replace(wanted, binds=wanted.binds | {str(folder): SOCKET_FOLDER})
        self.errors = os.memfd_create("stderr", os.MFD_CLOEXEC)
        self.born = time.time()
        self.code: Future[int | None] = Future()
        self._peer: Future[Peer] = Future()
        self._listener = self._listen()
        threading.Thread(target=self._live, name=folder.name, daemon=True).start()

    def peer(self) -> Peer:
        """The process, as soon as it has connected. EngineUnreachable or WorkerLost where it does not."""
        return self._peer.result()

    def said(self) -> str:
        """The end of what it wrote to its standard output and error."""
        return os.pread(self.errors, 1 << 20, 0).decode(errors="replace")[-_LAST_WORDS:]

    def end(self) -> None:
        """Kill everything in it. The engine removes the container on its own time."""
        with contextlib.suppress(WorkerLost, EngineUnreachable):
            self.peer().kill()
        if self.errors >= 0:
            os.close(self.errors)
            self.errors = -1

    # ------------------------------------------------------------ a thread of its own

    def _live(self) -> None:
        container = ""
        try:
            container = self.engine.create(self.wanted)
            self.engine.start(container)
            self._peer.set_result(self._connect(container))
        except BaseException as exc:  # noqa: BLE001  It is raised where the result is asked for.
            self.code.set_result(None)
            with contextlib.suppress(EngineUnreachable):
                self.engine.remove(container) if container else None
            self._peer.set_exception(exc)
        else:
            self.code.set_result(self.engine.wait(container))
        finally:
            self._listener.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _listen(self) -> socket.socket:
        self.folder.mkdir(mode=0o755)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        address = self.folder / "socket"
        # By way of a descriptor: an address has 107 characters, and a temporary folder may lie deep.
        place = os.open(self.folder, os.O_PATH)
        listener.bind(f"/proc/self/fd/{place}/socket")
        os.close(place)
        address.chmod(0o666)  # The folder above is ours alone; whoever is inside the container is somebody else.
        listener.listen(2)
        return listener

    def _connect(self, container: str) -> Peer:
        """Two connections: one to talk over, one to live by, on which standard output and error are handed over."""
        connection, lifeline = self._accept(container), self._accept(container)
        socket.send_fds(lifeline, [b"."], [self.errors])
        body = self._body(container, connection)
        return Peer.over(connection, lifeline, body)

    def _accept(self, container: str) -> socket.socket:
        deadline = time.monotonic() + _CONNECT_TIMEOUT_S
        while not select.select([self._listener], [], [], _LOOK_S)[0]:
            if not self.engine.runs(container):
                raise WorkerLost(f"the container ended before it had connected: {self._autopsy()}")
            if time.monotonic() > deadline:
                raise WorkerLost(f"the container did not connect within {_CONNECT_TIMEOUT_S:.0f} s")
        return self._listener.accept()[0]

    def _autopsy(self) -> str:
        """What a second one of the kind says before it ends."""
        container = self.engine.create(dataclasses.replace(self.wanted, keep=True))
        try:
            self.engine.start(container)
            time.sleep(_LOOK_S)
            return self.engine.output(container)[-_LAST_WORDS:].strip() or "it said nothing"
        finally:
            self.engine.remove(container)

    def _body(self, container: str, connection: socket.socket) -> Body:
        root = _root_of(_process_behind(connection))
        if not root or not _may_signal(root):
            return HeldByEngine(self, container)
        self.watch(root)
        return HeldBySignals(self, container, root)


# ---------------------------------------------------------------- holding


class HeldBySignals(Family):
    """The processes of a container, which we may signal ourselves."""

    def __init__(self, box: Box, container: str, root: int) -> None:
        super().__init__(root)
        self.box, self.container = box, container

    def code(self, timeout_s: float) -> int | None:
        return exit_code(self.box, self.container, timeout_s)


class HeldByEngine:
    """The processes of a container, through the engine: slower by far, and CPU time of the container as a whole."""

    def __init__(self, box: Box, container: str) -> None:
        self.box, self.engine, self.container = box, box.engine, container

    def members(self) -> list[int]:
        return self.engine.processes(self.container)

    def cpu_seconds(self) -> float:
        return self.engine.usage(self.container)[0]

    def threads(self) -> int:
        return self.engine.usage(self.container)[1]

    def stop(self) -> None:
        self.engine.pause(self.container)

    def go_on(self) -> None:
        self.engine.unpause(self.container)

    def kill(self) -> None:
        self.engine.remove(self.container)

    def code(self, timeout_s: float) -> int | None:
        return exit_code(self.box, self.container, timeout_s)


def exit_code(box: Box, container: str, timeout_s: float) -> int | None:
    """As Body.code; WorkerLost where the engine went away or somebody stopped the container by it."""
    try:
        code = box.code.result(timeout=timeout_s)
    except NotYet:
        code = None
    if code not in (None, _SIGNALLED + 9, _SIGNALLED + 15):
        return code if code <= _SIGNALLED else _SIGNALLED - code
    if not box.engine.answers():
        raise WorkerLost("the Docker engine went away while a candidate was running")
    if box.engine.interfered(container, box.born, time.time()):
        raise WorkerLost("somebody stopped the container in which a candidate was running")
    return None if code is None else _SIGNALLED - code


def _process_behind(connection: socket.socket) -> int:
    """Its process id as we count, 0 where it has none here."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def _root_of(pid: int) -> int:
    """The init of the PID namespace that a process lives in; 0 where it cannot be found."""
    while pid:
        status = _status(pid)
        if status.get("NSpid", "0").split()[-1] == "1":
            return pid
        pid = int(status.get("PPid", 0))
    return 0


def _status(pid: int) -> dict[str, Any]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def _may_signal(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
