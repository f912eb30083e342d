"""Any program as a model: the prompt on its standard input, the reply on its standard output.

For coding agents and local models with a command line of their own. The program runs with the user's rights and
environment, in the user's working directory. Not covered: what it costs, which it does not tell.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from agent.engineer.records import Message
from agent.models.endpoint import Failed, FailureKind, Reply, Usage
from sandbox.errors import BadInput

MOST_BYTES = 2_000_000
REASON_LENGTH = 300


class Command:
    """A model that is a program, started anew for each request."""

    def __init__(self, command: str, timeout_s: float = 600.0, deadline: float = math.inf) -> None:
        """`command` is split as a shell would. BadInput where it cannot be, or names no program.

        At `deadline`, of the monotonic clock, whoever asks wants no answer any more.
        """
        try:
            self._words = shlex.split(command)
        except ValueError as exc:
            raise BadInput(f"command {command!r}: {exc}") from exc
        if not self._words:
            raise BadInput("the command is empty; wanted a program that reads a prompt and prints a reply")
        self.name = Path(self._words[0]).name
        self.timeout_s = timeout_s
        self.deadline = deadline
        self._running: set[subprocess.Popen[bytes]] = set()

    def close(self) -> None:
        """End the programs that are running, as where the user wants to stop at once."""
        for program in tuple(self._running):
            _end(program)

    def require(self) -> None:
        """BadInput where the program is not there."""
        if shutil.which(self._words[0]) is None:
            raise BadInput(f"--command: got {self._words[0]!r}, wanted a program that can be started")

    def complete(self, messages: Sequence[Message]) -> Reply | Failed:
        """What the program printed; Failed where that is nothing, takes too long or ends in an error."""
        started = time.monotonic()

        def failed(kind: FailureKind, reason: str) -> Failed:
            line = " ".join(reason.split())[:REASON_LENGTH]
            return Failed(kind=kind, reason=line, seconds=time.monotonic() - started, attempts=1)

        left = self.deadline - started
        if left <= 0:
            return failed("out of time", "the search's time is over")
        prompt = "\n".join(message.content for message in messages)
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as said:
            given.write(prompt.encode())
            given.seek(0)
            try:
                program = subprocess.Popen(
                    self._words, stdin=given, stdout=printed, stderr=said, start_new_session=True
                )
            except OSError as exc:
                return failed("bad request", f"{self._words[0]} cannot be started: {exc.strerror}")
            self._running.add(program)
            try:
                status = program.wait(min(self.timeout_s, left))
            except subprocess.TimeoutExpired:
                if left <= self.timeout_s:
                    return failed("out of time", f"no answer within the {left:.0f} s that the search had left")
                return failed("timed out", f"{self.name} took more than {self.timeout_s:g} s")
            finally:
                _end(program)
                self._running.discard(program)
            printed.seek(0)
            reply = printed.read(MOST_BYTES + 1)
            said.seek(max(0, said.seek(0, os.SEEK_END) - REASON_LENGTH))
            words = said.read().decode(errors="replace")
        if status:
            return failed("server error", f"{self.name} ended with status {status}: {words}")
        if not reply.strip():
            return failed("empty", f"{self.name} printed nothing: {words}" if words.strip() else "it printed nothing")
        if len(reply) > MOST_BYTES:
            return failed("garbled", f"{self.name} printed more than {MOST_BYTES} bytes")
        return Reply(
            text=reply.decode(errors="replace"),
            finish="stop",
            usage=Usage(),
            seconds=time.monotonic() - started,
            model=self.name,
        )


def _end(program: subprocess.Popen[bytes]) -> None:
    """Also what it started and left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
    program.wait()
