"""The same package as a kernel repository in the layout of Hugging Face's `kernels`, made of the wheel.

`kernels.get_local_kernel(FOLDER)` loads it. Not covered: uploading it, and building it anew with kernel-builder: its
build.toml names the sources, and the wheel was built from the same ones by setup.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from agent.compose import Composed
from agent.export.rendering import render
from sandbox.contract import Target

ABI = "torch-stable-abi210"
"""Any PyTorch from 2.10 on."""
BACKENDS: dict[Target, tuple[str, ...]] = {"cpu": ("cpu",), "cuda": ("cu126", "cu130")}
"""The lowest CUDA release of each major one that PyTorch 2.10 is built with: the loader wants the same major."""
VERSION = 0
"""By the custom of the Hub a kernel that may change in any way."""
LAYERS = """
# What `kernels` puts in the place of a model's own forward: layers without state.
from . import pure as layers  # noqa: E402

__all__ = [*__all__, "layers"]
"""


def write(composed: Composed, wheel: Path, target: Target, out: Path) -> Path:
    """The folder `out/<package>-hub`, written anew."""
    root = out / f"{composed.package}-hub"
    shutil.rmtree(root, ignore_errors=True)
    system = f"{platform.machine()}-linux"
    for backend in BACKENDS[target]:
        _variant(composed, wheel, target, root / "build" / f"{ABI}-{backend}-{system}")
    shutil.copytree(composed.root / "csrc", root / "csrc")
    names = {"package": composed.package, "name": hub_name(composed.package), "target": target}
    sources = sorted(path.relative_to(root).as_posix() for path in (root / "csrc").rglob("*") if path.is_file())
    (root / "build.toml").write_text(render("build.toml.j2", version=VERSION, sources=sources, **names))
    (root / "README.md").write_text(render("hub.md.j2", tasks=list(composed.served), **names))
    return root


def hub_name(package: str) -> str:
    return package.replace("_", "-")


def _variant(composed: Composed, wheel: Path, target: Target, folder: Path) -> None:
    """The package itself, and what the loader reads of it."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(f"{composed.package}/"):
                path = folder / name.removeprefix(f"{composed.package}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
    with (folder / "__init__.py").open("a") as initial:
        initial.write(LAYERS)
    nested = folder / composed.package / "__init__.py"
    nested.parent.mkdir()
    nested.write_text(render("nested.py.j2", namespace=composed.namespace))
    known = _metadata(composed, target, folder)
    (folder / "metadata.json").write_text(json.dumps(known, indent=2) + "\n")


def _metadata(composed: Composed, target: Target, folder: Path) -> dict[str, Any]:
    backend: dict[str, Any] = {"type": target}
    if target == "cuda":
        backend["archs"] = _arches(folder)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        "name": hub_name(composed.package),
        "id": composed.namespace,
        "version": VERSION,
        "license": "other",
        "python-depends": [],
        "backend": backend,
        "digest": {"algorithm": "sha256", "files": {name: _digest(path) for name, path in files.items()}},
    }


def _arches(folder: Path) -> list[str]:
    """The compute capabilities that code was compiled for, as the Hub spells them."""
    text = (folder / "provenance.json").read_text()
    found = sorted(set(re.findall(r'"(sm|compute)_(\d+)(\d)(a?)"', text)), key=lambda m: (int(m[1]), m[2], m[0]))
    return [f"{major}.{minor}{suffix}{'+PTX' if kind == 'compute' else ''}" for kind, major, minor, suffix in found]


def _digest(path: Path) -> str:
    return base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
