"""How long a kernel takes from text to loadable code: Warpsmith, nvcc, and PyTorch's load_inline, side by side.

    python -m bench.build_latency [--skip-load-inline] [--skip-nvcc]

Every Warpsmith and nvcc figure is a median over sources that differ by a comment, so no cache can answer. load_inline
builds the same kernel text behind a wrapper of the usual kind. Not covered: the time to load and launch, and
parallel builds.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from agent import tasks
from bench.inline import CUDA_FLAGS, DECLARATION, inline_source
from sandbox import plan
from sandbox.contract import Candidate, Task, Workload
from sandbox.devices import cpu, cross, detect
from sandbox.toolchain import Toolchain

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "cuda-bindings", "nvidia-cuda-nvrtc", "ninja")


class Seed(BaseModel):
    """A seed kernel, with the macros of every specialisation its task's search workloads need."""

    task: Task
    candidate: Candidate
    workload: Workload
    """The first: what nvcc and load_inline compile for."""
    specialisations: list[dict[str, str]]

    @property
    def macros(self) -> dict[str, str]:
        return self.specialisations[0]

    @property
    def name(self) -> str:
        return f"{self.task.name}/{self.candidate.note}"


class Row(BaseModel):
    """Seconds from text to code for one seed; None where it was not measured or does not compile."""

    seed: str
    workload: str
    lines: int
    warpsmith_s: dict[str, float | None]
    """By architecture, the median over all specialisations."""
    slowest_s: dict[str, float | None]
    """By architecture, the median of the specialisation that takes longest."""
    nvcc_s: float | None = None
    load_inline_s: float | None = None
    load_inline_note: str = ""


class Report(BaseModel):
    command: str
    measured_at: str
    host: str
    load: float
    """Load average of the host over the minute before; other work makes every figure larger."""
    device: str
    versions: dict[str, str]
    repeats: int
    cold_start_s: float
    """The first build of a process: the compile process starts and NVRTC loads."""
    rows: list[Row]


# ---------------------------------------------------------------- seeds


def cuda_seeds() -> list[Seed]:
    """Every bundled cuda seed."""
    found = []
    for name in tasks.available():
        task = tasks.load(name, "cuda")
        found += [seed_of(task, candidate) for candidate in tasks.seeds(task)]
    return found


def seed_of(task: Task, candidate: Candidate) -> Seed:
    settled, tunables = plan.plan_of(candidate, task)
    found = [plan.macros(task, settled, workload, tunables) for workload in task.workloads]
    distinct_ones = [macros for i, macros in enumerate(found) if macros not in found[:i]]
    return Seed(task=task, candidate=candidate, workload=task.workloads[0], specialisations=distinct_ones)


def distinct(source: str, repeat: int) -> str:
    return f"{source}\n// {repeat} {time.time_ns()}\n"


# ---------------------------------------------------------------- Warpsmith


def cold_start_s(cache: Path) -> float:
    with Toolchain(cache) as toolchain:
        started = time.perf_counter()
        toolchain.build(distinct('extern "C" __global__ void empty() {}', 0), "cuda", {}, "sm_86")
        return time.perf_counter() - started


def warpsmith_s(toolchain: Toolchain, seed: Seed, arch: str, repeats: int) -> list[list[float]]:
    """Times of Toolchain.build in a warm process, by specialisation; none where a constraint excludes the arch."""
    settled, tunables = plan.plan_of(seed.candidate, seed.task)
    if not plan.allowed(settled, seed.task, tunables, cross(arch)):
        return []
    return [[build_s(toolchain, seed, macros, arch, i) for i in range(repeats)] for macros in seed.specialisations]


def median(seconds: Iterable[float]) -> float | None:
    found = list(seconds)
    return statistics.median(found) if found else None


def build_s(toolchain: Toolchain, seed: Seed, macros: dict[str, str], arch: str, repeat: int) -> float:
    source = distinct(seed.candidate.source, repeat)
    started = time.perf_counter()
    toolchain.build(source, "cuda", macros, arch)
    return time.perf_counter() - started


# ---------------------------------------------------------------- nvcc


def nvcc_s(nvcc: str, seed: Seed, arch: str, repeats: int) -> float | None:
    """Median time of `nvcc -cubin`; None where nvcc fails."""
    definitions = [f"-D{name}={value}" for name, value in seed.macros.items()]
    command = [nvcc, "-cubin", f"-arch={arch}", "-std=c++17", "-include", "cstdint", *definitions]
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            source = Path(folder, "kernel.cu")
            source.write_text(distinct(seed.candidate.source, repeat))
            started = time.perf_counter()
            done = subprocess.run(
                [*command, "-o", Path(folder, "kernel.cubin"), source], capture_output=True, check=False
            )
            if done.returncode:
                return None
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


# ---------------------------------------------------------------- load_inline


def load_inline_s(nvcc: str, seed: Seed, arch: str) -> tuple[float, str]:
    """Time of one load_inline call into an empty folder, and what became of it.

    Without a CUDA build of PyTorch both files compile and only the link fails; the time counts all the same.
    """
    os.environ["CUDA_HOME"] = str(cuda_home(nvcc))
    os.environ["TORCH_CUDA_ARCH_LIST"] = re.sub(r"sm_(\d+)(\d)([af]?)", r"\1.\2\3", arch)
    from torch.utils import cpp_extension

    cpp_extension.CUDA_HOME = os.environ["CUDA_HOME"]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        try:
            cpp_extension.load_inline(
                name=f"inline_{time.time_ns()}",
                cpp_sources=DECLARATION,
                cuda_sources=inline_source(seed.task, seed.candidate, seed.workload, cross(arch)),
                functions=["run"],
                extra_cuda_cflags=CUDA_FLAGS,
                build_directory=folder,
                with_cuda=True,
            )
            note = "built and loaded"
        except (RuntimeError, ImportError, OSError) as exc:
            note = what_failed(Path(folder), exc)
        return time.perf_counter() - started, note


def what_failed(folder: Path, exc: Exception) -> str:
    objects = {path.name for path in folder.glob("*.o")}
    if len(objects) == 2:
        return "both files compiled; linking or loading failed for want of a CUDA build of PyTorch"
    raise exc


def cuda_home(nvcc: str) -> Path:
    """The toolkit that an nvcc belongs to, also where the nvcc on PATH is a script that calls the real one."""
    dryrun = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    here = next(line.partition("_HERE_=")[2] for line in dryrun.stderr.splitlines() if "_HERE_=" in line)
    return Path(here.strip()).parent


# ---------------------------------------------------------------- report


def versions(toolchain: Toolchain, nvcc: str | None) -> dict[str, str]:
    found = toolchain.versions() | {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if nvcc:
        answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        found["nvcc"] = answer.strip().splitlines()[-2].rpartition(" ")[2]
    return found


def milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:,.0f}"


def with_slowest(row: Row, arch: str) -> str:
    median, slowest = milliseconds(row.warpsmith_s[arch]), milliseconds(row.slowest_s[arch])
    return median if median == slowest else f"{median} ({slowest})"


def markdown(report: Report) -> str:
    arches = list(report.rows[0].warpsmith_s) if report.rows else []
    ours = [f"Warpsmith {arch} (slowest)" for arch in arches]
    header = ["seed", "lines", *ours, "nvcc -cubin", "load_inline"]
    lines = [
        "# From text to code",
        "",
        f"- `{report.command}`, {report.measured_at}",
        f"- host: {report.host}, load average {report.load:.1f}; device: {report.device}",
        f"- {', '.join(f'{name} {version}' for name, version in report.versions.items())}",
        f"- milliseconds, median of {report.repeats} distinct texts for each specialisation of the search workloads, "
        "in brackets the slowest specialisation; nvcc and load_inline (one build) compile the first workload's; "
        f"the first build of a process takes {milliseconds(report.cold_start_s)} ms",
        "- –: not measured, or a constraint of the seed excludes the architecture",
        "",
        f"| {' | '.join(header)} |",
        f"|---|{'---:|' * (len(header) - 1)}",
    ]
    for row in report.rows:
        built = [with_slowest(row, arch) for arch in arches]
        others = [milliseconds(row.nvcc_s), milliseconds(row.load_inline_s)]
        lines.append(f"| {' | '.join([row.seed, str(row.lines), *built, *others])} |")
    for arch in arches:
        known = [row.warpsmith_s[arch] for row in report.rows if row.warpsmith_s[arch] is not None]
        lines += ["", f"Median over the seeds, {arch}: {milliseconds(statistics.median(known))} ms."] if known else []
    lines += ["", *(f"load_inline of {row.seed}: {row.load_inline_note}." for row in report.rows if row.load_inline_s)]
    return "\n".join(lines) + "\n"


def measure(options: argparse.Namespace, toolchain: Toolchain, nvcc: str | None) -> list[Row]:
    rows = []
    for seed in cuda_seeds():
        if options.only and options.only not in seed.name:
            continue
        source = seed.candidate.source
        times = {arch: warpsmith_s(toolchain, seed, arch, options.repeats) for arch in options.arch}
        row = Row(
            seed=seed.name,
            workload=seed.workload.name,
            lines=source.count("\n"),
            warpsmith_s={
                arch: statistics.median(list(itertools.chain(*found))) if found else None
                for arch, found in times.items()
            },
            slowest_s={arch: max(map(statistics.median, found), default=None) for arch, found in times.items()},
        )
        arch = next((arch for arch, seconds in row.warpsmith_s.items() if seconds is not None), None)
        if nvcc and arch and not options.skip_nvcc:
            row.nvcc_s = nvcc_s(nvcc, seed, arch, min(options.repeats, 3))
        if nvcc and arch and not options.skip_load_inline and seed.name.startswith(options.load_inline):
            row.load_inline_s, row.load_inline_note = load_inline_s(nvcc, seed, arch)
        rows.append(row)
        print(row.model_dump_json(), file=sys.stderr)
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--arch", nargs="+", default=["sm_86", "sm_90a"])
    parser.add_argument("--only", help="only seeds whose name contains this")
    parser.add_argument("--load-inline", default="attention/2", help="seeds to build with load_inline, by prefix")
    parser.add_argument("--skip-load-inline", action="store_true")
    parser.add_argument("--skip-nvcc", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    options, nvcc = arguments(), shutil.which("nvcc")
    with tempfile.TemporaryDirectory() as cache, Toolchain(Path(cache)) as toolchain:
        report = Report(
            command=f"python -m bench.build_latency {' '.join(sys.argv[1:])}".strip(),
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            host=cpu().name,
            load=os.getloadavg()[0],
            device=detect("auto").name,
            versions=versions(toolchain, nvcc),
            repeats=options.repeats,
            cold_start_s=cold_start_s(Path(cache)),
            rows=measure(options, toolchain, nvcc),
        )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "build_latency.json").write_text(json.dumps(report.model_dump(), indent=1) + "\n")
    (options.out / "build_latency.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
