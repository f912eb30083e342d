"""The local sandbox: processes of this machine, fenced by namespaces where the kernel lets us, else by limits alone.

Fenced, a worker is alone in namespaces of its own: no network, no other process, a root made of read-only system
folders and a private /tmp, no capability, and another user where we are root. Unfenced, it has a process group, an
empty folder and limits, and could read the user's files. Not covered: a limit on memory over all its processes
(docker.py has one).
"""

from __future__ import annotations

import json
import os
import resource
import secrets
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import IO, Any, Self

from sandbox import owner, view
from sandbox.compiler_process import CompilerProcess, Kind
from sandbox.contract import Device
from sandbox.errors import WorkerLost
from sandbox.guardian import guardian
from sandbox.launch import BOUND, Order
from sandbox.peer import Peer, PeerDied, PeerTimedOut

NOBODY = 65534
# One user each, where we are root: the limit on processes counts by user, and one worker's must not be another's.
_FIRST_USER, _USERS = 61_184, 4_336
START = Path(__file__).parent / "worker" / "start.py"
_NAMESPACES = ("--pid", "--fork", "--kill-child", "--net", "--mount", "--ipc", "--uts")
_INHERITED = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_PATH", "CUDA_HOME")
# A folder that is there on every machine: the new root is mounted over it, where nobody else sees it.
_MOUNT_POINTS = ("/mnt", "/media", "/srv", "/home")
_MAX_FILE_BYTES = 256 << 20
_MAX_OPEN_FILES = 256
_MAX_PROCESSES = 1024
_SCRATCH_BYTES = 1 << 30
START_TIMEOUT_S = 120.0
_PROBE_TIMEOUT_S = 10.0


class LocalLauncher:
    """Starts local workers; fenced wherever that is possible, unless `fenced` says otherwise."""

    def __init__(self, fenced: bool | None = None) -> None:
        owner.sweep_folders()
        self.fenced = not missing_for_fence() if fenced is None else fenced
        self.name = "namespaces" if self.fenced else "local"

    def worker(self, order: Order) -> LocalWorker:
        return LocalWorker(order, self.fenced)

    def compiler(self, kind: Kind, timeout_s: float) -> CompilerProcess:
        return CompilerProcess(kind, timeout_s)

    def close(self) -> None:
        """Nothing outlives its candidate."""


class LocalWorker:
    """A worker process for one candidate; use as a context manager."""

    def __init__(self, order: Order, fenced: bool) -> None:
        self.scratch = None if fenced else owner.make_folder("worker")
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  Closed in _end.
        self.peer = Peer(
            _fenced(order) if fenced else _unfenced(order),
            [order.device.target, order.kind],
            env=environment(order.device, self.scratch or "/tmp"),
            cwd=self.scratch or "/",
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
        )
        for pid in self.peer.processes()[:1]:
            guardian().watch(pid)

    def __enter__(self) -> Self:
        try:
            self.peer.wait_ready(START_TIMEOUT_S)
        except (PeerDied, PeerTimedOut) as exc:
            said = self._said()
            self._end()
            raise WorkerLost(f"the worker process did not start: {exc}\n{said}".rstrip()) from exc
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _said(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")[-2000:]

    def _end(self) -> None:
        self.peer.kill()
        self.errors.close()
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)


# ---------------------------------------------------------------- commands


def _fenced(order: Order) -> list[str]:
    seen = view.of_host(contents(order))
    settings = {**first_settings(order), "path": seen.path}
    settings["limits"] |= {resource.RLIMIT_NPROC: _MAX_PROCESSES}
    fence = {**_fence(seen), "writable": {str(order.shared): str(view.REPORT)} if order.shared else {}}
    if order.shared and os.getuid() == 0:
        os.chown(order.shared, fence["uid"], fence["uid"])
    if not order.tool:
        return [*_unshare(), *_python(order), str(START), json.dumps({**settings, "reap": True, "fence": fence})]
    command = [*order.tool, *_python(order), str(view.START), json.dumps(settings)]
    return [*_unshare(), *_python(order), str(START), json.dumps({"reap": True, "fence": fence, "exec": command})]


def _unfenced(order: Order) -> list[str]:
    settings = {**first_settings(order), "path": _own_path(order), "reap": True}
    tool = [part.replace(str(view.REPORT), str(order.shared)) for part in order.tool]
    return [*tool, *_python(order), str(START), json.dumps(settings)]


def _python(order: Order) -> list[str]:
    return python(contents(order), view.interpreter())


def _unshare() -> list[str]:
    """Where we are root, the worker becomes another user; else root of a namespace that knows no other user."""
    return ["unshare", *(() if os.getuid() == 0 else ("--user", "--map-root-user")), *_NAMESPACES, "--"]


def _fence(seen: view.View) -> dict[str, Any]:
    return {
        "root": next(place for place in _MOUNT_POINTS if _free(place, seen)),
        "binds": seen.binds,
        "hidden": seen.hidden,
        "writable": {},
        "devices": [str(device) for device in Path("/dev").glob("nvidia*") if device.is_char_device()],
        "scratch_bytes": _SCRATCH_BYTES,
        "uid": _next_user() if os.getuid() == 0 else 0,
    }


def _next_user() -> int:
    """A user that no other worker is likely to be; of those that are kept for services started for a while."""
    return _FIRST_USER + secrets.randbelow(_USERS)


def _free(place: str, seen: view.View) -> bool:
    return Path(place).is_dir() and not any(Path(source).is_relative_to(place) for source in seen.binds)


def python(packages: view.Contents, interpreter: str) -> list[str]:
    """Without site, Python starts in half the time; the worker of the cpu target needs none of its packages."""
    return [interpreter, "-I", "-B", *(["-S"] if packages == "bare" else [])]


def contents(order: Order) -> view.Contents:
    if order.kind == "torch":
        return "torch"
    return "cuda" if order.device.target == "cuda" else "bare"


def first_settings(order: Order) -> dict[str, Any]:
    """What start.py is told in every sandbox."""
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: _MAX_FILE_BYTES, resource.RLIMIT_NOFILE: _MAX_OPEN_FILES}
    if contents(order) == "bare":  # The CUDA driver and torch reserve address space far beyond what they use.
        limits[resource.RLIMIT_AS] = order.memory_bytes
    return {"module": "sandbox.worker", "limits": limits}


def _own_path(order: Order) -> list[str]:
    return [str(Path(__file__).resolve().parent.parent), *([] if contents(order) == "bare" else filter(None, sys.path))]


def environment(device: Device, scratch: str) -> dict[str, str]:
    """Every variable of a worker."""
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    threads = {}
    if device.target == "cpu":
        threads = {"OMP_NUM_THREADS": str(device.threads), "OMP_DYNAMIC": "false", **BOUND}
    fixed = {"PATH": _programs(), "HOME": scratch, "TMPDIR": scratch, "LANG": "C.UTF-8", "USER": "nobody"}
    return {**kept, **threads, **fixed}


def _programs() -> str:
    """nvcc, for torch sources that bring CUDA code, beside what every system has."""
    return ":".join(place for place in ("/usr/local/cuda/bin", "/usr/local/bin", "/usr/bin", "/bin"))


# ---------------------------------------------------------------- what this machine allows


@cache
def missing_for_fence() -> str:
    """Why workers cannot be fenced on this machine; empty where they can."""
    if shutil.which("unshare") is None:
        return "no unshare command (util-linux)"
    seen = view.of_host("bare")
    settings = {"fence": _fence(seen), "limits": {}, "path": [], "module": ""}
    command = [*_unshare(), view.interpreter(), "-I", "-S", "-B", str(START), json.dumps(settings)]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"making namespaces took more than {_PROBE_TIMEOUT_S:.0f} s"
    return "" if tried.returncode == 0 else (tried.stderr.strip().splitlines() or ["unshare failed"])[-1]
