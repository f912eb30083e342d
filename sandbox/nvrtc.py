"""How NVRTC is asked: its process, its options, and the text put before a kernel source.

Not covered: NVRTC itself, which runs on the far side (compiler.py).
"""

from __future__ import annotations

from collections.abc import Callable

from sandbox.compiler_process import CompilerDied, CompilerProcess, CompilerTimedOut, Kind
from sandbox.errors import ToolchainMissing

START_TIMEOUT_S = 60.0
GET_CUDA = 'pip install "warpsmith[cuda]"'

CUDA_PRELUDE = """\
typedef signed char int8_t; typedef unsigned char uint8_t;
typedef short int16_t; typedef unsigned short uint16_t;
typedef int int32_t; typedef unsigned int uint32_t;
typedef long long int64_t; typedef unsigned long long uint64_t;
"""
# The tag and the typedef are the driver header's, which libcu++ declares again.
TENSOR_MAP_PRELUDE = """\
struct alignas(64) CUtensorMap_st { unsigned long long opaque[16]; };
typedef struct CUtensorMap_st CUtensorMap;
"""
# Host headers that device code includes by habit; NVRTC has what is needed from them built in, or libcu++ has it.
CUDA_HEADERS: dict[str, str] = {
    **dict.fromkeys(["cstdint", "stdint.h", "cstddef", "stddef.h", "cmath", "math.h", "cuda.h"], "\n"),
    **dict.fromkeys(["cfloat", "float.h"], "#include <cuda/std/cfloat>\n"),
    **dict.fromkeys(["climits", "limits.h"], "#include <cuda/std/climits>\n"),
}
CUDA_OPTIONS = ("--std=c++17", "-default-device")


def cuda_text(source: str) -> str:
    """The source behind its prelude, with messages still counting the source's own lines."""
    tensor_map = TENSOR_MAP_PRELUDE if "CUtensorMap" in source else ""
    return f'{CUDA_PRELUDE}{tensor_map}#line 1 "kernel.cu"\n{source}'


def start_nvrtc(start: Callable[[Kind, float], CompilerProcess]) -> CompilerProcess:
    """A warm NVRTC process with headers at hand, or ToolchainMissing."""
    try:
        process = start("nvrtc", START_TIMEOUT_S)
    except CompilerDied as exc:
        raise ToolchainMissing(f"NVRTC cannot be loaded ({exc}); {GET_CUDA}") from exc
    except CompilerTimedOut as exc:
        raise ToolchainMissing(f"NVRTC did not load within {START_TIMEOUT_S:g} s") from exc
    if not process.greeting["includes"]:
        process.kill()
        searched = ", ".join(process.greeting["searched"])
        raise ToolchainMissing(f"NVRTC is there, but no cuda_fp16.h in {searched}; {GET_CUDA}, or set CUDA_HOME")
    return process


def nvrtc_options(to_ptx: bool, macros: dict[str, str], arch: str) -> list[str]:
    """`arch` is a real architecture (`sm_90a`); PTX is made for the virtual one of the same number."""
    target = arch.replace("sm_", "compute_") if to_ptx else arch
    report = [] if to_ptx else ["--ptxas-options=-v"]
    definitions = [f"-D{name}={value}" for name, value in sorted(macros.items())]
    return [f"--gpu-architecture={target}", *CUDA_OPTIONS, *report, *definitions]
