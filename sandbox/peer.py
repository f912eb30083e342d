"""A process on the other end of a Unix socket: ask it, time it, kill it with everything it started.

Not covered: what is asked (judge.py) and how a sandboxed process is set up (local.py).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import Any, Self

import psutil

from sandbox.worker import wire


class PeerDied(Exception):
    """The process ended, or broke the protocol; says how."""


class PeerTimedOut(Exception):
    """No reply came in time; the process has been killed."""

    def __init__(self, operation: str, seconds: float) -> None:
        super().__init__(f"{operation} took more than {seconds:.0f} s")
        self.operation, self.seconds = operation, seconds


class Peer:
    """One process in a process group of its own, spoken to over a socket pair."""

    def __init__(
        self, command: Sequence[str], arguments: Sequence[str], env: dict[str, str], cwd: str, **popen: Any
    ) -> None:
        """Start `command`, followed by the descriptors of its socket and of the pipe it lives by, and `arguments`."""
        self.socket, theirs = socket.socketpair()
        lifeline, self.lifeline = os.pipe()
        handed = [theirs.fileno(), lifeline]
        with theirs:
            self.process = subprocess.Popen(
                [*command, *map(str, handed), *arguments],
                env=env,
                cwd=cwd,
                start_new_session=True,
                pass_fds=handed,
                stdin=subprocess.DEVNULL,
                **popen,
            )
        os.close(lifeline)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait_ready(self, timeout_s: float) -> dict[str, Any]:
        """The message that the process sends first."""
        return self._receive("start", timeout_s)

    def ask(self, operation: str, timeout_s: float, descriptors: Sequence[int] = (), **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its reply; PeerDied or PeerTimedOut, the process killed, where none comes."""
        nonce = secrets.token_hex(8)
        try:
            wire.send(self.socket, {"op": operation, "id": nonce, **fields}, tuple(descriptors))
        except wire.ConnectionLost as exc:
            raise PeerDied(self._epitaph(str(exc))) from exc
        reply = self._receive(operation, timeout_s)
        if reply.get("id") != nonce:
            self.kill()
            raise PeerDied(f"a reply to {operation} that answers no request")
        return reply

    def timed(self, operation: str, timeout_s: float, **fields: Any) -> tuple[float, dict[str, Any]]:
        """As `ask`, with the seconds from request to reply on this side's clock."""
        start = time.perf_counter()
        reply = self.ask(operation, timeout_s, **fields)
        return time.perf_counter() - start, reply

    def _receive(self, operation: str, timeout_s: float) -> dict[str, Any]:
        try:
            message, descriptors = wire.receive(self.socket, timeout_s)
        except wire.DeadlinePassed as exc:
            self.kill()
            raise PeerTimedOut(operation, timeout_s) from exc
        except wire.ConnectionLost as exc:
            raise PeerDied(self._epitaph(str(exc))) from exc
        for descriptor in descriptors:
            os.close(descriptor)
        return message

    def _epitaph(self, reason: str) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=0.5)
        code = self.process.returncode
        self.kill()
        if code is None:
            return reason
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"

    def kill(self) -> None:
        """Kill the process, its group and every descendant that left the group; return when they are gone."""
        victims = _descendants(self.process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        self.process.wait()
        if self.socket.fileno() >= 0:
            self.socket.close()
            os.close(self.lifeline)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
