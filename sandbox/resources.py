"""What a compiled kernel takes of an SM: ptxas reports, and the occupancy that follows from them.

Figures of GPUs come from gpus.toml. Not covered: clusters, and registers reallocated by setmaxnreg.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sandbox.contract import KernelResources
from sandbox.errors import BadInput

GPUS_TOML = Path(__file__).with_name("gpus.toml")

ENTRY = re.compile(r"Compiling entry function '([^']+)' for '[^']+'")
PROPERTIES = re.compile(r"Function properties for '?([^\s']+)'?")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
STATIC_SMEM = re.compile(r"(\d+)(?:\+\d+)? bytes smem")
CHATTER = re.compile(r"^ptxas info |^ptxas\s+\. |^\s*\d+ bytes stack frame, ")


def parse_ptxas(log: str) -> tuple[KernelResources, ...]:
    """Resources of each kernel in the output of `ptxas -v`, as NVRTC, nvcc and ptxas print it."""
    found: list[KernelResources] = []
    kernel, owner, stack, spills = "", "", 0, 0
    for line in log.splitlines():
        if entry := ENTRY.search(line):
            kernel, owner, stack, spills = entry[1], entry[1], 0, 0
        elif properties := PROPERTIES.search(line):
            owner = properties[1]
        elif (frame := FRAME.search(line)) and kernel and owner == kernel:
            stack, spills = int(frame[1]), int(frame[2]) + int(frame[3])
        elif (registers := REGISTERS.search(line)) and kernel:
            smem = STATIC_SMEM.search(line)
            found.append(
                KernelResources(
                    kernel=kernel,
                    registers=int(registers[1]),
                    spill_bytes=spills,
                    smem_bytes=int(smem[1]) if smem else 0,
                    stack_bytes=stack,
                )
            )
            kernel = ""
    return tuple(found)


def without_chatter(log: str) -> str:
    """The log without what ptxas says about kernels that are fine."""
    return "\n".join(line for line in log.splitlines() if not CHATTER.search(line)).strip()


# ---------------------------------------------------------------- occupancy


class Limits(BaseModel):
    """What one SM of an architecture has to give, and in which portions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_threads_per_sm: int
    max_blocks_per_sm: int
    registers_per_sm: int
    smem_per_sm: int
    smem_optin: int
    smem_reserved: int
    """Taken by the driver from every block."""
    smem_unit: int
    register_unit: int
    """Registers are given to a warp in multiples of this."""
    partitions: int
    """Warp schedulers; a warp's registers come from its own scheduler's file."""
    gpu: str
    """The GPU that stands for the architecture where none is at hand."""

    @property
    def max_warps_per_sm(self) -> int:
        return self.max_threads_per_sm // 32


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def blocks_by_registers(registers: int, warps: int, limits: Limits) -> int:
    """Blocks whose registers fit into an SM (CUDA occupancy calculator, warp allocation granularity)."""
    by_warp = round_up(max(registers, 1) * 32, limits.register_unit)
    warps_by_partition = limits.registers_per_sm // limits.partitions // by_warp
    return warps_by_partition * limits.partitions // warps


def blocks_per_sm(registers: int, threads: int, smem_bytes: int, limits: Limits) -> int:
    """Blocks that are resident on an SM at once; 0 where not even one fits.

    `registers` per thread, `threads` per block, `smem_bytes` per block, static and dynamic together.
    """
    if not 0 < threads <= 1024 or smem_bytes > limits.smem_optin:
        return 0
    warps = -(-threads // 32)
    smem = round_up(smem_bytes + limits.smem_reserved, limits.smem_unit)
    return min(
        limits.max_warps_per_sm // warps,
        limits.max_blocks_per_sm,
        blocks_by_registers(registers, warps, limits),
        limits.smem_per_sm // smem if smem else limits.max_blocks_per_sm,
    )


def occupancy(registers: int, threads: int, smem_bytes: int, limits: Limits) -> float:
    """Share of an SM's warp slots that are filled, 0 to 1. Arguments as for `blocks_per_sm`."""
    warps = -(-threads // 32)
    return blocks_per_sm(registers, threads, smem_bytes, limits) * warps / limits.max_warps_per_sm


# ---------------------------------------------------------------- gpus.toml


class Gpu(BaseModel):
    """Figures of one GPU product from its datasheet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pattern: str
    """Regular expression for the name that the driver gives; the first match counts."""
    arch: str
    sm_count: int
    l2_bytes: int
    bandwidth_gbs: float
    tflops: dict[str, float]


@cache
def limits_by_arch() -> dict[str, Limits]:
    table = tomllib.loads(GPUS_TOML.read_text())
    return {arch: Limits.model_validate(limits) for arch, limits in table["arch"].items()}


@cache
def gpus() -> tuple[Gpu, ...]:
    table = tomllib.loads(GPUS_TOML.read_text())
    return tuple(Gpu.model_validate(gpu) for gpu in table["gpu"])


def limits(arch: str) -> Limits:
    """Limits of an architecture, with or without its suffix (`sm_90a`). Unknown: BadInput."""
    known = limits_by_arch()
    bare = re.sub(r"(?<=\d)[af]$", "", arch)
    if bare not in known:
        raise BadInput(f"unknown architecture {arch!r}; known are {', '.join(known)}")
    return known[bare]


def gpu_named(name: str) -> Gpu | None:
    """Datasheet figures for a GPU by the name that the driver gives; None where it is not in gpus.toml."""
    return next((gpu for gpu in gpus() if re.search(gpu.pattern, name)), None)
