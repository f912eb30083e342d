"""What this machine can do, and what stands in for the parts it lacks. Looks, changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
from pathlib import Path

from sandbox import devices
from sandbox.contract import Device, Record
from sandbox.toolchain import Toolchain

DOCKER_TIMEOUT_S = 10


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
        _docker(),
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


def _docker() -> Finding:
    instead = "candidates run in a process of their own, with limits but without a container"
    if shutil.which("docker") is None:
        return Finding(part="docker", there=False, detail="no docker command", instead=instead)
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=DOCKER_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return Finding(part="docker", there=False, detail="the engine does not answer", instead=instead)
    if asked.returncode:
        return Finding(part="docker", there=False, detail="the engine does not run", instead=instead)
    return Finding(part="docker", there=True, detail=f"engine {asked.stdout.strip()}, not used yet", instead=instead)


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
