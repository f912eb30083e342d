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
import re
import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from sandbox.cache import BuildCache, Built, Rejected
from sandbox.compiler_process import CompilerDied, CompilerProcess, CompilerTimedOut, Kind
from sandbox.contract import Artifact, KernelResources, Target
from sandbox.errors import ToolchainMissing
from sandbox.native import COMPILE_FLAGS as COMPILE_FLAGS
from sandbox.native import LEVELS as LEVELS
from sandbox.native import NATIVE as NATIVE
from sandbox.native import NativeCompiler, names
from sandbox.nvrtc import CUDA_HEADERS, CUDA_OPTIONS, START_TIMEOUT_S, cuda_text, nvrtc_options, start_nvrtc
from sandbox.resources import limits, occupancy, parse_ptxas, without_chatter
from sandbox.screen import screen

Product = Literal["cubin", "ptx", "library", "sanitized"]

SUFFIX: dict[Product, str] = {"cubin": ".cubin", "ptx": ".ptx", "library": ".so", "sanitized": ".so"}
LOG_CHARS = 8000
MOST_COMPILERS = max(2, min(8, os.cpu_count() or 1))
"""NVRTC processes at once; each keeps its headers warm, and costs 0.1 GB."""


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


class Compilers(Protocol):
    """What a toolchain needs of a launcher."""

    def compiler(self, kind: Kind, timeout_s: float) -> CompilerProcess:
        """A compile process that is ready; CompilerDied or CompilerTimedOut where it does not get there."""


class Toolchain:
    """Builds kernels and keeps what it built. A context manager; safe to share between threads."""

    def __init__(self, cache: Path, compile_timeout_s: float = 60, launcher: Compilers | None = None) -> None:
        """Compile processes come from `launcher`, and without one from this machine as it is."""
        self.cache = BuildCache(cache)
        self.compile_timeout_s = compile_timeout_s
        self._start: Callable[[Kind, float], CompilerProcess] = launcher.compiler if launcher else CompilerProcess
        self._idle: list[CompilerProcess] = []
        self._turns = threading.Semaphore(MOST_COMPILERS)

    def __enter__(self) -> Toolchain:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the compile processes; a later build would start others."""
        while self._idle:
            self._idle.pop().kill()

    def build(self, source: str, target: Target, macros: dict[str, str], arch: str) -> Artifact:
        """Compile to a cubin (`cuda`, `arch` such as sm_90a) or a shared library (`cpu`).

        On cpu `arch` is the machine's, or a level of x86-64 such as x86-64-v3. Raises CompileFailed where the candidate
        is at fault, ToolchainMissing where this machine is.
        """
        return self._build("cubin" if target == "cuda" else "library", source, macros, arch)

    def text(self, source: str) -> Artifact:
        """The source itself as an artifact: a torch source is built where it runs."""
        content = source.encode()
        key = content_key("text", source)
        digest = hashlib.sha256(content).hexdigest()
        self.cache.store(key, Built(sha256=digest, suffix=".txt", seconds=0.0), content)
        return Artifact(sha256=digest, path=self.cache.path(key, ".txt"), arch="", macros={})

    def sanitized(self, source: str, macros: dict[str, str], arch: str) -> Artifact:
        """Compile a cpu source with AddressSanitizer's checks in it; never timed. Raises as `build` does."""
        return self._build("sanitized", source, macros, arch)

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

    def _build(self, kind: Product, source: str, macros: dict[str, str], arch: str) -> Artifact:
        text = screened(source, "kernel.cpp" if SUFFIX[kind] == ".so" else "kernel.cu")
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

    def _compile(self, kind: Product, text: str, macros: dict[str, str], arch: str) -> tuple[Built | Rejected, bytes]:
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
        self, kind: Product, text: str, macros: dict[str, str], arch: str
    ) -> tuple[dict[str, Any], bytes, dict[str, str]]:
        try:
            return self._ask_once(kind, text, macros, arch)
        except CompilerDied:
            # Whether this text ended the process, or what came before it, shows in another one.
            return self._ask_once(kind, text, macros, arch)

    def _ask_once(
        self, kind: Product, text: str, macros: dict[str, str], arch: str
    ) -> tuple[dict[str, Any], bytes, dict[str, str]]:
        if SUFFIX[kind] == ".so":
            return self._ask_native(text, macros, arch, sanitize=kind == "sanitized")
        return self._ask_nvrtc(kind, text, macros, arch)

    def _ask_nvrtc(
        self, kind: Product, text: str, macros: dict[str, str], arch: str
    ) -> tuple[dict[str, Any], bytes, dict[str, str]]:
        request = {
            "name": "kernel.cu",
            "kind": kind,
            "options": nvrtc_options(kind == "ptx", macros, arch),
            "headers": CUDA_HEADERS,
        }
        with self._nvrtc() as process:
            answer, code = process.ask(request, cuda_text(text).encode(), self.compile_timeout_s)
            if not answer["succeeded"] and "out of memory" in str(answer["log"]):
                process.kill()
                raise CompilerDied("out of memory")
        places = {f"{process.directory}/": "", **{f"{place}/": "" for place in process.greeting["includes"]}}
        return answer, code, places

    def _ask_native(
        self, text: str, macros: dict[str, str], arch: str, sanitize: bool
    ) -> tuple[dict[str, Any], bytes, dict[str, str]]:
        process = self._start("native", START_TIMEOUT_S)
        try:
            request = self._native.request(macros, self.compile_timeout_s, sanitize, arch)
            answer, library = process.ask(request, text.encode(), self.compile_timeout_s)
            return answer, library, {f"{process.directory}/": ""}
        finally:
            process.kill()

    @contextlib.contextmanager
    def _nvrtc(self) -> Iterator[CompilerProcess]:
        """A warm NVRTC process that nobody else asks meanwhile; who is killed is not used again."""
        with self._turns:
            process = self._idle.pop() if self._idle else start_nvrtc(self._start)
            while not process.alive:
                process.kill()
                process = self._idle.pop() if self._idle else start_nvrtc(self._start)
            try:
                yield process
            finally:
                if process.alive:
                    self._idle.append(process)

    def _identity(self, kind: Product) -> object:
        native = SUFFIX[kind] == ".so"
        return self._native.identity if native else [self._nvrtc_identity, CUDA_HEADERS, CUDA_OPTIONS]

    @cached_property
    def _native(self) -> NativeCompiler:
        process = self._start("native", START_TIMEOUT_S)
        try:
            found, _ = process.ask({"find": names()}, b"", START_TIMEOUT_S)
        finally:
            process.kill()
        return NativeCompiler(str(found["path"]), str(found["version"]))

    @cached_property
    def _nvrtc_identity(self) -> tuple[str, str, str]:
        with self._nvrtc() as process:
            greeting = process.greeting
        return greeting["version"], greeting["library"], ":".join(greeting["includes"])

    @cached_property
    def _versions(self) -> dict[str, str]:
        found: dict[str, str] = {}
        with contextlib.suppress(ToolchainMissing):
            found["nvrtc"] = self._nvrtc_identity[0]
        with contextlib.suppress(ToolchainMissing):
            found["c++"] = self._native.version
        return found
