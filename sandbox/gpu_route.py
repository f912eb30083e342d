"""How a container gets the GPU: NVIDIA's runtime, a CDI device, or the device nodes as they are.

WARPSMITH_DOCKER_GPU chooses one of runtime, cdi, nodes, none. Not covered: picking one GPU of several, which
CUDA_VISIBLE_DEVICES does inside as it does outside.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, get_args

from sandbox.errors import BadInput

Route = Literal["runtime", "cdi", "nodes", "none"]

VARIABLE = "WARPSMITH_DOCKER_GPU"
_LIBRARY_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/local/nvidia/lib64")


def choose(facts: dict[str, Any], host_image: bool = False) -> Route:
    """The route on this machine; `facts` is what the engine says of itself. BadInput where the variable is wrong.

    An image made of the host has the driver's libraries already, so that nodes are enough; what the other routes want
    to put into it would meet read-only folders.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted in get_args(Route):
        return wanted  # type: ignore[return-value]
    if wanted:
        raise BadInput(f"{VARIABLE} is {wanted!r}; wanted one of {', '.join(get_args(Route))}")
    if host_image and nodes():
        return "nodes"
    if "nvidia" in facts.get("Runtimes", {}):
        return "runtime"
    if _has_cdi(facts):
        return "cdi"
    return "nodes" if nodes() else "none"


def request(route: Route) -> dict[str, Any] | None:
    """The arguments of a DeviceRequest, for the routes that need one."""
    if route == "runtime":
        return {"count": -1, "capabilities": [["gpu", "compute", "utility"]]}
    if route == "cdi":
        return {"driver": "cdi", "device_ids": ["nvidia.com/gpu=all"]}
    return None


def nodes() -> tuple[str, ...]:
    """The device files of all GPUs."""
    found = [*Path("/dev").glob("nvidia[0-9]*"), *map(Path, ("/dev/nvidiactl", "/dev/nvidia-uvm"))]
    return tuple(str(node) for node in found if node.is_char_device())


def driver_libraries() -> dict[str, str]:
    """The driver's libraries, mounted where they are here: what an image cannot contain."""
    folders = [Path(folder) for folder in _LIBRARY_FOLDERS]
    found = [
        library for folder in folders for stem in ("cuda", "nvidia-") for library in folder.glob(f"lib{stem}*.so*")
    ]
    return {str(library): str(library) for library in found if library.is_file()}


def _has_cdi(facts: dict[str, Any]) -> bool:
    folders = facts.get("CDISpecDirs") or ()
    specs = [spec for folder in folders for spec in Path(folder).glob("*") if spec.suffix in (".yaml", ".json")]
    return any("nvidia.com/gpu" in spec.read_text(errors="replace") for spec in specs)
