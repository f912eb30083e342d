"""Finds the compiled library of this package, checks it and loads it.

Where none lies beside this file but the sources do, one is built with g++ and ninja, once. Not covered: what is in it
(operators.py).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from . import compiling

HERE = Path(__file__).resolve().parent
NEEDED = (2, 10)
"""The oldest PyTorch whose stable interface the library was compiled for."""


def load() -> ctypes.CDLL:
    """The library, its operators registered; ImportError in one sentence where it cannot be had."""
    check_torch()
    built = HERE / "_C.abi3.so"
    if built.is_file():
        check_whole(built)
        return open_library(built)
    return open_library(build())


def provenance() -> dict[str, Any]:
    """Where every kernel in this package comes from and what it was measured at."""
    known: dict[str, Any] = json.loads((HERE / "provenance.json").read_text())
    return known


def check_torch() -> None:
    got = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if got < NEEDED:
        raise ImportError(f"this is PyTorch {torch.__version__}; {__package__} needs 2.10 or later")


def check_whole(path: Path) -> None:
    """ImportError where a library is not the one that was built."""
    try:
        wanted = json.loads((HERE / "libraries.json").read_text())[path.name]
    except (OSError, ValueError, KeyError) as exc:
        raise ImportError(f"{HERE / 'libraries.json'} is damaged or missing; install {__package__} again") from exc
    if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
        raise ImportError(f"{path} is damaged: it is not the file that was built; install {__package__} again")


def open_library(path: Path) -> ctypes.CDLL:
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
        library = ctypes.CDLL(str(path))
    except OSError as exc:
        raise ImportError(f"{path} cannot be loaded by PyTorch {torch.__version__}: {exc}") from exc
    library.warpsmith_reason.restype = ctypes.c_char_p
    if hasattr(library, "warpsmith_use"):
        use_kernels(library, path)
    else:
        compiling.offer(library)
    return library


def use_kernels(library: ctypes.CDLL, path: Path) -> None:
    """Hand over the kernels of the best level that this CPU has; without any, PyTorch computes everything."""
    kernels = library if path.parent != HERE else level_library(library)
    if kernels is not None:
        table = ctypes.c_void_p.in_dll(kernels, "warpsmith_kernels")
        library.warpsmith_use(ctypes.c_void_p(ctypes.addressof(table)))


def level_library(library: ctypes.CDLL) -> ctypes.CDLL | None:
    level = choose_level(library)
    if level is None:
        return None
    path = HERE / f"_{level.replace('-', '_')}.abi3.so"
    check_whole(path)
    return ctypes.CDLL(str(path))


def choose_level(library: ctypes.CDLL) -> str | None:
    levels: list[str] = provenance()["levels"]
    fit = [level for level in levels if library.warpsmith_supports(level.encode())]
    wish = os.environ.get("WARPSMITH_CPU_LEVEL")
    if not wish:
        return fit[-1] if fit else None
    if wish not in fit:
        raise ImportError(
            f"WARPSMITH_CPU_LEVEL is {wish!r}; this CPU and {__package__} have {', '.join(fit) or 'none'}"
        )
    return wish


def build() -> Path:
    """Build the sources beside the package, for this machine; what is there already is taken as it is."""
    root = HERE.parent
    if not (root / "csrc" / "build.json").is_file():
        raise ImportError(f"{__package__}: neither a built _C.abi3.so in {HERE} nor sources in {root / 'csrc'}")
    from torch.utils.cpp_extension import load

    recipe = json.loads((root / "csrc" / "build.json").read_text())
    path: str = load(
        name=recipe["name"],
        sources=[str(root / source) for source in recipe["tree"]["sources"]],
        extra_cflags=[*recipe["tree"]["cflags"], recipe["target"]],
        extra_ldflags=recipe["tree"]["ldflags"],
        with_cuda=False,  # the device code is compiled already; the host side needs neither nvcc nor CUDA headers
        is_python_module=False,
    )
    return Path(path)
