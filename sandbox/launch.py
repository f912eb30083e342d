"""Where untrusted processes run: what a launcher is asked for, and which launcher this machine gets.

Not covered: how one works (docker.py, local.py) and what is said to the processes (peer.py, toolchain.py).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from sandbox.compiler_process import CompilerProcess, Kind
from sandbox.contract import Device
from sandbox.errors import EngineUnreachable, WorkerLost
from sandbox.peer import Peer

BOUND = {"OMP_PROC_BIND": "true", "OMP_PLACES": "threads"}
"""One OpenMP thread a core, for candidates and baselines: two that wake up on one core take turns of milliseconds."""
Sandbox = Literal["auto", "docker", "local"]


@dataclass(frozen=True)
class Order:
    """What a sandboxed worker is to be."""

    device: Device
    memory_bytes: int
    """Host memory; a GPU's own is not limited."""
    kind: Literal["kernel", "torch"] = "kernel"
    """Which device layer the worker loads, together with the device's target."""
    tool: tuple[str, ...] = ()
    """Put before the Python command: compute-sanitizer or ncu with their options, which may name files below /out."""
    shared: Path | None = None
    """Host folder that the worker finds at /out, writable, for the tool's report only."""


class Worker(Protocol):
    """A sandboxed process that serves one candidate."""

    peer: Peer


class Launcher(Protocol):
    """Starts sandboxed processes."""

    name: str
    """`docker`, `namespaces` or, without any fence, `local`: shown to the user and kept with every judgement."""

    def worker(self, order: Order) -> AbstractContextManager[Worker]:
        """A worker, started at once and in the background; entering the context waits until it is ready.

        Leaving the context ends it with all it started, also where the context was never entered. WorkerLost where
        none can be started.
        """

    def compiler(self, kind: Kind, timeout_s: float) -> CompilerProcess:
        """A compile process that is ready; CompilerDied or CompilerTimedOut where it does not get there."""

    def close(self) -> None:
        """End what serves more than one candidate, and leave nothing behind."""


def choose(sandbox: Sandbox, device: Device | None = None) -> tuple[Launcher, str]:
    """The launcher for workers on `device`, started and tried, and why this one: a sentence for the user.

    EngineUnreachable or WorkerLost where `docker` was asked for and cannot be had. `local` never asks an engine.
    """
    if sandbox == "local":
        return _local("as asked for")
    try:
        return _docker(device)
    except (EngineUnreachable, WorkerLost) as exc:
        if sandbox == "docker":
            raise
        return _local(f"Docker cannot be used: {str(exc).splitlines()[0]}")


def _docker(device: Device | None) -> tuple[Launcher, str]:
    from sandbox import image
    from sandbox.docker import DockerLauncher
    from sandbox.engine import Engine

    engine = Engine()
    kind, made = image.available(engine), ""
    if kind is None:
        image.from_host(engine)
        kind, made = "host", ", which was made for it just now"
    launcher = DockerLauncher(engine, kind)
    try:
        launcher.try_out(device)
    except (EngineUnreachable, WorkerLost):
        launcher.close()
        raise
    of = "software of this machine, read-only" if kind == "host" else "its own software"
    return launcher, f"containers of Docker {engine.version()}, image {image.name(kind)} ({of}){made}"


def _local(reason: str) -> tuple[Launcher, str]:
    from sandbox.local import LocalLauncher, missing_for_fence

    launcher = LocalLauncher()
    if launcher.fenced:
        return launcher, f"{reason}; NO CONTAINER: namespaces without network and without the user's files"
    return (
        launcher,
        f"{reason}; NO CONTAINER AND NO FENCE ({missing_for_fence()}): candidates could read the user's files",
    )
