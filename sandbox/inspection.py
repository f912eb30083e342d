"""What is asked of a winner beyond being right and fast: sanitizers, and counters of the hardware.

Each tool watches calls in a worker of its own, on small workloads: they slow a kernel down up to a thousand times.
Not covered: the tools (sanitizer.py, profiler.py), and torch sources, whose own allocations no tool could tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from sandbox.contract import Artifact, Device, Incorrect, Profile, SanitizerReport, SanitizerTool, Workload
from sandbox.courtroom import Courtroom, Evidence
from sandbox.instruments import Call
from sandbox.launch import Launcher
from sandbox.plan import macros
from sandbox.profiler import profile
from sandbox.sanitizer import sanitize
from sandbox.toolchain import CompileFailed, Toolchain
from sandbox.trial import Build, Rejected, Trial

TOOLS: dict[str, tuple[SanitizerTool, ...]] = {"cuda": ("memcheck", "racecheck", "initcheck"), "cpu": ("address",)}


def inspect(
    room: Courtroom, trial: Trial, launcher: Launcher, toolchain: Toolchain, device: Device, evidence: Evidence
) -> tuple[tuple[SanitizerReport, ...], Profile]:
    """Reports on the smallest workloads, timed and held out, and counters on the first timed one.

    Rejected where a sanitizer found a fault. A tool that is not there says so in its report.
    """
    looks = [
        (workload, _call(trial, evidence, workload, _watched(toolchain, trial.build, workload, device)), tool)
        for workload in _smallest(room)
        for tool in TOOLS[device.target]
    ]
    # Side by side: most of a look is the start of a process and of the tool in it.
    with ThreadPoolExecutor(len(looks)) as pool:
        found = list(pool.map(lambda look: sanitize(launcher, device, [look[1]], [look[2]]), looks))
    for (workload, _, _), reports in zip(looks, found, strict=True):
        _refuse(workload, evidence, reports)
    first = room.task.workloads[0]
    return tuple(report for group in found for report in group), profile(
        launcher, device, _call(trial, evidence, first, None)
    )


def _smallest(room: Courtroom) -> list[Workload]:
    groups = [group for group in (room.task.workloads, room.task.held_out) if group]
    return [min(group, key=room.set_bytes) for group in groups]


def _call(trial: Trial, evidence: Evidence, workload: Workload, artifact: Artifact | None) -> Call:
    return trial.single_call(workload, evidence.checked[workload.name][0], artifact)


def _watched(toolchain: Toolchain, build: Build, workload: Workload, device: Device) -> Artifact | None:
    """A build with AddressSanitizer's checks in it, on cpu; the tools for cuda take the artifact as it is."""
    if device.target == "cuda":
        return None
    definitions = macros(build.task, build.plan, workload, build.tunables)
    try:
        return toolchain.sanitized(build.candidate.source, definitions, device.arch)
    except CompileFailed:
        # Assembly that leaves no register to the checks, for one; the report will say that nothing was found out.
        return None


def _refuse(workload: Workload, evidence: Evidence, reports: Sequence[SanitizerReport]) -> None:
    for report in reports:
        if report.errors:
            found = "; ".join(f"{fault.what} in {fault.kernel} ({fault.count}×)" for fault in report.kernels)
            raise Rejected(
                Incorrect(
                    workload=workload.name,
                    distribution=evidence.checked[workload.name][0].distribution,
                    rule=report.tool,
                    evidence=f"{report.errors} error(s): {found}\n{report.excerpt}".strip(),
                )
            )
