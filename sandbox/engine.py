"""The Docker engine as the sandbox uses it; the only module that knows docker-py.

Not covered: what a container is for (docker.py) and what an image is made of (image.py).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import docker.errors
import docker.types
import requests.exceptions

from sandbox.errors import EngineUnreachable

TIMEOUT_S = 60
DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
_PING_TIMEOUT_S = 5
_BUILD_TIMEOUT_S = 3600


@dataclass(frozen=True)
class Container:
    """What a container is to be. Every one is removed by the engine as soon as it ends."""

    image: str
    command: list[str]
    labels: dict[str, str]
    environment: dict[str, str]
    user: str
    memory_bytes: int
    processes: int
    cores: str
    """As in /proc: `0-3,8`."""
    scratch_bytes: int
    binds: dict[str, str]
    """Place in the container by place here, read-only."""
    writable: dict[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    """Folders that are to look empty."""
    devices: tuple[str, ...] = ()
    device_request: dict[str, Any] | None = None
    runtime: str | None = None
    keep: bool = False
    """Leave it there when it has ended, so that its output can be read."""


class Engine:
    """A connection to the engine that DOCKER_HOST names, else to the one of this machine. Safe to share."""

    def __init__(self) -> None:
        """EngineUnreachable where none answers."""
        self.address = os.environ.get("DOCKER_HOST") or DEFAULT_ADDRESS
        if not self.address.startswith("unix://"):
            raise EngineUnreachable(f"DOCKER_HOST is {self.address}; wanted one of this machine, as {DEFAULT_ADDRESS}")
        self._knock()
        with _translated("answer"):
            docker.APIClient(version="auto", timeout=_PING_TIMEOUT_S, base_url=self.address).close()
            self.api = docker.APIClient(version="auto", timeout=TIMEOUT_S, base_url=self.address)

    def _knock(self) -> None:
        """Said here, and more clearly than docker-py does, which also forgets to close what it could not connect."""
        with socket.socket(socket.AF_UNIX) as door:
            try:
                door.connect(self.address.removeprefix("unix://"))
            except OSError as exc:
                why = f"{exc.strerror}; start one, or use --sandbox local"
                raise EngineUnreachable(f"no Docker engine answers at {self.address} ({why})") from exc

    def close(self) -> None:
        self.api.close()

    def answers(self) -> bool:
        """Whether the engine is still there."""
        try:
            with _translated("ping"):
                return bool(self.api.ping())
        except EngineUnreachable:
            return False

    def version(self) -> str:
        with _translated("ask its version"):
            return str(self.api.version()["Version"])

    def facts(self) -> dict[str, Any]:
        """`docker info`."""
        with _translated("ask about it"):
            found: dict[str, Any] = self.api.info()
            return found

    # ------------------------------------------------------------ images

    def image(self, name: str) -> dict[str, Any] | None:
        """What is known of an image; None where it is not there."""
        try:
            with _translated("look for an image"):
                found: dict[str, Any] = self.api.inspect_image(name)
                return found
        except docker.errors.ImageNotFound:
            return None

    def import_image(self, tree: bytes, repository: str, tag: str) -> None:
        """Make an image of a tar file."""
        with _translated("import an image"):
            self.api.import_image_from_data(tree, repository=repository, tag=tag)

    def build_image(self, folder: Path, tag: str, arguments: dict[str, str]) -> Iterator[str]:
        """Build a Dockerfile, saying what the engine says. EngineUnreachable where it fails."""
        with _translated("build an image"):
            steps = self.api.build(
                path=str(folder),
                tag=tag,
                buildargs=arguments,
                rm=True,
                forcerm=True,
                decode=True,
                timeout=_BUILD_TIMEOUT_S,
            )
            for step in steps:
                if "error" in step:
                    raise EngineUnreachable(f"the image was not built: {step['error'].strip()}")
                if text := str(step.get("stream", "")).rstrip():
                    yield text

    # ------------------------------------------------------------ containers

    def create(self, wanted: Container) -> str:
        """The id of a new container that does not run yet."""
        with _translated("create a container"):
            mounts = [
                docker.types.Mount(target, source, type="bind", read_only=read_only)
                for places, read_only in ((wanted.binds, True), (wanted.writable, False))
                for source, target in places.items()
            ]
            tmpfs = {"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={wanted.scratch_bytes}"}
            host = self.api.create_host_config(
                network_mode="none",
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                pids_limit=wanted.processes,
                mem_limit=wanted.memory_bytes,
                memswap_limit=wanted.memory_bytes,
                cpuset_cpus=wanted.cores,
                tmpfs=tmpfs | dict.fromkeys(wanted.hidden, "ro,size=4k"),
                mounts=mounts,
                auto_remove=not wanted.keep,
                ipc_mode="private",
                ulimits=[docker.types.Ulimit(name="core", soft=0, hard=0)],
                log_config=docker.types.LogConfig(type="json-file", config={"max-size": "64k"}),
                devices=[f"{device}:{device}:rw" for device in wanted.devices],
                device_requests=[docker.types.DeviceRequest(**wanted.device_request)]
                if wanted.device_request
                else None,
                runtime=wanted.runtime,
            )
            made = self.api.create_container(
                wanted.image,
                command=wanted.command,
                labels=wanted.labels,
                environment=wanted.environment,
                user=wanted.user,
                hostname="sandbox",
                working_dir="/tmp",
                host_config=host,
            )
            return str(made["Id"])

    def start(self, container: str) -> None:
        with _translated("start a container"):
            self.api.start(container)

    def wait(self, container: str) -> int | None:
        """The exit code, once it has ended; None where the engine forgot it or went away meanwhile."""
        try:
            with _translated("wait for a container"):
                return int(self.api.wait(container, timeout=None)["StatusCode"])
        except (docker.errors.NotFound, EngineUnreachable):
            return None

    def runs(self, container: str) -> bool:
        try:
            with _translated("look at a container"):
                return bool(self.api.inspect_container(container)["State"]["Running"])
        except docker.errors.NotFound:
            return False

    def output(self, container: str) -> str:
        """The last lines it wrote."""
        with _translated("read a container's output"):
            return bytes(self.api.logs(container, tail=20)).decode(errors="replace")

    def labelled(self, label: str) -> list[dict[str, Any]]:
        """All containers with a label, those that do not run too: `Id`, `Labels`, `State`, `Created` (seconds)."""
        with _translated("list containers"):
            found: list[dict[str, Any]] = self.api.containers(all=True, filters={"label": label})
            return found

    def remove(self, container: str) -> None:
        """Kill and remove it, if it is still there."""
        with contextlib.suppress(docker.errors.NotFound), _translated("remove a container"):
            try:
                self.api.remove_container(container, force=True, v=True)
            except docker.errors.APIError as exc:
                if exc.status_code != 409:  # Somebody else removes it already.
                    raise

    def interfered(self, container: str, since: float, until: float) -> bool:
        """Whether somebody used the engine to kill or stop the container between two moments, Unix seconds."""
        with _translated("read its events"):
            seen = self.api.events(
                since=int(since), until=int(until) + 1, filters={"container": container, "event": ["kill", "stop"]}
            )
            return bool(list(seen))

    # ------------------------------------------------------------ holding, where signals are not permitted

    def pause(self, container: str) -> None:
        with _translated("pause a container"):
            self.api.pause(container)

    def unpause(self, container: str) -> None:
        with _translated("unpause a container"):
            self.api.unpause(container)

    def processes(self, container: str) -> list[int]:
        """Process ids as the engine's machine numbers them."""
        with _translated("list a container's processes"):
            found = self.api.top(container, ps_args="-eo pid")
            return [int(row[0]) for row in found["Processes"]]

    def usage(self, container: str) -> tuple[float, int]:
        """CPU seconds used, and how many threads and processes there are."""
        with _translated("read a container's usage"):
            found = self.api.stats(container, stream=False, one_shot=True)
            return found["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9, int(found["pids_stats"].get("current", 0))


@contextlib.contextmanager
def _translated(attempt: str) -> Iterator[None]:
    """What docker-py raises, as ours; that something is not there passes through."""
    try:
        yield
    except docker.errors.NotFound:
        raise
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as exc:
        said = str(exc.explanation) if isinstance(exc, docker.errors.APIError) and exc.explanation else str(exc)
        raise EngineUnreachable(f"the Docker engine did not {attempt}: {said[:500]}") from exc


def usable_cores() -> str:
    """The cores that this process may use, as the engine wants them."""
    return ",".join(map(str, sorted(os.sched_getaffinity(0))))
