"""A candidate's text made callable in this process: a C++ or CUDA extension, or a Python module with `ModelNew`.

The flags are those of torch.utils.cpp_extension, with optimisation; its ninja is left out, as there is one file to
build. Not covered: calling (torch_calls.py).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

LOG_CHARS = 8000
_NVCC_FLAGS = (
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
    "--expt-relaxed-constexpr",
)
_DEVICE_CODE = re.compile(r"__global__|__device__|<<<")


class BuildFailure(Exception):
    """The candidate's text could not be made callable; says what the compiler or the interpreter said."""

    stage = "build"


def prepare_environment() -> None:
    """What a module that builds something itself will look for: ninja, nvcc, and folders of this worker's own."""
    scratch = tempfile.gettempdir()
    for name, folder in (("TORCH_EXTENSIONS_DIR", "extensions"), ("TRITON_CACHE_DIR", "triton")):
        os.environ[name] = str(Path(scratch) / folder)
    found = [
        str(Path(sys.executable).parent),
        "/warpsmith/bin",
        *_ninja(),
        *(str(Path(home) / "bin") for home in _cuda_homes()),
    ]
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), *found])


def _ninja() -> list[str]:
    spec = importlib.util.find_spec("ninja")
    return [str(Path(location) / "data" / "bin") for location in (spec and spec.submodule_search_locations) or ()]


def _cuda_homes() -> list[str]:
    """Toolkits, the one to take first."""
    compiler = shutil.which("nvcc")
    own = str(Path(compiler).resolve().parent.parent) if compiler else None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda", own]
    return [home for home in dict.fromkeys(homes) if home and (Path(home) / "include").is_dir()]


# ---------------------------------------------------------------- extensions


def extension(text: str, target: str) -> Callable[..., Any]:
    """`forward` of a C++ or CUDA source, compiled for this machine; BuildFailure where it does not build or load."""
    folder = Path(tempfile.mkdtemp(prefix="extension-"))
    name = f"candidate_{folder.name.removeprefix('extension-')}"
    device_code = target == "cuda" and _DEVICE_CODE.search(text) is not None
    source, library = folder / ("kernel.cu" if device_code else "kernel.cpp"), folder / f"{name}.so"
    source.write_text(complete(text))
    _compile([*_compiler(device_code), *_options(name), str(source), *_linking(target), "-o", str(library)])
    forward = getattr(_loaded(name, library), "forward", None)
    if not callable(forward):
        raise BuildFailure("the extension has no function `forward`; wanted torch::Tensor forward(...)")
    return forward  # type: ignore[no-any-return]


def complete(text: str) -> str:
    """The source with the header and the binding of `forward` where it has none."""
    head = "" if re.search(r"#\s*include\s*<torch/(extension|all|torch|python)\.h>", text) else _HEADER
    return head + text + ("" if "PYBIND11_MODULE" in text else _BINDING)


_HEADER = "#include <torch/extension.h>\n#line 1\n"
_BINDING = '\nPYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("forward", &forward); }\n'


def _compiler(device_code: bool) -> list[str]:
    if not device_code:
        return [_program("g++"), "-march=native", "-fopenmp", "-fPIC"]
    major, minor = torch.cuda.get_device_capability()
    arch = f"{major}{minor}{'a' if major >= 9 else ''}"
    generate = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    return [_program("nvcc"), *_NVCC_FLAGS, generate, "-cudart=none", "-Xcompiler", "-fPIC,-fopenmp"]


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise BuildFailure(f"no {name} in this sandbox; an extension needs one")
    return found


def _options(name: str) -> list[str]:
    root = Path(torch.__file__).parent / "include"
    includes = [root, root / "torch" / "csrc" / "api" / "include", sysconfig.get_paths()["include"]]
    includes += [Path(home) / "include" for home in _cuda_homes()]
    return [
        "-O3",
        "-std=c++20",
        "-shared",
        f"-DTORCH_EXTENSION_NAME={name}",
        "-DTORCH_API_INCLUDE_EXTENSION_H",
        *(f"-I{include}" for include in includes),
    ]


def _linking(target: str) -> list[str]:
    libraries = ["c10", "torch_cpu", "torch", "torch_python"]
    # The CUDA runtime comes with c10_cuda, whichever release torch was built with.
    libraries += ["c10_cuda", "torch_cuda"] if target == "cuda" else []
    folder = Path(torch.__file__).parent / "lib"
    return ["-Xlinker", "--no-as-needed", f"-L{folder}", *(f"-l{library}" for library in libraries)]


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        log = (done.stdout + done.stderr).replace(tempfile.gettempdir() + "/", "")
        raise BuildFailure(_errors_first(log)[:LOG_CHARS] or f"the compiler exited with code {done.returncode}")


def _errors_first(log: str) -> str:
    """The log from its first error on: before it stand pages of `In file included from`."""
    at = log.find("error")
    return log[log.rfind("\n", 0, at) + 1 :] if at >= 0 else log


# ---------------------------------------------------------------- Python


def module(text: str) -> type[torch.nn.Module]:
    """`ModelNew` of a Python source, executed from a file of its own; BuildFailure where that fails."""
    path = Path(tempfile.mkdtemp(prefix="module-")) / "candidate.py"
    path.write_text(text)
    found = getattr(_loaded("candidate", path), "ModelNew", None)
    if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
        raise BuildFailure("the file defines no class ModelNew(torch.nn.Module)")
    return found


def _loaded(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    # Triton and torch.compile look a function's module up by name.
    sys.modules[name] = loaded
    try:
        spec.loader.exec_module(loaded)
    except Exception as exc:
        raise BuildFailure(said(exc, path)) from exc
    return loaded


def said(exc: BaseException, path: Path | None = None) -> str:
    """An exception of the candidate's, with the line of its source where there is one."""
    lines = [frame.lineno for frame in traceback.extract_tb(exc.__traceback__) if path and frame.filename == str(path)]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(exc).__name__}: {exc}"[:LOG_CHARS]
