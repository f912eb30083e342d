"""The far side of the toolchain: the process in which a compiler reads candidate text.

Run by path, it imports nothing of ours. It speaks frames over the pipes it was born with: two lengths,
a JSON header, then bytes. `nvrtc` serves any number of requests, so that NVRTC stays warm;
`native` runs g++ or clang++ in the same jail. It is untrusted from its first request on: the host
limits its time and kills its whole process group. Not covered: what may be included (see screen.py).
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

FRAME = struct.Struct(">II")
LOG_BYTES = 64 * 1024
FILE_BYTES = 256 * 1024 * 1024
ADDRESS_BYTES = 8 * 1024**3
PR_SET_NO_NEW_PRIVS = 38

# linux/landlock.h; the numbers of the system calls are the same on every architecture.
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_RULE_PATH_BENEATH = 1
LANDLOCK_EXECUTE, LANDLOCK_WRITE_FILE, LANDLOCK_READ_FILE, LANDLOCK_READ_DIR = 1, 2, 4, 8
LANDLOCK_READ = LANDLOCK_EXECUTE | LANDLOCK_READ_FILE | LANDLOCK_READ_DIR
LANDLOCK_READ_WRITE = LANDLOCK_READ_FILE | LANDLOCK_WRITE_FILE
LANDLOCK_FILE = LANDLOCK_EXECUTE | LANDLOCK_READ_WRITE
LANDLOCK_ALL = 2**13 - 1

# What g++ and clang++ read besides their own folder.
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/opt", "/etc/ld.so.cache", "/etc/alternatives", "/proc/cpuinfo")

Answer = tuple[dict[str, Any], bytes]

# gas directives that read files, and those that could spell them out of pieces.
READS_FILES = re.compile(r"\.(incbin|include|macro|altmacro|irpc?|rept)\b", re.IGNORECASE)
# Everything of C++ linkage stays inside the library; extern "C" names stay visible.
EXPORTS = "{ local: _Z*; };\n"


def pack(header: dict[str, Any], blob: bytes = b"") -> bytes:
    """One frame: both lengths, the header as JSON, the blob."""
    text = json.dumps(header).encode()
    return FRAME.pack(len(text), len(blob)) + text + blob


# ---------------------------------------------------------------- jail


def die_with(parent: int) -> None:
    """End this process group as soon as `parent` is gone.

    PR_SET_PDEATHSIG would do it at once, but fires when the parent's *thread* ends, and the host builds
    from pools of threads.
    """
    while os.getppid() == parent:
        time.sleep(0.25)
    os.killpg(0, signal.SIGKILL)


def enter_jail(parent: int) -> None:
    """Limit what a compiler led astray can take: files, memory, descriptors, new privileges."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    threading.Thread(target=die_with, args=(parent,), daemon=True).start()


def open_only(readable: list[Path], scratch: Path) -> bool:
    """Make every other file unreadable and everything but `scratch` unwritable, for good (Landlock, Linux 5.13).

    Returns whether the kernel does so; where it does not, the screen has to suffice.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    handled = ctypes.c_uint64(LANDLOCK_ALL)
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, ctypes.byref(handled), ctypes.c_size_t(8), 0)
    if ruleset < 0:
        return False
    for path in readable:
        allow(libc, ruleset, path, LANDLOCK_READ)
    allow(libc, ruleset, Path(os.devnull), LANDLOCK_READ_WRITE)
    allow(libc, ruleset, scratch, LANDLOCK_ALL)
    confined: int = libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return confined == 0


def allow(libc: ctypes.CDLL, ruleset: int, path: Path, access: int) -> None:
    """Add a rule for a path and all below it; a path that is not there needs none."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    rule = ctypes.create_string_buffer(struct.pack("=Qi", access if path.is_dir() else access & LANDLOCK_FILE, place))
    libc.syscall(LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, rule, 0)
    os.close(place)


def limit_cpu(seconds: float) -> None:
    """Allow `seconds` of CPU time from now on; the limit counts from the start of the process."""
    used = time.process_time()
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + seconds) + 2, hard))


# ---------------------------------------------------------------- NVRTC


def include_roots(major: int) -> list[Path]:
    """Where wheels and toolkits keep CUDA's headers, those of NVRTC's own major version first."""
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    by_version = [f"cu{major}/include", "cuda_runtime/include"]
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    toolkits = [Path(home) for home in homes if home]
    return [
        *(wheel / part for part in by_version for wheel in wheels),
        *(home / part for home in toolkits for part in ("include", "targets/x86_64-linux/include")),
    ]


def include_dirs(major: int) -> list[Path]:
    """The directories for -I: CUDA's headers and libcu++; empty where there is no cuda_fp16.h."""
    roots = include_roots(major)
    headers = [root for root in roots if (root / "cuda_fp16.h").is_file()][:1]
    runtime = [root for root in roots if (root / "cooperative_groups.h").is_file()][:1]
    beside = [root.parents[1] / "cuda_cccl" / "include" for root in roots if len(root.parents) > 1]
    places = [root / "cccl" for root in roots] + beside + roots
    libcuxx = [place for place in places if (place / "cuda" / "std" / "cstdint").is_file()][:1]
    return list(dict.fromkeys(headers + runtime + libcuxx)) if headers else []


def loaded_library(name: str) -> Path:
    """Where a shared library of this process came from."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line.split()[-1])
        if path.name.startswith(name):
            return path
    raise LookupError(f"{name} is not loaded")


def decoded(text: bytes) -> str:
    return text[:LOG_BYTES].rstrip(b"\0 \n").decode("utf-8", "replace")


class Nvrtc:
    """NVRTC by way of cuda-bindings; loaded once, so that later builds find it warm."""

    def __init__(self) -> None:
        from cuda.bindings import nvrtc

        self.nvrtc: Any = nvrtc
        _, self.major, self.minor = nvrtc.nvrtcVersion()
        self.includes = include_dirs(self.major)
        self.library = loaded_library("libnvrtc.so").resolve()
        # libnvrtc-builtins is loaded with the first program.
        builtins = [self.library.parent, Path("/etc/ld.so.cache")]
        self.confined = open_only([*self.includes, *builtins, Path("/proc/cpuinfo")], Path.cwd())

    def greeting(self) -> dict[str, Any]:
        return {
            "version": f"{self.major}.{self.minor}",
            # Name and size together tell builds of one version apart.
            "library": f"{self.library.name} {self.library.stat().st_size} bytes",
            "includes": [str(place) for place in self.includes],
            "searched": [str(place) for place in include_roots(self.major)],
            "confined": self.confined,
        }

    def build(self, request: dict[str, Any], source: bytes) -> Answer:
        """Compile one program. Request: name, kind (cubin or ptx), options, headers."""
        headers: dict[str, str] = request["headers"]
        texts, names = [text.encode() for text in headers.values()], [name.encode() for name in headers]
        _, program = self.nvrtc.nvrtcCreateProgram(source, request["name"].encode(), len(headers), texts, names)
        options = [*request["options"], *(f"-I{place}" for place in self.includes)]
        (result,) = self.nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        succeeded = int(result) == 0
        log = self.log(program) or str(result)
        code = self.code(program, request["kind"]) if succeeded else b""
        self.nvrtc.nvrtcDestroyProgram(program)
        return {"succeeded": succeeded, "log": log}, code

    def log(self, program: Any) -> str:
        _, size = self.nvrtc.nvrtcGetProgramLogSize(program)
        text = b" " * size
        self.nvrtc.nvrtcGetProgramLog(program, text)
        return decoded(text)

    def code(self, program: Any, kind: str) -> bytes:
        stem = "nvrtcGetCUBIN" if kind == "cubin" else "nvrtcGetPTX"
        _, size = getattr(self.nvrtc, stem + "Size")(program)
        code: bytes = b" " * size
        getattr(self.nvrtc, stem)(program, code)
        return code


# ---------------------------------------------------------------- g++, clang++


def run_compiler(command: list[str]) -> tuple[bool, str]:
    """Run a compiler in the current directory: whether it succeeded, and what it said."""
    with Path("compiler.log").open("wb") as log:
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT).returncode
    with Path("compiler.log").open("rb") as log:
        return code == 0, decoded(log.read(LOG_BYTES))


def find_compiler(names: list[str]) -> dict[str, Any]:
    """Path and version of the first that is installed; both empty where none is."""
    path = next((path for name in names if (path := shutil.which(name))), "")
    said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout if path else ""
    return {"path": path, "version": said.strip().split("\n")[0]}


def assembly_reading_files() -> str:
    """The first line of kernel.s that makes the assembler read a file; empty if there is none.

    Looked for here, after the compiler has joined strings and expanded macros.
    """
    with Path("kernel.s").open(errors="replace") as assembly:
        return next((line.strip() for line in assembly if READS_FILES.search(line)), "")


class Native:
    """A C++ compiler for the host: to assembly, which is looked over, and on to a shared library."""

    def greeting(self) -> dict[str, Any]:
        return {}

    def build(self, request: dict[str, Any], source: bytes) -> Answer:
        """Compile one library, once in a process. Request: compile and link (argument lists), cpu_s.

        A request with `find`, a list of names, asks for a compiler's path and version instead.
        """
        if "find" in request:
            return find_compiler(request["find"]), b""
        limit_cpu(request["cpu_s"])
        own = Path(request["compile"][0]).resolve().parents[1]
        open_only([Path(place) for place in (*SYSTEM, own)], Path.cwd())
        Path("kernel.cpp").write_bytes(source)
        Path("exports.map").write_text(EXPORTS)
        succeeded, log = run_compiler(request["compile"])
        if not succeeded:
            return {"succeeded": False, "log": log}, b""
        if line := assembly_reading_files():
            return {"succeeded": False, "log": f"kernel.cpp: assembly may not read files or define macros: {line}"}, b""
        succeeded, linker_log = run_compiler(request["link"])
        library = Path("kernel.so").read_bytes() if succeeded else b""
        return {"succeeded": succeeded, "log": "\n".join(part for part in (log, linker_log) if part)}, library


# ---------------------------------------------------------------- service

COMPILERS: dict[str, Callable[[], Nvrtc | Native]] = {"nvrtc": Nvrtc, "native": Native}


def read_frame(stream: BinaryIO) -> Answer | None:
    """The next frame, or None at the end of the stream."""
    lengths = stream.read(FRAME.size)
    if len(lengths) < FRAME.size:
        return None
    header_bytes, blob_bytes = FRAME.unpack(lengths)
    return json.loads(stream.read(header_bytes)), stream.read(blob_bytes)


def private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes to the host, moved away from descriptors 0 and 1, where a compiler might write."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    return requests, answers


def serve(compiler: Nvrtc | Native, requests: BinaryIO, answers: BinaryIO) -> None:
    answers.write(pack(compiler.greeting()))
    answers.flush()
    while frame := read_frame(requests):
        started = time.perf_counter()
        answer, blob = compiler.build(*frame)
        answers.write(pack({**answer, "seconds": time.perf_counter() - started}, blob))
        answers.flush()


def main() -> None:
    kind, parent = sys.argv[1], int(sys.argv[2])
    requests, answers = private_pipes()
    enter_jail(parent)
    serve(COMPILERS[kind](), requests, answers)


if __name__ == "__main__":
    main()
