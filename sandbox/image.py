"""Images for the sandbox's containers: one made of this machine itself, or one built on nvidia/cuda.

The host image is a nearly empty tree with the places where this machine's folders are mounted, read-only, at run time.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from sandbox.engine import Engine
from sandbox.errors import BadInput

REPOSITORY = "warpsmith-sandbox"
HOST_TAG, BUILT_TAG = "host", "cuda"
CUDA_VERSION = "13.0.2"
DOCKERFILE = Path(__file__).parent / "Dockerfile"

Kind = Literal["host", "cuda"]

_FOLDERS = (
    *("tmp", "proc", "sys", "dev", "etc", "usr", "lib", "lib64", "bin", "opt", "out", "run", "run/warpsmith"),
    *("warpsmith", "warpsmith/packages", "warpsmith/sandbox", "warpsmith/sandbox/worker"),
)
_FILES = {
    "etc/passwd": b"root:x:0:0::/:/bin/false\nnobody:x:65534:65534::/tmp:/bin/false\n",
    "etc/group": b"root:x:0:\nnogroup:x:65534:\n",
    "etc/ld.so.cache": b"",
    "warpsmith/sandbox/__init__.py": b"",
    "warpsmith/compiler.py": b"",
}


def name(kind: Kind) -> str:
    return f"{REPOSITORY}:{HOST_TAG if kind == 'host' else BUILT_TAG}"


def available(engine: Engine) -> Kind | None:
    """The image to use: the built one where there is one, else the host's."""
    return next((kind for kind in ("cuda", "host") if engine.image(name(kind))), None)


def from_host(engine: Engine) -> None:
    """Make the host image; takes well under a second."""
    engine.import_image(tree(), REPOSITORY, HOST_TAG)


def build(engine: Engine, cuda_version: str, torch: str) -> Iterator[str]:
    """Build the Dockerfile; `torch` is a version to install, or empty. Says what the engine says."""
    if not cuda_version.replace(".", "").isdigit():
        raise BadInput(f"--cuda {cuda_version!r} is no version; wanted such as {CUDA_VERSION}")
    arguments = {"CUDA_VERSION": cuda_version, "TORCH": torch}
    yield from engine.build_image(DOCKERFILE.parent, name("cuda"), arguments)


def tree() -> bytes:
    """The host image as a tar file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for folder in _FOLDERS:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        for file, content in _FILES.items():
            entry = tarfile.TarInfo(file)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
