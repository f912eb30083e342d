"""What the GPU is like while candidates are timed: its clocks, what holds them down, and whether anybody else is busy.

NVML tells clocks and reasons; where its library or the driver's part of it is missing, nothing is known of them.
Not covered: which other process it is that keeps the GPU busy, which a container does not see.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

Handle = Any
_SLOW = {
    "HwSlowdown": "hardware slowdown",
    "SwThermalSlowdown": "thermal slowdown by software",
    "HwThermalSlowdown": "thermal slowdown by hardware",
    "HwPowerBrakeSlowdown": "power brake",
    "SwPowerCap": "power cap",
}


def idle_seconds() -> float:
    """Until the GPU has done next to nothing: a millisecond or more where somebody else is busy on it."""
    cell = torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    return min(_seconds(lambda: cell.add_(1)) for _ in range(3))


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def nvml() -> tuple[Any, Handle] | None:
    """The library and the GPU that PyTorch calls device 0; None where NVML does not answer."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(0).uuid
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:
        return None


def clocks(library: Any, handle: Handle) -> dict[str, Any]:
    """MHz, degrees, watts and reasons, each as far as this GPU tells."""
    reasons = _told(library, library.nvmlDeviceGetCurrentClocksEventReasons, handle) or 0
    power = _told(library, library.nvmlDeviceGetPowerUsage, handle)
    return {
        "sm_mhz": _told(library, library.nvmlDeviceGetClockInfo, handle, library.NVML_CLOCK_SM),
        "memory_mhz": _told(library, library.nvmlDeviceGetClockInfo, handle, library.NVML_CLOCK_MEM),
        "temperature_c": _told(library, library.nvmlDeviceGetTemperature, handle, library.NVML_TEMPERATURE_GPU),
        "power_w": None if power is None else power / 1000,
        "slowed": [
            words for name, words in _SLOW.items() if reasons & getattr(library, f"nvmlClocksEventReason{name}")
        ],
    }


def _told(library: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except library.NVMLError:
        return None
