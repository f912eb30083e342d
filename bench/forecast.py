"""What the kernels of an archive export may do on a GPU that is not at hand: a forecast, no measurement.

    python -m bench.forecast EXPORT.jsonl --arch sm_86 > bench/results/NAME.md

Of every task and workload the kernel that was fastest where it was judged, among those that compile for the other
architecture and fit it. The forecast is the other GPU's roofline floor over the share of the roofline that the kernel
reached where it was measured. Not covered: whether it is right there, and caches, clocks and instructions that differ.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agent import tasks
from agent.building import BuildReport, build_all
from archive import Archive
from bench.table import Found, cost_on, timing_of
from sandbox.contract import Candidate, Device, Passed, Task, Workload
from sandbox.devices import cross
from sandbox.local import LocalLauncher
from sandbox.toolchain import Toolchain
from sandbox.trial import floor

COLUMNS = ("task", "workload", "kernel", "registers", "spills", "shared memory", "occupancy", "ms measured", "roofline")
COLUMNS += ("floor, ms", "forecast, ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--arch", default="sm_86", help="the other architecture, such as sm_86 for an A10")
    arguments = parser.parse_args()
    device = cross(arguments.arch)
    with tempfile.TemporaryDirectory() as folder, Archive.open(Path(folder) / "archive.db") as archive:
        archive.import_(arguments.export)
        judged = archive.judgements(target="cuda")
        passed = [(c, j, j.verdict) for c, j in judged if isinstance(j.verdict, Passed)]
        with Toolchain(Path(folder) / "cache", launcher=LocalLauncher()) as toolchain:
            command = f"python -m bench.forecast {arguments.export} --arch {arguments.arch}"
            for line in report(passed, device, toolchain, command):
                print(line, flush=True)


def report(passed: list[Found], device: Device, toolchain: Toolchain, command: str) -> Iterator[str]:
    """The lines of the page."""
    yield f"# A forecast for the {device.name}\n"
    yield f"- `{command}`; {', '.join(f'{n} {v}' for n, v in sorted(toolchain.versions().items()))}"
    yield f"- measured on: {', '.join(sorted({j.device for _, j, _ in passed}))}; nothing was run on the {device.name}"
    yield f"- {device.bandwidth_gbs:g} GB/s, {device.sm_count} SMs, {device.smem_optin} bytes of shared memory a block"
    yield "- forecast: the floor there over the share of its floor that the kernel reached where it was measured\n"
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---|---|---|" + "---:|" * (len(COLUMNS) - 3)
    for name in sorted({c.task for c, _, _ in passed}):
        task = tasks.load(name, "cuda")
        own = [f for f in passed if f[0].task == name and f[1].task_version == task.version]
        builds: dict[str, tuple[BuildReport, ...]] = {}
        for workload in task.workloads:
            yield _row(task, workload, own, builds, device, toolchain)


def _row(
    task: Task,
    workload: Workload,
    passed: list[Found],
    builds: dict[str, tuple[BuildReport, ...]],
    device: Device,
    toolchain: Toolchain,
) -> str:
    for candidate, _, verdict in sorted(passed, key=lambda found: cost_on(found, workload.name)):
        if candidate.id not in builds:
            builds[candidate.id] = tuple(build_all(task, [candidate], device, toolchain))
        built = next((b for b in builds[candidate.id] if workload.name in b.workloads and b.ok), None)
        if built is not None and not built.excluded:
            return _line(task, workload, candidate, verdict, built, device)
    return f"| {task.name} | {workload.name} | none fits |" + " – |" * (len(COLUMNS) - 3)


def _line(
    task: Task, workload: Workload, candidate: Candidate, verdict: Passed, built: BuildReport, device: Device
) -> str:
    timing = timing_of(verdict, workload.name)
    launched = [kernel for kernel in built.kernels if kernel.threads]
    share, least = timing.roofline_share, floor(task, workload, device)
    cells = [
        task.name,
        workload.name,
        candidate.note,
        "/".join(str(kernel.registers) for kernel in launched),
        str(sum(kernel.spill_bytes for kernel in launched)),
        "/".join(f"{kernel.smem_bytes / 1024:.0f} KB" for kernel in launched),
        "/".join(f"{kernel.occupancy or 0:.0%}" for kernel in launched),
        f"{timing.candidate.median_ms:.4g}",
        f"{share:.0%}" if share else "–",
        f"{least:.4g}" if least else "–",
        f"{least / share:.3g}" if least and share else "–",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
