"""The local worker: a plain process of the same user, fenced by limits, not by a container.

It has its own process group, an empty scratch directory, an environment of a few named variables, resource limits, and
dies with the host program. What it does not have is a wall against reading the user's files: that takes a container.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

from sandbox.contract import Device
from sandbox.errors import WorkerLost
from sandbox.peer import Peer, PeerDied, PeerTimedOut

_START = (
    "import sys, runpy; sys.path[:0] = sys.argv[4].split(':'); runpy.run_module('sandbox.worker', run_name='__main__')"
)
_INHERITED = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_PATH", "CUDA_HOME")
_MAX_FILE_BYTES = 256 << 20
_MAX_OPEN_FILES = 256
_START_TIMEOUT_S = 60.0


class LocalWorker:
    """A worker process for one candidate, with its scratch directory; use as a context manager."""

    def __init__(self, device: Device, memory_bytes: int) -> None:
        self.scratch = tempfile.mkdtemp(prefix="warpsmith-worker-")
        self.errors = Path(self.scratch) / "stderr"
        isolation = ["-I", "-B"] if device.target == "cuda" else ["-I", "-S", "-B"]
        with self.errors.open("wb") as errors:
            self.peer = Peer(
                [sys.executable, *isolation, "-c", _START],
                [device.target, ":".join(_import_path(device))],
                env=_environment(device, self.scratch),
                cwd=self.scratch,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        _limit(self.peer.process.pid, device, memory_bytes)

    def __enter__(self) -> Self:
        try:
            self.peer.wait_ready(_START_TIMEOUT_S)
        except (PeerDied, PeerTimedOut) as exc:
            said = self._said()
            self._end()
            raise WorkerLost(f"the worker process did not start: {exc}\n{said}".rstrip()) from exc
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _said(self) -> str:
        return self.errors.read_text(errors="replace")[-2000:]

    def _end(self) -> None:
        self.peer.kill()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _import_path(device: Device) -> list[str]:
    """Where the worker finds itself, and cuda-bindings for the cuda target."""
    paths = [str(Path(__file__).resolve().parent.parent)]
    if device.target == "cuda":
        spec = importlib.util.find_spec("cuda.bindings")
        locations = list(spec.submodule_search_locations or ()) if spec else []
        paths += [str(Path(location).parent.parent) for location in locations]
    return paths


def _environment(device: Device, scratch: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    threads = {"OMP_NUM_THREADS": str(device.threads), "OMP_DYNAMIC": "false"} if device.target == "cpu" else {}
    return {**kept, **threads, "PATH": "/usr/bin:/bin", "HOME": scratch, "TMPDIR": scratch, "LANG": "C.UTF-8"}


def _limit(pid: int, device: Device, memory_bytes: int) -> None:
    """Set before any byte of the candidate reaches the process, which cannot raise them again."""
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: _MAX_FILE_BYTES, resource.RLIMIT_NOFILE: _MAX_OPEN_FILES}
    if device.target == "cpu":  # The CUDA driver reserves address space far beyond what it uses.
        limits[resource.RLIMIT_AS] = memory_bytes
    for kind, most in limits.items():
        resource.prlimit(pid, kind, (most, most))
