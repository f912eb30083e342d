"""The C++ compiler and the flags for a kernel of the cpu target.

Not covered: running it, which happens on the far side (compiler.py).
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from sandbox.errors import ToolchainMissing

NATIVE = "-march=native"
LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4")
"""What CPUs have in common, worst first."""
COMPILE_FLAGS = [
    *("-O3", NATIVE, "-std=c++17", "-fopenmp", "-include", "cstdint"),
    *("-fPIC", "-fno-semantic-interposition", "-fvisibility-inlines-hidden", "-fdiagnostics-color=never"),
]
GCC_FLAGS = ["-fmax-errors=20"]
LINK_FLAGS = [
    *("-shared", "-fopenmp", "-Wl,-z,defs", "-Wl,-Bsymbolic", "-Wl,--build-id=none"),
    "-Wl,--version-script=exports.map",
]
# clang would assemble in the same step, and the assembly is to be looked over before.
CLANG_FLAGS = ["-fno-integrated-as", "-ferror-limit=20"]


def cpu_features() -> str:
    """What -march=native depends on: the model and flags of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def names() -> list[str]:
    """What a C++ compiler may be called, best first: $CXX, else g++, else clang++."""
    return [name for name in (os.environ.get("CXX", ""), "g++", "clang++") if name]


class NativeCompiler:
    """The C++ compiler at `path`, which says `version` of itself."""

    def __init__(self, path: str, version: str) -> None:
        if not path:
            raise ToolchainMissing("no C++ compiler: wanted $CXX, g++ or clang++; apt-get install g++")
        if not version:
            raise ToolchainMissing(f"{path} --version said nothing")
        self.path, self.version = path, version
        own_flags = CLANG_FLAGS if "clang" in self.version else GCC_FLAGS
        self.compile = [self.path, *COMPILE_FLAGS, *own_flags, "-S", "-o", "kernel.s"]
        self.link = [self.path, *LINK_FLAGS, "-o", "kernel.so", "kernel.s"]
        self.identity = [self.version, cpu_features(), self.compile, self.link]

    def request(
        self, macros: dict[str, str], timeout_s: float, sanitize: bool = False, arch: str = ""
    ) -> dict[str, Any]:
        """For the CPU at hand, or for another one where `arch` is a level such as x86-64-v3."""
        definitions = [f"-D{name}={value}" for name, value in sorted(macros.items())]
        checks = ["-fsanitize=address"] if sanitize else []
        command = [f"-march={arch}" if flag == NATIVE and arch in LEVELS else flag for flag in self.compile]
        compiling = [*command, *checks, *definitions, "kernel.cpp"]
        return {"compile": compiling, "link": [*self.link, *checks], "cpu_s": timeout_s}
