"""Compiles a kernel for a GPU that the package has no code for, with the NVRTC that comes with PyTorch.

The library asks for it at a kernel's first call, once in a process. Not covered: keeping what was compiled, and
judging it: it is the source that was judged elsewhere.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
_kept: list[Any] = []
"""What the library may call must live as long as it does."""


class CannotCompile(Exception):
    """There is no NVRTC, or it refuses the source for this GPU."""


def offer(library: ctypes.CDLL) -> None:
    """Let the library ask for code."""

    def answer(name: bytes, capability: int) -> int:
        try:
            code = compile_for(name.decode(), capability)
        except (CannotCompile, OSError) as exc:
            library.warpsmith_no_code(str(exc).encode())
            return 0
        library.warpsmith_take_code(code, ctypes.c_size_t(len(code)))
        return 1

    callback = _CALLBACK(answer)
    _kept.append(callback)
    library.warpsmith_compile_with(callback)


def compile_for(name: str, capability: int) -> bytes:
    """The cubin of one specialisation (`<task>/<candidate>/<number>`) for sm_<capability>."""
    recipe = json.loads((HERE / "kernels.json").read_text())
    module = recipe["modules"][name]
    # What is special to an architecture exists from sm_90 on.
    arch = f"sm_{capability}{'a' if capability >= 90 else ''}"
    options = [
        f"--gpu-architecture={arch}",
        *recipe["options"],
        *(f"-D{macro}={value}" for macro, value in module["macros"].items()),
        *(f"-I{folder}" for folder in header_folders()),
    ]
    text = module["prelude"] + (HERE / module["source"]).read_text()
    return run_nvrtc(open_nvrtc(), text, recipe["headers"], options)


def open_nvrtc() -> ctypes.CDLL:
    for place in (*nvrtc_files(), "libnvrtc.so.13", "libnvrtc.so.12"):
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    raise CannotCompile("there is no NVRTC beside PyTorch")


def nvrtc_files() -> list[str]:
    return [str(path) for folder in nvidia_folders() for path in sorted(folder.glob("lib/libnvrtc.so.*"))]


def header_folders() -> list[str]:
    """Where cuda_fp16.h lies, and what comes with it."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [home / "include" for home in (*nvidia_folders(), *homes, Path("/usr/local/cuda"))]
    found = [folder for folder in folders if (folder / "cuda_fp16.h").is_file()]
    return [str(path) for folder in found[:1] for path in (folder, folder / "cccl")]


def nvidia_folders() -> Iterator[Path]:
    """Of NVIDIA's packages from pip."""
    spec = find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        yield from sorted(Path(place).iterdir())


def run_nvrtc(nvrtc: ctypes.CDLL, text: str, headers: dict[str, str], options: list[str]) -> bytes:
    program = ctypes.c_void_p()
    count = len(headers)
    texts = (ctypes.c_char_p * count)(*(content.encode() for content in headers.values()))
    names = (ctypes.c_char_p * count)(*(name.encode() for name in headers))
    made = nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", count, texts, names)
    if made != 0:
        raise CannotCompile(f"NVRTC failed with error {made}")
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), given) != 0:
            log = read(nvrtc, "nvrtcGetProgramLog", program).decode(errors="replace").rstrip("\0").strip()
            raise CannotCompile(f"NVRTC refuses it: {log.partition(chr(10))[0]}")
        return read(nvrtc, "nvrtcGetCUBIN", program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def read(nvrtc: ctypes.CDLL, name: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    getattr(nvrtc, f"{name}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, name)(program, buffer)
    return buffer.raw
