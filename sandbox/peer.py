"""A process on the other end of a Unix socket: ask it, time it, freeze it, kill it with everything it started.

Not covered: what is asked (judge.py) and how a sandboxed process is set up (local.py, docker.py).
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
from typing import Any, Protocol, Self

from sandbox.descendants import Family, Unstoppable
from sandbox.worker import wire

_LAST_WORDS_S = 2.0


class PeerDied(Exception):
    """The process ended, or broke the protocol; says how."""


class PeerBabbled(PeerDied):
    """The process sent what is no answer to what it was asked; it has been killed."""


class PeerMoved(PeerDied):
    """The process could not be frozen; it has been killed."""


class PeerTimedOut(Exception):
    """No reply came in time; the process has been killed."""

    def __init__(self, operation: str, seconds: float) -> None:
        super().__init__(f"{operation} took more than {seconds:.0f} s")
        self.operation, self.seconds = operation, seconds


class Body(Protocol):
    """What is known of the process behind the socket by whoever started it."""

    def members(self) -> list[int]: ...
    def cpu_seconds(self) -> float: ...
    def threads(self) -> int: ...
    def stop(self) -> None: ...
    def go_on(self) -> None: ...

    def kill(self) -> None:
        """End everything; may be called again."""

    def code(self, timeout_s: float) -> int | None:
        """The exit code, negative for a signal; None where it still runs after `timeout_s`, or nobody can tell."""


class Child(Family):
    """A child process of ours, and its descendants."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(process.pid)
        self.process = process

    def code(self, timeout_s: float) -> int | None:
        try:
            code = self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return code if code <= 128 else 128 - code

    def kill(self) -> None:
        # Stopped first: what forked while its ancestors died one by one would belong to nobody.
        with contextlib.suppress(Unstoppable):
            self.stop()
        super().kill()
        self.process.wait()


class Peer:
    """One process in a process group of its own, spoken to over a socket."""

    def __init__(
        self, command: Sequence[str], arguments: Sequence[str], env: dict[str, str], cwd: str, **popen: Any
    ) -> None:
        """Start `command`, followed by the descriptors of its socket and of the pipe it lives by, and `arguments`."""
        ours, theirs = socket.socketpair()
        lifeline, held = os.pipe()
        handed = [theirs.fileno(), lifeline]
        with theirs:
            process = subprocess.Popen(
                [*command, *map(str, handed), *arguments],
                env=env,
                cwd=cwd,
                start_new_session=True,
                pass_fds=handed,
                stdin=subprocess.DEVNULL,
                **popen,
            )
        os.close(lifeline)
        self._hold(ours, os.fdopen(held, "wb", buffering=0), Child(process))

    @classmethod
    def over(cls, connection: socket.socket, lifeline: Any, body: Body) -> Self:
        """A process that was started elsewhere and has connected; it dies when `lifeline` is closed."""
        peer = cls.__new__(cls)
        peer._hold(connection, lifeline, body)
        return peer

    def _hold(self, connection: socket.socket, lifeline: Any, body: Body) -> None:
        self.socket, self.lifeline, self.body = connection, lifeline, body

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # ------------------------------------------------------------ talking

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
            raise PeerBabbled(f"a reply to {operation} that answers no request")
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
        except wire.Garbled as exc:
            self.kill()
            raise PeerBabbled(str(exc)) from exc
        except wire.ConnectionLost as exc:
            raise PeerDied(self._epitaph(str(exc))) from exc
        for descriptor in descriptors:
            os.close(descriptor)
        return message

    def _epitaph(self, reason: str) -> str:
        code = self.body.code(_LAST_WORDS_S)
        self.kill()
        if code is None:
            return reason
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"

    # ------------------------------------------------------------ holding

    def freeze(self) -> None:
        """Stop every thread of the process and its descendants; returns when they stand. PeerDied where they do not.

        About 0.2 ms. A process that arranged to be sent SIGCONT wakes up all the same, and uses CPU time by it.
        """
        try:
            self.body.stop()
        except Unstoppable as exc:
            self.kill()
            raise PeerMoved(str(exc)) from exc

    def thaw(self) -> None:
        """Let them continue."""
        self.body.go_on()

    def processes(self) -> list[int]:
        """Process ids, on this side, of the process and its descendants as far as they live."""
        return self.body.members()

    def threads(self) -> int:
        """Threads of all of them."""
        return self.body.threads()

    def cpu_seconds(self) -> float:
        """CPU time, user and system, of all that live now."""
        return self.body.cpu_seconds()

    def kill(self) -> None:
        """Kill the process, its group and every descendant that left the group; return when they are gone."""
        self.body.kill()
        self.socket.close()
        self.lifeline.close()
