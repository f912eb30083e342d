"""`warpsmith build`: compile every seed of a task for every specialisation, with or without the GPU it is for."""

from __future__ import annotations

import math
from collections.abc import Iterator

from agent.fitness import misfit
from sandbox import plan
from sandbox.contract import Artifact, Candidate, Device, Record, Task, Workload
from sandbox.toolchain import CompileFailed, Toolchain


class KernelReport(Record):
    """What one kernel of one specialisation needs; `occupancy` is a share of an SM's warp slots."""

    kernel: str
    registers: int
    spill_bytes: int
    smem_bytes: int
    """Static and dynamic shared memory."""
    threads: int
    """Of a block; 0 where no workload launches the kernel."""
    occupancy: float | None


class BuildReport(Record):
    """One seed, compiled for the workloads that share its macros."""

    seed: str
    arch: str
    workloads: tuple[str, ...]
    ok: bool
    cached: bool = False
    seconds: float = 0.0
    kernels: tuple[KernelReport, ...] = ()
    log: str = ""
    """The compiler's message, where it failed."""
    excluded: str = ""
    """Why a run on this device passes the seed over, in which case it is not compiled."""


def build_all(task: Task, seeds: list[Candidate], device: Device, toolchain: Toolchain) -> Iterator[BuildReport]:
    """A report for every distinct specialisation of every seed, one for a seed that does not suit the device."""
    for seed in seeds:
        own = plan.parse(seed.source, task)
        if why := misfit(task, own, seed.tunables, device):
            names = tuple(workload.name for workload in task.workloads)
            yield BuildReport(seed=seed.note, arch=device.arch, workloads=names, ok=True, excluded=why)
            continue
        groups: dict[tuple[tuple[str, str], ...], list[Workload]] = {}
        for workload in task.workloads:
            definitions = plan.macros(task, own, workload, seed.tunables)
            groups.setdefault(tuple(sorted(definitions.items())), []).append(workload)
        for macros, workloads in groups.items():
            yield _build(task, seed, own, workloads, dict(macros), device, toolchain)


def _build(
    task: Task,
    seed: Candidate,
    own: plan.Plan,
    workloads: list[Workload],
    macros: dict[str, str],
    device: Device,
    toolchain: Toolchain,
) -> BuildReport:
    names = tuple(workload.name for workload in workloads)
    try:
        artifact = toolchain.build(seed.source, task.target, macros, device.arch)
    except CompileFailed as exc:
        return BuildReport(seed=seed.note, arch=device.arch, workloads=names, ok=False, log=exc.log)
    launches = [
        launch for workload in workloads for launch in plan.resolve(own, task, workload, seed.tunables, device).launches
    ]
    return BuildReport(
        seed=seed.note,
        arch=device.arch,
        workloads=names,
        ok=True,
        cached=artifact.cached,
        seconds=artifact.seconds,
        kernels=_kernels(artifact, launches, device, toolchain),
    )


def _kernels(
    artifact: Artifact, launches: list[plan.ResolvedLaunch], device: Device, toolchain: Toolchain
) -> tuple[KernelReport, ...]:
    reports = []
    for kernel in artifact.kernels:
        own = [launch for launch in launches if launch.kernel == kernel.kernel]
        # The launch that needs most is the one that limits.
        threads = max((math.prod(launch.block) for launch in own), default=0)
        smem = max((launch.smem_bytes for launch in own), default=0)
        reports.append(
            KernelReport(
                kernel=kernel.kernel,
                registers=kernel.registers,
                spill_bytes=kernel.spill_bytes,
                smem_bytes=kernel.smem_bytes + smem,
                threads=threads,
                occupancy=toolchain.occupancy(kernel, threads, smem, device.arch) if threads else None,
            )
        )
    return tuple(reports)
