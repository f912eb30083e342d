"""From a kernel source to a cubin, PTX or a shared library.

`cuda` goes through NVRTC in a warm process, `cpu` through g++ or clang++ in a fresh one; both are jailed, since
candidate text steers a compiler. Results are cached by content. Not covered: macros and launch plans (plan.py),
loading and launching (worker).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from sandbox.cache import BuildCache, Built, Rejected
from sandbox.compiler_process import CompilerDied, CompilerProcess, CompilerTimedOut
from sandbox.contract import Artifact, KernelResources, Target
from sandbox.errors import ToolchainMissing
from sandbox.native import COMPILE_FLAGS as COMPILE_FLAGS
from sandbox.native import NativeCompiler
from sandbox.nvrtc import CUDA_HEADERS, CUDA_OPTIONS, START_TIMEOUT_S, cuda_text, nvrtc_options, start_nvrtc
from sandbox.resources import limits, occupancy, parse_ptxas, without_chatter
from sandbox.screen import screen

Kind = Literal["cubin", "ptx", "library"]

SUFFIX: dict[Kind, str] = {"cubin": ".cubin", "ptx": ".ptx", "library": ".so"}
LOG_CHARS = 8000


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


def screened(source: str, file: str) -> str:
    """The source with plain line ends, once it broke no rule of the screen."""
    text = source.replace("\r\n", "\n").removeprefix("\ufeff")
    if refusal := screen(text):
        raise CompileFailed(f"{file}:{refusal.line}: error: {refusal.rule}")
    return text


def content_key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


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
                # Whether this text ended the process, or what came before it, shows in a fresh one.
                return self._ask_nvrtc(kind, text, macros, arch)

    def _ask_nvrtc(
        self, kind: Kind, text: str, macros: dict[str, str], arch: str
    ) -> tuple[dict[str, Any], bytes, dict[str, str]]:
        process = self._warm_nvrtc()
        request = {
            "name": "kernel.cu",
            "kind": kind,
            "options": nvrtc_options(kind == "ptx", macros, arch),
            "headers": CUDA_HEADERS,
        }
        answer, code = process.ask(request, cuda_text(text).encode(), self.compile_timeout_s)
        if not answer["succeeded"] and "out of memory" in str(answer["log"]):
            self._drop_nvrtc()
            raise CompilerDied("out of memory")
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
