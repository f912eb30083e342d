"""What a candidate is judged on: the GPU or CPU at hand, or a GPU that is elsewhere.

Not covered: more than one GPU (CUDA_VISIBLE_DEVICES picks the one), and whether it is idle.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sandbox import probe
from sandbox.contract import Device, Target
from sandbox.errors import BadInput
from sandbox.resources import Gpu, gpu_named, gpus, limits

PROBE_TIMEOUT_S = 30
# Instructions of these belong to one architecture only: wgmma, TMA multicast, tcgen05.
ARCH_SPECIFIC = {"sm_90", "sm_100", "sm_103", "sm_120"}


def detect(target: Literal["auto", "cuda", "cpu"]) -> Device:
    """The device at hand. `auto` takes the GPU where one answers; `cuda` without a GPU is BadInput."""
    if target == "cpu":
        return cpu()
    found = asked_driver()
    if "missing" not in found:
        return gpu(found)
    if target == "auto":
        return cpu()
    raise BadInput(f"target 'cuda' needs an NVIDIA GPU: {found['missing']}; use target 'cpu', or build for an --arch")


def cross(arch: str) -> Device:
    """A GPU that is not at hand, with the figures of its datasheet: `sm_86` is an A10. Unknown: BadInput."""
    figures = limits(arch)
    return _of_datasheet(next(product for product in gpus() if product.name == figures.gpu))


def elsewhere(name: str, target: Target) -> Device:
    """A device that is not at hand, by the name that judgements made on it have. A GPU without figures is BadInput."""
    if target == "cpu":
        cores = re.search(r"\((\d+) cores?\)$", name)
        return Device(name=name, target="cpu", arch="", threads=int(cores[1]) if cores else 0)
    product = gpu_named(name)
    if product is None:
        known = ", ".join(product.name for product in gpus())
        raise BadInput(f"no figures of GPU {name!r} are known; wanted one of {known}")
    return _of_datasheet(product).model_copy(update={"name": name})


def _of_datasheet(product: Gpu) -> Device:
    return Device(
        name=product.name,
        target="cuda",
        arch=compile_arch(product.arch),
        sm_count=product.sm_count,
        smem_optin=limits(product.arch).smem_optin,
        l2_bytes=product.l2_bytes,
        bandwidth_gbs=product.bandwidth_gbs,
        tflops=product.tflops,
    )


def driver_version() -> str | None:
    """The CUDA version that the driver supports, such as 13.0; None without a GPU."""
    return asked_driver().get("driver")


@cache
def asked_driver() -> dict[str, Any]:
    """What probe.py says, from a child process: the driver leaves threads and descriptors behind in whoever asks it."""
    try:
        answer = subprocess.run(
            [sys.executable, "-I", "-S", probe.__file__], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return {"missing": f"the driver did not answer within {PROBE_TIMEOUT_S} s"}
    if answer.returncode:
        return {"missing": f"asking the driver ended with status {answer.returncode}"}
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def compile_arch(arch: str) -> str:
    """The architecture to compile for, with the suffix that unlocks its own instructions where it has any."""
    return f"{arch}a" if arch in ARCH_SPECIFIC else arch


def gpu(found: dict[str, Any]) -> Device:
    product = gpu_named(found["name"])
    return Device(
        name=found["name"],
        target="cuda",
        arch=compile_arch(f"sm_{found['major']}{found['minor']}"),
        sm_count=found["sm_count"],
        smem_optin=found["smem_optin"],
        l2_bytes=found["l2_bytes"],
        bandwidth_gbs=product.bandwidth_gbs if product else None,
        tflops=product.tflops if product else {},
    )


# ---------------------------------------------------------------- CPU


def cpu() -> Device:
    threads = usable_cores()
    return Device(
        name=f"{cpu_model()} ({threads} {'core' if threads == 1 else 'cores'})",
        target="cpu",
        arch=platform.machine(),
        threads=threads,
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def cpu_model() -> str:
    """The model as /proc/cpuinfo names it; on machines whose kernel does not, such as ARM's, the machine name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except FileNotFoundError:
        return platform.machine()
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return " ".join(model[1].split()) if model else platform.machine()
