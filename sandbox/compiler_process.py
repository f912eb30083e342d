"""The host's handle on a compile process: start it, ask it, kill it.

Whatever comes back was written by an untrusted process and is bounded and checked here. Not covered: what
is asked (toolchain.py) and the process itself (compiler.py).
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from sandbox import compiler

HEADER_BYTES = 1024 * 1024
BLOB_BYTES = compiler.FILE_BYTES
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


class CompilerProcess:
    """A jailed compile process with a scratch directory of its own, in a session of its own."""

    def __init__(self, kind: Literal["nvrtc", "native"], timeout_s: float) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="warpsmith-compile-")
        self.directory = Path(self._scratch.name)
        # Without site, Python starts in half the time; g++ needs none of its packages.
        python = [sys.executable, "-P", "-B", *(["-S"] if kind == "native" else [])]
        with (self.directory / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(
                [*python, compiler.__file__, kind, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                cwd=self.directory,
                env=environment(self._scratch.name),
                start_new_session=True,
            )
        try:
            self.greeting, _ = self._receive(time.monotonic() + timeout_s)
        except (CompilerDied, CompilerTimedOut):
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], source: bytes, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """Send a request and wait for its answer; the process is gone after any error."""
        deadline = time.monotonic() + timeout_s
        try:
            self._send(compiler.pack(request, source), deadline)
            return self._receive(deadline)
        except (CompilerDied, CompilerTimedOut):
            self.kill()
            raise

    def kill(self) -> None:
        """End the whole process group and remove the scratch directory."""
        if self.alive:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        self._scratch.cleanup()

    def _send(self, frame: bytes, deadline: float) -> None:
        assert self._process.stdin
        descriptor = self._process.stdin.fileno()
        os.set_blocking(descriptor, False)
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
        assert self._process.stdout
        descriptor, parts = self._process.stdout.fileno(), bytearray()
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
        status = self._process.wait()
        words = (self.directory / "stderr").read_text(errors="replace").strip().splitlines()
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return CompilerDied(": ".join([how, *words[-1:]]))
