"""What this machine can do, and what stands in for the parts it lacks."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

from sandbox import devices
from sandbox.contract import Device, Record
from sandbox.errors import EngineUnreachable, WorkerLost
from sandbox.local import missing_for_fence
from sandbox.toolchain import Toolchain


class Finding(Record):
    """One part of the machine."""

    part: str
    there: bool
    detail: str
    instead: str = ""
    """What is done without it."""


def examine(toolchain: Toolchain, archive: str) -> list[Finding]:
    """Every part that a run can use."""
    device, versions = devices.detect("auto"), toolchain.versions()
    return [
        _gpu(device),
        Finding(
            part="cuda compiler",
            there="nvrtc" in versions,
            detail=f"NVRTC {versions['nvrtc']}" if "nvrtc" in versions else 'pip install "warpsmith[cuda]"',
            instead="" if "nvrtc" in versions else "no cuda kernel can be built; target cpu works",
        ),
        Finding(
            part="c++ compiler",
            there="c++" in versions,
            detail=versions.get("c++", "apt-get install g++, or set CXX"),
            instead="" if "c++" in versions else "no cpu kernel can be built, no extension composed",
        ),
        _package("torch", "nothing can be judged"),
        _package("ninja", "the composed extension is written, but not built and checked"),
        _docker(device),
        _fence(),
        _key(),
        _archive(archive),
        Finding(part="cores", there=True, detail=f"{devices.usable_cores()} for cpu kernels: {devices.cpu_model()}"),
    ]


def able(findings: list[Finding]) -> bool:
    """Whether a run for either target is possible."""
    there = {finding.part: finding.there for finding in findings}
    cuda = there["gpu"] and there["cuda compiler"]
    return there["torch"] and there["archive"] and (cuda or there["c++ compiler"])


def _gpu(device: Device) -> Finding:
    if device.target == "cuda":
        detail = f"{device.name}, {device.arch}, driver for CUDA {devices.driver_version()}"
        return Finding(part="gpu", there=True, detail=detail)
    missing = str(devices.asked_driver().get("missing", "none"))
    return Finding(
        part="gpu",
        there=False,
        detail=missing,
        instead="target auto means cpu; `build --arch` compiles for GPUs elsewhere",
    )


def _package(name: str, without: str) -> Finding:
    try:
        return Finding(part=name, there=True, detail=importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(part=name, there=False, detail=f"pip install {name}", instead=without)


def _docker(device: Device) -> Finding:
    """The engine, and whether a container starts and, where there is a GPU, gets it."""
    from sandbox import launch

    try:
        launcher, why = launch.choose("docker", device)
    except (EngineUnreachable, WorkerLost) as exc:
        instead = "candidates run in processes of this machine; see the next line"
        return Finding(part="docker", there=False, detail=str(exc).splitlines()[0], instead=instead)
    launcher.close()
    return Finding(part="docker", there=True, detail=why)


def _fence() -> Finding:
    missing = missing_for_fence()
    return Finding(
        part="namespaces",
        there=not missing,
        detail=missing or "a worker without a container sees no network and none of the user's files",
        instead="a worker without a container can read the user's files" if missing else "",
    )


def _key() -> Finding:
    there = bool(os.environ.get("OPENAI_API_KEY"))
    return Finding(
        part="key",
        there=there,
        detail=f"OPENAI_API_KEY is {'set' if there else 'not set'}",
        instead="the tuner proposes",
    )


def _archive(location: str) -> Finding:
    if "://" in location:
        return Finding(part="archive", there=True, detail=location.rsplit("@", 1)[-1])
    path = Path(location)
    nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    there = os.access(nearest, os.W_OK)
    state = "there" if path.exists() else "made by the first run"
    detail = f"{path}, {state}" if there else f"{path}: {nearest} is not writable"
    return Finding(part="archive", there=there, detail=detail, instead="" if there else "choose another with --archive")
