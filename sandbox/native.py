"""The C++ compiler of this machine and the flags for a kernel of the cpu target.

Not covered: running it, which happens on the far side (compiler.py).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from sandbox.errors import ToolchainMissing

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
