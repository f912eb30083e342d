"""Asks the CUDA driver what GPU is there, and prints it as JSON. Run by path in a process of its own.

Makes no context and needs nothing but the driver's libcuda. Where no GPU answers, it prints why.
"""

from __future__ import annotations

import ctypes
import json

# CUdevice_attribute in cuda.h
ATTRIBUTES = {"sm_count": 16, "l2_bytes": 38, "major": 75, "minor": 76, "smem_optin": 97}


def gpu() -> dict[str, str | int]:
    """Name, attributes and driver version of the first visible GPU, or `missing` with the reason."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as exc:
        return {"missing": f"no NVIDIA driver ({exc})"}
    if status := cuda.cuInit(0):
        return {"missing": f"cuInit returned {status}"}
    device, value, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if status := cuda.cuDeviceGet(ctypes.byref(device), 0):
        return {"missing": f"no visible GPU (cuDeviceGet returned {status})"}
    cuda.cuDeviceGetName(name, len(name), device)
    found: dict[str, str | int] = {"name": name.value.decode()}
    cuda.cuDriverGetVersion(ctypes.byref(value))
    found["driver"] = f"{value.value // 1000}.{value.value % 1000 // 10}"
    for attribute, number in ATTRIBUTES.items():
        cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        found[attribute] = value.value
    return found


if __name__ == "__main__":
    print(json.dumps(gpu()))
