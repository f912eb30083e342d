"""The Docker sandbox: a container for each worker, and one in which compilers run.

No network, a read-only root, no capability, no new privileges, a user without rights, limits on memory, processes and
cores, a private /tmp. The host program and the container share a Unix socket in a folder of its own and nothing else.
Not covered: the memory of a GPU, which no control group limits.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any, Self

import psutil

from sandbox import gpu_route, image, owner, view
from sandbox.compiler_process import CompilerProcess, Kind
from sandbox.container import SOCKET_FOLDER, Box
from sandbox.contract import Device
from sandbox.engine import Container, Engine, usable_cores
from sandbox.errors import EngineUnreachable, WorkerLost
from sandbox.guardian import guardian
from sandbox.launch import Order
from sandbox.local import NOBODY, START_TIMEOUT_S, contents, environment, first_settings, python
from sandbox.peer import Peer, PeerDied, PeerTimedOut

OWNER_LABEL, LAUNCHER_LABEL = "warpsmith.owner", "warpsmith.launcher"
_PROCESSES = 1024
_SCRATCH_BYTES = 1 << 30
_COMPILER_MEMORY_BYTES = 16 << 30
_PATIENCE_S = 8.0
_SERVER_TIMEOUT_S = 15.0


class DockerLauncher:
    """Starts workers and compile processes in containers. Close it when done: that waits until all are gone."""

    name = "docker"

    def __init__(self, engine: Engine, kind: image.Kind) -> None:
        """Remove what host programs that are gone have left; `kind` is the image to use, which has to be there."""
        sweep(engine)
        self.engine, self.kind = engine, kind
        self.route = gpu_route.choose(engine.facts(), host_image=kind == "host")
        self.folder = Path(owner.make_folder("docker"))
        self.numbers = itertools.count(1)
        self.compilers = Compilers(self)

    def worker(self, order: Order) -> DockerWorker:
        return DockerWorker(self, order)

    def compiler(self, kind: Kind, timeout_s: float) -> CompilerProcess:
        return CompilerProcess(kind, timeout_s, self.compilers.start)

    def try_out(self, device: Device | None) -> None:
        """Start the compile container. EngineUnreachable where it does not come up, or no GPU can be passed on."""
        if device and device.target == "cuda" and self.route == "none":
            raise EngineUnreachable(
                f"the Docker engine has no way to a GPU: no NVIDIA runtime, no CDI device, no /dev/nvidia*; "
                f"{gpu_route.VARIABLE} chooses one"
            )
        self.compiler("native", START_TIMEOUT_S).kill()

    def close(self) -> None:
        """End the compile container and wait until the engine has removed every container of this launcher."""
        self.compilers.close()
        with contextlib.suppress(EngineUnreachable):
            self._see_them_gone()
        self.engine.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _see_them_gone(self) -> None:
        """The engine removes what has ended; what it has not removed after a while is removed by force."""
        patience = time.monotonic() + _PATIENCE_S
        while found := self.engine.labelled(f"{LAUNCHER_LABEL}={self.folder.name}"):
            if time.monotonic() > patience:
                for container in found:
                    self.engine.remove(container["Id"])
                return
            time.sleep(0.02)

    # ------------------------------------------------------------ containers

    def open(self, wanted: Container) -> Box:
        return Box(self.engine, wanted, self.folder / str(next(self.numbers)), guardian().watch)

    def worker_container(self, order: Order) -> Container:
        packages, on_gpu = contents(order), order.device.target == "cuda"
        settings = {**first_settings(order), "connect": f"{SOCKET_FOLDER}/socket"}
        arguments: list[str] = [order.device.target, order.kind]
        if order.shared and os.getuid() == 0:
            os.chown(order.shared, NOBODY, NOBODY)
        return self._container(
            packages,
            self._command(packages, order.tool, settings, arguments),
            order.memory_bytes,
            environment=environment(order.device, "/tmp"),
            writable={str(order.shared): str(view.REPORT)} if order.shared else {},
            **(self._gpu() if on_gpu else {}),
        )

    def compile_container(self) -> Container:
        settings = {"limits": {}, "module": "sandbox.worker.compile_server", "connect": f"{SOCKET_FOLDER}/socket"}
        kept = {name: os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ}
        fixed = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/bin:/bin",
            "LC_ALL": "C",
            "HOME": "/tmp",
            "TMPDIR": "/tmp",
        }
        memory = min(_COMPILER_MEMORY_BYTES, psutil.virtual_memory().total * 3 // 4)
        if libraries := self._seen("cuda").libraries:
            fixed["LD_LIBRARY_PATH"] = ":".join(libraries)
        command = self._command("cuda", (), settings, [str(view.COMPILER)])
        return self._container("cuda", command, memory, environment=kept | fixed)

    def _container(self, packages: view.Contents, command: list[str], memory_bytes: int, **more: Any) -> Container:
        seen = self._seen(packages)
        return Container(
            image=image.name(self.kind),
            command=command,
            labels={OWNER_LABEL: owner.this_program(), LAUNCHER_LABEL: self.folder.name},
            user=f"{os.getuid() or NOBODY}:{os.getgid() or NOBODY}",
            memory_bytes=memory_bytes,
            processes=_PROCESSES,
            cores=usable_cores(),
            scratch_bytes=_SCRATCH_BYTES,
            binds=seen.binds | more.pop("binds", {}),
            hidden=seen.hidden,
            **more,
        )

    def _command(
        self, packages: view.Contents, tool: tuple[str, ...], settings: dict[str, Any], arguments: list[str]
    ) -> list[str]:
        """Its first process collects orphans; a tool comes between that and the worker."""
        interpreter = python(packages, view.interpreter() if self.kind == "host" else "python3")
        settings = settings | {"path": self._seen(packages).path}
        if not tool:
            return [*interpreter, str(view.START), json.dumps(settings | {"reap": True}), *arguments]
        command = [*tool, *interpreter, str(view.START), json.dumps(settings)]
        return [*interpreter, str(view.START), json.dumps({"reap": True, "exec": command}), *arguments]

    def _seen(self, packages: view.Contents) -> view.View:
        return view.of_host(packages) if self.kind == "host" else view.of_image()

    def _gpu(self) -> dict[str, Any]:
        if self.route == "nodes":
            libraries = {} if self.kind == "host" else gpu_route.driver_libraries()
            return {"devices": gpu_route.nodes(), "binds": libraries}
        runtime = "nvidia" if self.route == "runtime" else None
        return {"device_request": gpu_route.request(self.route), "runtime": runtime}


class DockerWorker:
    """A worker in a container of its own; use as a context manager."""

    def __init__(self, launcher: DockerLauncher, order: Order) -> None:
        self.box = launcher.open(launcher.worker_container(order))
        self.peer: Peer

    def __enter__(self) -> Self:
        self.peer = self.box.peer()
        try:
            self.peer.wait_ready(START_TIMEOUT_S)
        except (PeerDied, PeerTimedOut) as exc:
            said = self.box.said()
            self.box.end()
            raise WorkerLost(f"the worker did not start in its container: {exc}\n{said}".rstrip()) from exc
        return self

    def __exit__(self, *_: object) -> None:
        self.box.end()


# ---------------------------------------------------------------- compilers


class Compilers:
    """The container in which compilers run, started with the first of them and anew when it is lost."""

    def __init__(self, launcher: DockerLauncher) -> None:
        self.launcher = launcher
        self.box: Box | None = None
        self.lock = threading.Lock()

    def start(self, kind: Kind) -> ContainedCompiler:
        """A compile process; EngineUnreachable or WorkerLost where the container does not come up."""
        with self.lock:
            try:
                return ContainedCompiler(self, kind)
            except (PeerDied, PeerTimedOut, WorkerLost):
                # Somebody ended the container since it was last used.
                return self._start_anew(kind)

    def _start_anew(self, kind: Kind) -> ContainedCompiler:
        try:
            return ContainedCompiler(self, kind)
        except (PeerDied, PeerTimedOut) as exc:
            raise WorkerLost(f"the container of the compilers does not stay up: {exc}") from exc

    def running(self) -> Box:
        if self.box is None:
            box = self.launcher.open(self.launcher.compile_container())
            try:
                box.peer().wait_ready(START_TIMEOUT_S)
            except BaseException:
                box.end()
                raise
            self.box = box
        return self.box

    def ask(self, operation: str, descriptors: tuple[int, ...] = (), **fields: Any) -> dict[str, Any]:
        """PeerDied or PeerTimedOut where the container is lost; the next start makes another."""
        try:
            return self.running().peer().ask(operation, _SERVER_TIMEOUT_S, descriptors, **fields)
        except (PeerDied, PeerTimedOut, WorkerLost):
            self.close()
            raise

    def close(self) -> None:
        if self.box:
            self.box.end()
            self.box = None


class ContainedCompiler:
    """A compile process in the container."""

    def __init__(self, compilers: Compilers, kind: Kind) -> None:
        self.compilers, self.box = compilers, compilers.running()
        self._errors = os.memfd_create("stderr", os.MFD_CLOEXEC)
        theirs_in, self.requests = os.pipe()
        self.answers, theirs_out = os.pipe()
        try:
            started = compilers.ask("start", (theirs_in, theirs_out, self._errors), kind=kind)
        except (PeerDied, PeerTimedOut, WorkerLost):
            self._close()
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self.process, self.folder = int(started["process"]), str(started["folder"])

    def words(self) -> str:
        return os.pread(self._errors, 1 << 16, 0).decode(errors="replace")

    def end(self, patience_s: float) -> int | None:
        self._close()
        with self.compilers.lock:
            if self.compilers.box is not self.box:
                return None
            with contextlib.suppress(PeerDied, PeerTimedOut, WorkerLost):
                answer = self.compilers.ask("end", process=self.process, patience_s=patience_s)
                return int(answer["status"])
        return None

    def _close(self) -> None:
        for descriptor in (self.requests, self.answers, self._errors):
            os.close(descriptor)


# ---------------------------------------------------------------- what was left behind


def sweep(engine: Engine) -> list[str]:
    """Remove the containers and folders of host programs that are gone; their names."""
    orphans = [found for found in engine.labelled(OWNER_LABEL) if owner.gone(found["Labels"][OWNER_LABEL])]
    for orphan in orphans:
        engine.remove(orphan["Id"])
    return [orphan["Names"][0].strip("/") for orphan in orphans] + owner.sweep_folders()
