"""From a kernel source to a cubin, PTX or a shared library.

`cuda` goes through NVRTC in a warm process, `cpu` through g++ or clang++ in a fresh one; both are jailed, since
candidate text steers a compiler. Results are cached by content. Not covered: macros and launch plans (plan.py),
loading and launching (worker).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import threading
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from sandbox.cache import BuildCache, Built, Rejected
from sandbox.compiler_process import CompilerDied, CompilerProcess, CompilerTimedOut
from sandbox.contract import Artifact, KernelResources, Target
from sandbox.errors import ToolchainMissing
from sandbox.resources import limits, occupancy, parse_ptxas, without_chatter
from sandbox.screen import screen

Kind = Literal["cubin", "ptx", "library"]

SUFFIX: dict[Kind, str] = {"cubin": ".cubin", "ptx": ".ptx", "library": ".so"}
LOG_CHARS = 8000
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

COMPILE_FLAGS = [
    *("-O3", "-march=native", "-std=c++17", "-fopenmp", "-include", "cstdint"),
    *("-fPIC", "-fno-semantic-interposition", "-fvisibility-inlines-hidden", "-fdiagnostics-color=never"),
]
GCC_FLAGS = ["-fmax-errors=20"]
LINK_FLAGS = [
    *("-shared", "-fopenmp", "-Wl,-z,defs", "-Wl,-Bsymbolic", "-Wl,--build-id=none"),
    "-Wl,--version-script=exports.map",
]
# clang would assemble in the same step, and the assembly is to be looked over before.
CLANG_FLAGS = ["-fno-integrated-as", "-ferror-limit=20"]


class CompileFailed(Exception):
    """The candidate's fault: the screen or the compiler rejected it, or it took too long. `log` says why."""

    def __init__(self, log: str) -> None:
        super().__init__(log)
        self.log = log


class CompileTimedOut(CompileFailed):
    """Not cached: on a quieter machine the same text may get through."""


# ---------------------------------------------------------------- text


def shortened(log: str) -> str:
    """The beginning of a log, where compilers put the first error."""
    if len(log) <= LOG_CHARS:
        return log
    return f"{log[:LOG_CHARS]}\n… and {len(log) - LOG_CHARS} more characters"


def scrubbed(log: str, places: dict[str, str]) -> str:
    """The log without paths of this machine; `places` says what stands for each."""
    for place in sorted(places, key=len, reverse=True):
        log = log.replace(place, places[place])
    return re.sub(r"\bcc[A-Za-z0-9]{6}\.o\b", "kernel.o", log)


def cuda_text(source: str) -> str:
    """The source behind its prelude, with messages still counting the source's own lines."""
    tensor_map = TENSOR_MAP_PRELUDE if "CUtensorMap" in source else ""
    return f'{CUDA_PRELUDE}{tensor_map}#line 1 "kernel.cu"\n{source}'


def screened(source: str, file: str) -> str:
    """The source with plain line ends, once it broke no rule of the screen."""
    text = source.replace("\r\n", "\n").removeprefix("\ufeff")
    if refusal := screen(text):
        raise CompileFailed(f"{file}:{refusal.line}: error: {refusal.rule}")
    return text


def content_key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# ---------------------------------------------------------------- g++, clang++


def cpu_features() -> str:
    """What -march=native depends on: the model and flags of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


class NativeCompiler:
    """The C++ compiler of this machine: $CXX, else g++, else clang++."""

    def __init__(self) -> None:
        names = [os.environ.get("CXX", ""), "g++", "clang++"]
        found = next((path for name in names if name and (path := shutil.which(name))), None)
        if not found:
            raise ToolchainMissing("no C++ compiler: wanted $CXX, g++ or clang++; apt-get install g++")
        self.path = found
        version = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
        self.version = version.stdout.strip().split("\n")[0]
        if not self.version:
            raise ToolchainMissing(f"{found} --version said nothing: {version.stderr.strip()[:200]}")
        own_flags = CLANG_FLAGS if "clang" in self.version else GCC_FLAGS
        self.compile = [self.path, *COMPILE_FLAGS, *own_flags, "-S", "-o", "kernel.s"]
        self.link = [self.path, *LINK_FLAGS, "-o", "kernel.so", "kernel.s"]
        self.identity = [self.version, cpu_features(), self.compile, self.link]

    def request(self, macros: dict[str, str], timeout_s: float) -> dict[str, Any]:
        definitions = [f"-D{name}={value}" for name, value in sorted(macros.items())]
        return {"compile": [*self.compile, *definitions, "kernel.cpp"], "link": self.link, "cpu_s": timeout_s}


# ---------------------------------------------------------------- NVRTC


def start_nvrtc() -> CompilerProcess:
    """A warm NVRTC process with headers at hand, or ToolchainMissing."""
    try:
        process = CompilerProcess("nvrtc", START_TIMEOUT_S)
    except CompilerDied as exc:
        raise ToolchainMissing(f"NVRTC cannot be loaded ({exc}); {GET_CUDA}") from exc
    except CompilerTimedOut as exc:
        raise ToolchainMissing(f"NVRTC did not load within {START_TIMEOUT_S:g} s") from exc
    if not process.greeting["includes"]:
        process.kill()
        searched = ", ".join(process.greeting["searched"])
        raise ToolchainMissing(f"NVRTC is there, but no cuda_fp16.h in {searched}; {GET_CUDA}, or set CUDA_HOME")
    return process


def nvrtc_options(kind: Kind, macros: dict[str, str], arch: str) -> list[str]:
    """`arch` is a real architecture (`sm_90a`); PTX is made for the virtual one of the same number."""
    target = arch.replace("sm_", "compute_") if kind == "ptx" else arch
    report = ["--ptxas-options=-v"] if kind == "cubin" else []
    definitions = [f"-D{name}={value}" for name, value in sorted(macros.items())]
    return [f"--gpu-architecture={target}", *CUDA_OPTIONS, *report, *definitions]


# ---------------------------------------------------------------- the toolchain


class Toolchain:
    """Builds kernels and keeps what it built. A context manager; safe to share between threads."""

    def __init__(self, cache: Path, compile_timeout_s: float = 60) -> None:
        self.cache = BuildCache(cache)
        self.compile_timeout_s = compile_timeout_s
        self._nvrtc: CompilerProcess | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Toolchain:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the compile process; a later build would start another."""
        with self._lock:
            self._drop_nvrtc()

    def build(self, source: str, target: Target, macros: dict[str, str], arch: str) -> Artifact:
        """Compile to a cubin (`cuda`, `arch` such as sm_90a) or a shared library (`cpu`).

        Raises CompileFailed where the candidate is at fault, ToolchainMissing where this machine is.
        """
        return self._build("cubin" if target == "cuda" else "library", source, macros, arch)

    def ptx(self, source: str, macros: dict[str, str], arch: str) -> Artifact:
        """Compile a cuda source to PTX, for GPUs newer than any cubin. Raises as `build` does."""
        return self._build("ptx", source, macros, arch)

    def occupancy(self, kernel: KernelResources, threads: int, smem_bytes: int, arch: str) -> float:
        """Share of an SM's warp slots that a kernel fills, 0 to 1; `smem_bytes` is dynamic shared memory."""
        return occupancy(kernel.registers, threads, kernel.smem_bytes + smem_bytes, limits(arch))

    def versions(self) -> dict[str, str]:
        """The compilers of this machine by name; one that is missing is left out."""
        return dict(self._versions)

    def prune(self, max_bytes: int) -> int:
        """Bound the cache, longest unused first; returns the bytes removed. Not while a candidate is judged."""
        return self.cache.prune(max_bytes)

    def _build(self, kind: Kind, source: str, macros: dict[str, str], arch: str) -> Artifact:
        text = screened(source, "kernel.cpp" if kind == "library" else "kernel.cu")
        key = content_key(kind, text, sorted(macros.items()), arch, self._identity(kind))
        result = self.cache.load(key)
        cached = result is not None
        if result is None:
            result, content = self._compile(kind, text, macros, arch)
            self.cache.store(key, result, content)
        if isinstance(result, Rejected):
            raise CompileFailed(result.log)
        return Artifact(
            sha256=result.sha256,
            path=self.cache.path(key, result.suffix),
            arch=arch,
            macros=macros,
            kernels=result.kernels,
            cached=cached,
            seconds=result.seconds,
        )

    def _compile(self, kind: Kind, text: str, macros: dict[str, str], arch: str) -> tuple[Built | Rejected, bytes]:
        try:
            answer, content, places = self._ask(kind, text, macros, arch)
        except CompilerTimedOut as exc:
            raise CompileTimedOut(
                f"the compiler was stopped: it took longer than {self.compile_timeout_s:g} s"
            ) from exc
        except CompilerDied as exc:
            raise CompileFailed(f"the compiler crashed ({exc})") from exc
        log = str(answer["log"])
        readable = shortened(scrubbed(without_chatter(log), places))
        if not answer["succeeded"]:
            if "signal terminated program" in log:
                raise CompileFailed(readable)
            return Rejected(log=readable), b""
        built = Built(
            sha256=hashlib.sha256(content).hexdigest(),
            suffix=SUFFIX[kind],
            kernels=parse_ptxas(log),
            seconds=float(answer["seconds"]),
            log=readable,
        )
        return built, content

    def _ask(
        self, kind: Kind, text: str, macros: dict[str, str], arch: str
    ) -> tuple[dict[str, Any], bytes, dict[str, str]]:
        if kind == "library":
            return self._ask_native(text, macros)
        with self._lock:
            try:
                return self._ask_nvrtc(kind, text, macros, arch)
            except CompilerDied:
                # Whether the text or something outside ended the process shows when it is tried alone.
                return self._ask_nvrtc(kind, text, macros, arch)

    def _ask_nvrtc(
        self, kind: Kind, text: str, macros: dict[str, str], arch: str
    ) -> tuple[dict[str, Any], bytes, dict[str, str]]:
        process = self._warm_nvrtc()
        request = {
            "name": "kernel.cu",
            "kind": kind,
            "options": nvrtc_options(kind, macros, arch),
            "headers": CUDA_HEADERS,
        }
        answer, code = process.ask(request, cuda_text(text).encode(), self.compile_timeout_s)
        places = {f"{process.directory}/": "", **{f"{place}/": "" for place in process.greeting["includes"]}}
        return answer, code, places

    def _ask_native(self, text: str, macros: dict[str, str]) -> tuple[dict[str, Any], bytes, dict[str, str]]:
        process = CompilerProcess("native", START_TIMEOUT_S)
        try:
            request = self._native.request(macros, self.compile_timeout_s)
            answer, library = process.ask(request, text.encode(), self.compile_timeout_s)
            return answer, library, {f"{process.directory}/": ""}
        finally:
            process.kill()

    def _warm_nvrtc(self) -> CompilerProcess:
        if self._nvrtc and not self._nvrtc.alive:
            self._drop_nvrtc()
        if not self._nvrtc:
            self._nvrtc = start_nvrtc()
        return self._nvrtc

    def _drop_nvrtc(self) -> None:
        if self._nvrtc:
            self._nvrtc.kill()
            self._nvrtc = None

    def _identity(self, kind: Kind) -> object:
        return self._native.identity if kind == "library" else [self._nvrtc_identity, CUDA_HEADERS, CUDA_OPTIONS]

    @cached_property
    def _native(self) -> NativeCompiler:
        return NativeCompiler()

    @cached_property
    def _nvrtc_identity(self) -> tuple[str, str, str]:
        with self._lock:
            greeting = self._warm_nvrtc().greeting
        return greeting["version"], greeting["library"], ":".join(greeting["includes"])

    @cached_property
    def _versions(self) -> dict[str, str]:
        found: dict[str, str] = {}
        with contextlib.suppress(ToolchainMissing):
            found["nvrtc"] = self._nvrtc_identity[0]
        with contextlib.suppress(ToolchainMissing):
            found["c++"] = self._native.version
        return found
