"""What of this machine a sandboxed process sees: read-only folders, and what is hidden within them.

The system's folders, the interpreter, the packages of the kind of worker, and the code of the worker itself. Tasks,
references, the archive and the user's files lie elsewhere; where Warpsmith itself is installed below one of these
folders, its packages are hidden. Not covered: a task folder that somebody keeps below /usr or /opt.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

HOME = Path("/warpsmith")
"""Where the sandbox keeps the code of the worker and the compile processes."""
PROGRAMS = HOME / "bin"
REPORT = Path("/out")
START = HOME / "sandbox" / "worker" / "start.py"
COMPILER = HOME / "compiler.py"
COMPILE_SERVER = HOME / "sandbox" / "worker" / "compile_server.py"
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/opt", "/etc/alternatives", "/etc/ld.so.cache", "/etc/OpenCL")
"""What compilers, the interpreter and the driver's libraries are made of."""
OWN_PACKAGES = ("agent", "archive", "prompts", "sandbox", "seeds")

Contents = Literal["bare", "cuda", "torch"]
"""The packages to be seen: none, cuda-bindings with NVIDIA's wheels, or all that are installed."""


@dataclass(frozen=True)
class View:
    """Folders and files of this machine by where the sandbox sees them."""

    binds: dict[str, str]
    """Place in the sandbox by place here."""
    hidden: tuple[str, ...]
    """Folders in the sandbox that are to look empty."""
    path: tuple[str, ...]
    """Where Python finds packages in the sandbox."""
    libraries: tuple[str, ...]
    """Folders of shared libraries that belong to packages: cuda-bindings looks for them in the usual places only."""


def code() -> dict[str, str]:
    """The worker's own code, and the compile process: all that is mounted of Warpsmith."""
    here = Path(__file__).parent
    return {str(here / "worker"): str(HOME / "sandbox" / "worker"), str(here / "compiler.py"): str(COMPILER)}


@cache
def of_host(contents: Contents) -> View:
    """The view that makes a sandbox of this machine's own software."""
    packages = {"bare": {}, "cuda": _cuda_packages(), "torch": _all_packages()}[contents]
    binds = {place: place for place in [*SYSTEM, *_interpreter()] if Path(place).exists()} | packages
    path = [str(HOME), *dict.fromkeys(str(Path(*Path(target).parts[:4])) for target in packages.values())]
    return View(
        binds=binds | code() | (_ninja() if contents == "torch" else {}),
        hidden=tuple(_hidden(binds)),
        path=tuple(path),
        libraries=tuple(dict.fromkeys(_libraries(packages))),
    )


def of_image() -> View:
    """The view in an image that brings its own software: nothing but the worker's code is added."""
    return View(binds=code(), hidden=(), path=(str(HOME),), libraries=())


def interpreter() -> str:
    """Python outside of any virtual environment, which is the same inside."""
    return str(Path(sys.executable).resolve())


def _interpreter() -> list[str]:
    prefix = str(Path(sys.base_prefix).resolve())
    return [] if prefix.startswith("/usr") else [prefix]


def _site_folders() -> list[Path]:
    entries = [Path(entry) for entry in dict.fromkeys(sys.path) if Path(entry).is_absolute()]
    return [entry for entry in entries if entry.is_dir() and next(entry.glob("*.dist-info"), None)]


def _cuda_packages() -> dict[str, str]:
    """The namespace packages of cuda-bindings and of NVIDIA's wheels."""
    return {
        str(entry / name): str(HOME / "packages" / str(number) / name)
        for number, entry in enumerate(_site_folders())
        for name in ("cuda", "nvidia")
        if (entry / name).is_dir()
    }


def _libraries(packages: dict[str, str]) -> Iterable[str]:
    for source, target in packages.items():
        for found in Path(source).glob("*/lib/libnvrtc.so*"):
            yield str(Path(target) / found.parent.relative_to(source))


def _all_packages() -> dict[str, str]:
    return {str(entry): str(HOME / "packages" / str(number)) for number, entry in enumerate(_site_folders())}


def _ninja() -> dict[str, str]:
    """What torch builds inline extensions with, wherever pip has put it: as a rule beside the interpreter."""
    spec = importlib.util.find_spec("ninja")
    beside = [str(Path(place).parent / "bin") for place in (spec and spec.submodule_search_locations) or ()]
    places = [str(Path(sys.executable).parent), *beside, os.environ.get("PATH", os.defpath)]
    found = shutil.which("ninja", path=os.pathsep.join(places))
    return {found: str(PROGRAMS / "ninja")} if found else {}


def _hidden(binds: dict[str, str]) -> Iterable[str]:
    """Where the binds would show our own packages, or the checkout they lie in."""
    for secret in _secrets():
        for source, target in binds.items():
            for spelled in {secret, secret.resolve()}:
                if spelled.is_relative_to(Path(source).resolve()):
                    yield str(Path(target) / spelled.relative_to(Path(source).resolve()))


def _secrets() -> set[Path]:
    root = Path(__file__).resolve().parent.parent
    if (root / "pyproject.toml").exists():
        return {root}
    specs = [importlib.util.find_spec(name) for name in OWN_PACKAGES]
    return {Path(place) for spec in specs if spec for place in spec.submodule_search_locations or ()}
