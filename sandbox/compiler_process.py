"""The host's handle on a compile process: ask it, end it, and start it as a child of ours.

Whatever comes back was written by an untrusted process and is bounded and checked here. Not covered: what
is asked (toolchain.py), the process itself (compiler.py), and starting it in a container (docker.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from sandbox import compiler, owner

HEADER_BYTES = 1024 * 1024
LAST_WORDS_S = 1.0
BLOB_BYTES = compiler.FILE_BYTES
Kind = Literal["nvrtc", "native"]

PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH")


class CompilerDied(Exception):
    """The compile process ended, or broke the protocol, before it answered."""


class CompilerTimedOut(Exception):
    """The compile process did not answer in time and was killed."""


def cuda_packages() -> str:
    """The places that the compile process imports cuda-bindings and finds NVIDIA's wheels from, as PYTHONPATH."""
    places = [Path(entry) for entry in sys.path if Path(entry).is_absolute()]
    return os.pathsep.join(
        str(place) for place in places if (place / "cuda" / "bindings").is_dir() or (place / "nvidia").is_dir()
    )


def environment(scratch: str) -> dict[str, str]:
    """All that a compiler needs to know, and nothing else: no keys, no home."""
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {**kept, "LC_ALL": "C", "TMPDIR": scratch, "PYTHONPATH": cuda_packages()}


class Running(Protocol):
    """A compile process, as whoever started it can steer it."""

    requests: int
    """Descriptor of its standard input; ours to write to and, like the other, to close in `end`."""
    answers: int
    """Descriptor of its standard output."""
    folder: str
    """Its scratch folder, as it sees it."""

    def words(self) -> str:
        """What it wrote to its standard error."""

    def end(self, patience_s: float) -> int | None:
        """Kill it with all it started, remove the folder; its exit code if known, negative for a signal.

        It may end by itself for `patience_s`, so that the code is its own.
        """


class ChildCompiler:
    """A compile process of this machine: a jailed child with a scratch folder of its own, in a session of its own."""

    def __init__(self, kind: Kind) -> None:
        self.folder = owner.make_folder("compile")
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  Closed in end.
        # Without site, Python starts in half the time; g++ needs none of its packages.
        python = [sys.executable, "-P", "-B", *(["-S"] if kind == "native" else [])]
        self._process = subprocess.Popen(
            [*python, compiler.__file__, kind, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            cwd=self.folder,
            env=environment(self.folder),
            start_new_session=True,
        )
        assert self._process.stdin
        assert self._process.stdout
        self.requests, self.answers = self._process.stdin.fileno(), self._process.stdout.fileno()

    def words(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")

    def end(self, patience_s: float) -> int | None:
        with os.fdopen(os.pidfd_open(self._process.pid)) as process:
            select.select([process], [], [], patience_s)
        # Not reaped yet, so that the number of its group cannot belong to another.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        self._stderr.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        return code


class CompilerProcess:
    """A compile process that has greeted and can be asked."""

    def __init__(self, kind: Kind, timeout_s: float, start: Callable[[Kind], Running] = ChildCompiler) -> None:
        self._running = start(kind)
        self._ended = False
        self.directory = Path(self._running.folder)
        os.set_blocking(self._running.requests, False)
        try:
            self.greeting, _ = self._receive(time.monotonic() + timeout_s)
        except (CompilerDied, CompilerTimedOut):
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        """Whether it can still be asked; between requests it says nothing unless it ends."""
        return not self._ended and not select.select([self._running.answers], [], [], 0)[0]

    def ask(self, request: dict[str, Any], source: bytes, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """Send a request and wait for its answer; the process is gone after any error."""
        deadline = time.monotonic() + timeout_s
        try:
            self._send(compiler.pack(request, source), deadline)
            return self._receive(deadline)
        except (CompilerDied, CompilerTimedOut):
            self.kill()
            raise

    def kill(self, patience_s: float = 0.0) -> int | None:
        """End it with all it started; its exit code, None where nobody knows."""
        if self._ended:
            return None
        self._ended = True
        return self._running.end(patience_s)

    def _send(self, frame: bytes, deadline: float) -> None:
        descriptor = self._running.requests
        while frame:
            _, ready, _ = select.select([], [descriptor], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise CompilerTimedOut
            try:
                frame = frame[os.write(descriptor, frame) :]
            except BrokenPipeError as exc:
                raise self._died() from exc

    def _receive(self, deadline: float) -> tuple[dict[str, Any], bytes]:
        header_bytes, blob_bytes = compiler.FRAME.unpack(self._read(compiler.FRAME.size, deadline))
        if header_bytes > HEADER_BYTES or blob_bytes > BLOB_BYTES:
            raise CompilerDied("the compile process sent an oversized answer")
        try:
            header = json.loads(self._read(header_bytes, deadline))
        except ValueError as exc:
            raise CompilerDied("the compile process sent a malformed answer") from exc
        if not isinstance(header, dict):
            raise CompilerDied("the compile process sent a malformed answer")
        return header, self._read(blob_bytes, deadline)

    def _read(self, size: int, deadline: float) -> bytes:
        descriptor, parts = self._running.answers, bytearray()
        while len(parts) < size:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise CompilerTimedOut
            part = os.read(descriptor, min(size - len(parts), 1 << 20))
            if not part:
                raise self._died()
            parts += part
        return bytes(parts)

    def _died(self) -> CompilerDied:
        """What is known about the end of the process: its signal or exit status, and its last words."""
        words = self._running.words().strip().splitlines()
        status = self.kill(LAST_WORDS_S)
        how = "ended" if status is None else signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return CompilerDied(": ".join([how, *words[-1:]]))
