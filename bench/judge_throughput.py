"""Candidates an hour, and seconds from text to verdict: this judge in Docker and locally, and the usual way.

    python -m bench.judge_throughput [--target cuda|cpu] [--task attention] [--minutes 3] [--only a,b,c,d]

The same 64 candidates, a quarter of them broken, through (a) this judge in Docker, (b) this judge locally, (c) the
usual way (usual.py) one after another, (d) the usual way with its builds in parallel on all cores. (a) and (b) judge
every workload of the task, search and held-out, beside the baselines, in repetitions of distinct sources until the
minutes are over; (c) and (d), which look at one workload, are measured on a sample, since all 64 would take hours.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from itertools import count
from pathlib import Path

from pydantic import BaseModel

from agent import tasks
from bench import inline, usual
from bench.build_latency import cuda_home
from bench.candidates import COUNT, Specimen, specimens
from sandbox import devices, launch
from sandbox.contract import Device, Judgement, Task, Workload
from sandbox.judge import Judge
from sandbox.toolchain import Toolchain

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "a": "this judge in Docker",
    "b": "this judge, locally",
    "c": "the usual way, one after another",
    "d": "the usual way, builds in parallel",
}
BUILD_TIMEOUT_S = 900.0


class Verdict(BaseModel):
    """How one candidate fared."""

    kind: str
    expected: str
    status: str
    seconds: float
    """From text to verdict."""
    stages: dict[str, float] = {}
    why: str = ""
    """Of a verdict that is not the one expected: all of it."""


class Contender(BaseModel):
    way: str
    what: str
    sandbox: str = ""
    opened_s: float = 0.0
    """Once for a task, before the first candidate: inputs, expected outputs, baselines. Not part of the rates."""
    candidates: int
    wall_s: float
    amortised_s: float
    """Wall-clock time for each candidate."""
    verdicts: list[Verdict]
    alone: list[Verdict] = []
    """Candidates judged with nothing else under way."""

    @property
    def per_hour(self) -> float:
        return 3600 / self.amortised_s


class Report(BaseModel):
    command: str
    measured_at: str
    device: str
    host: str
    load: float
    task: str
    workloads: int
    usual_workload: str
    versions: dict[str, str]
    contenders: list[Contender]


# ---------------------------------------------------------------- (a) and (b)


def this_judge(way: str, task: Task, device: Device, options: argparse.Namespace) -> tuple[Contender, dict[str, str]]:
    """Sustained: repetition after repetition until the minutes are over, then a few candidates by themselves."""
    launcher, _ = launch.choose("docker" if way == "a" else "local")
    with tempfile.TemporaryDirectory() as cache, Toolchain(Path(cache), launcher=launcher) as toolchain:
        try:
            with Judge(device, toolchain, launcher) as judge:
                started = time.perf_counter()
                judge.open(task)
                opened_s, started = time.perf_counter() - started, time.perf_counter()
                verdicts = list(_sustained(judge, task, device, options))
                wall_s = time.perf_counter() - started
                alone = list(_alone(judge, task, device, options.alone))
                versions = judge.room.versions if judge.room else {}
        finally:
            launcher.close()
    return (
        Contender(
            way=way,
            what=NAMES[way],
            sandbox=launcher.name,
            opened_s=opened_s,
            candidates=len(verdicts),
            wall_s=wall_s,
            amortised_s=wall_s / len(verdicts),
            verdicts=verdicts,
            alone=alone,
        ),
        versions,
    )


def _sustained(judge: Judge, task: Task, device: Device, options: argparse.Namespace) -> Iterator[Verdict]:
    deadline = time.perf_counter() + 60 * options.minutes
    known: dict[str, Specimen] = {}

    def stream() -> Iterator[Specimen]:
        for repeat in count() if options.repeat is None else range(options.repeat):
            for specimen in chosen(specimens(task, device, repeat), options.of):
                # A repetition that was begun is finished, so that right and broken ones keep their shares.
                known[specimen.candidate.id] = specimen
                yield specimen
            if time.perf_counter() > deadline:
                return

    for judgement in judge.judge_all(task, (specimen.candidate for specimen in stream())):
        yield _verdict(known.pop(judgement.candidate), judgement)
        _say(f"{judgement.verdict.status:13} {judgement.seconds:6.2f} s, {len(known)} under way")


def chosen(items: Sequence[Specimen], wanted: int) -> Sequence[Specimen]:
    """All of the 64, in their order, or fewer to try the benchmark out."""
    return items if wanted >= len(items) else spread(items, wanted)


def _alone(judge: Judge, task: Task, device: Device, wanted: int) -> Iterator[Verdict]:
    for specimen in spread(specimens(task, device, 999), wanted):
        yield _verdict(specimen, judge.judge(task, specimen.candidate))


def _verdict(specimen: Specimen, judgement: Judgement) -> Verdict:
    surprising = judgement.verdict.status != specimen.expected
    return Verdict(
        why=judgement.verdict.model_dump_json() if surprising else "",
        kind=specimen.kind,
        expected=specimen.expected,
        status=judgement.verdict.status,
        seconds=judgement.seconds,
        stages=judgement.stages,
    )


def spread(items: Sequence[Specimen], wanted: int) -> list[Specimen]:
    """Evenly spread over the 64, one in four of them broken, every kind of damage before any comes twice."""
    broken = [item for item in items if item.kind != "right"]
    right = [item for item in items if item.kind == "right"]
    bad = min(len(broken), max(1, wanted // 4)) if wanted > 1 else 0
    chosen = [right[i * len(right) // max(1, wanted - bad)] for i in range(wanted - bad)]
    return chosen + broken[:bad]


# ---------------------------------------------------------------- (c) and (d)


def usual_job(task: Task, specimen: Specimen, workload: Workload, device: Device, folder: Path, number: int) -> Path:
    """The file that usual.py reads."""
    candidate = specimen.candidate
    place = folder / str(number)
    place.mkdir()
    job = usual.Job(
        name=f"usual_{number}_{time.time_ns()}",
        task=task,
        workload=workload,
        source=inline.inline_source(task, candidate, workload, device),
        workspace_bytes=inline.workspace_bytes(task, candidate, workload, device),
        folder=place / "build",
    )
    file = place / "job.json"
    file.write_text(job.model_dump_json())
    return file


@cache
def toolkit() -> dict[str, str]:
    """Where load_inline finds nvcc, also where the nvcc on PATH is a script that calls the real one."""
    nvcc = shutil.which("nvcc")
    return {"CUDA_HOME": str(cuda_home(nvcc))} if nvcc else {}


def fresh_process(what: str, file: Path, jobs: int | None = None) -> tuple[usual.Outcome, float]:
    """One run of usual.py, and its wall-clock seconds; a process that dies launched badly."""
    env = {**toolkit(), **os.environ, **({"MAX_JOBS": str(jobs)} if jobs else {})}
    started = time.perf_counter()
    try:
        command = [sys.executable, "-m", "bench.usual", what, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=BUILD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return usual.Outcome(status="TimedOut"), time.perf_counter() - started
    seconds = time.perf_counter() - started
    if done.returncode or not done.stdout:
        detail = f"the process ended with status {done.returncode}: {done.stderr[-300:]}"
        return usual.Outcome(status="LaunchFailed", detail=detail), seconds
    return usual.Outcome.model_validate_json(done.stdout), seconds


def one_after_another(task: Task, device: Device, workload: Workload, sample: Sequence[Specimen]) -> Contender:
    verdicts = []
    with tempfile.TemporaryDirectory() as folder:
        for number, specimen in enumerate(sample):
            file = usual_job(task, specimen, workload, device, Path(folder), number)
            outcome, seconds = fresh_process("evaluate", file)
            verdicts.append(_usual_verdict(specimen, outcome, seconds, seconds))
            _say(f"(c) {specimen.kind}: {outcome.status} after {seconds:.1f} s {outcome.detail[-120:]!r}", end="\n")
    whole = [specimen.expected for specimen in specimens(task, device, 0)]
    return _usual("c", verdicts, sum(verdict.seconds for verdict in verdicts), weighted(verdicts, whole))


def weighted(verdicts: Sequence[Verdict], whole: Sequence[str]) -> float:
    """Mean seconds of the 64, from a sample: what does not compile is over soonest, and counts by its share.

    `whole` is what verdict each of the 64 should get.
    """
    groups = [[v.seconds for v in verdicts if (v.expected == "BuildFailed") is failed] for failed in (True, False)]
    failing = sum(expected == "BuildFailed" for expected in whole) / len(whole)
    shares = [failing, 1 - failing]
    known = [(share, statistics.fmean(group)) for share, group in zip(shares, groups, strict=True) if group]
    return sum(share * mean for share, mean in known) / sum(share for share, _ in known)


def in_parallel(task: Task, device: Device, workload: Workload, sample: Sequence[Specimen]) -> Contender:
    """All builds at once, one for each core, then one evaluation after another: the GPU is one."""
    with tempfile.TemporaryDirectory() as folder:
        files = [usual_job(task, s, workload, device, Path(folder), i) for i, s in enumerate(sample)]
        started = time.perf_counter()
        with ThreadPoolExecutor(devices.usable_cores()) as pool:
            built = list(pool.map(lambda file: fresh_process("build", file, jobs=1), files))
        built_s = time.perf_counter() - started
        _say(f"(d) {len(files)} builds in {built_s:.1f} s", end="\n")
        verdicts = []
        for specimen, file, (outcome, build_s) in zip(sample, files, built, strict=True):
            seconds = 0.0
            if outcome.status == "Built":
                outcome, seconds = fresh_process("evaluate", file)
            verdicts.append(_usual_verdict(specimen, outcome, build_s + seconds, build_s + outcome.build_s))
            _say(f"(d) {specimen.kind}: {outcome.status} after {build_s:.1f} + {seconds:.1f} s", end="\n")
        return _usual("d", verdicts, time.perf_counter() - started)


def _usual_verdict(specimen: Specimen, outcome: usual.Outcome, seconds: float, build_s: float) -> Verdict:
    stages = {"build and load": outcome.build_s or build_s, "check": outcome.check_s, "time": outcome.time_s}
    stages["process, import torch"] = max(0.0, seconds - sum(stages.values()))
    return Verdict(
        kind=specimen.kind, expected=specimen.expected, status=outcome.status, seconds=seconds, stages=stages
    )


def _usual(way: str, verdicts: list[Verdict], wall_s: float, amortised_s: float | None = None) -> Contender:
    return Contender(
        way=way,
        what=NAMES[way],
        candidates=len(verdicts),
        wall_s=wall_s,
        amortised_s=amortised_s or wall_s / len(verdicts),
        verdicts=verdicts,
    )


# ---------------------------------------------------------------- report


def quantile(values: Iterable[float], share: float) -> float | None:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _errors(verdicts: Sequence[Verdict]) -> list[float]:
    return [verdict.seconds for verdict in verdicts if verdict.expected == "BuildFailed"]


def row(contender: Contender) -> str:
    taken = [verdict.seconds for verdict in contender.verdicts]
    alone = [verdict.seconds for verdict in contender.alone]
    cells = [
        f"({contender.way}) {contender.what}",
        str(contender.candidates),
        f"{contender.per_hour:,.0f}",
        seconds(contender.amortised_s),
        *(seconds(quantile(taken, share)) for share in (0.5, 0.95)),
        seconds(quantile(_errors(contender.verdicts), 0.5)),
        seconds(quantile(alone, 0.5)),
        seconds(quantile(_errors(contender.alone), 0.5)),
    ]
    return f"| {' | '.join(cells)} |"


def stages_of(contender: Contender) -> str:
    """Mean seconds of each stage over the candidates that reached it, and its share of all time spent."""
    names = list(dict.fromkeys(name for verdict in contender.verdicts for name in verdict.stages))
    total = sum(sum(verdict.stages.values()) for verdict in contender.verdicts) or 1.0
    parts = []
    for name in names:
        found = [verdict.stages[name] for verdict in contender.verdicts if name in verdict.stages]
        parts.append(f"{name} {seconds(statistics.fmean(found))} s ({sum(found) / total:.0%})")
    return ", ".join(parts) or "–"


def surprises(contender: Contender) -> str:
    """Verdicts that are not what the candidate deserves."""
    wrong = Counter((v.kind, v.expected, v.status) for v in contender.verdicts if v.status != v.expected)
    found = [f"{n} × {kind}: {status}, not {expected}" for (kind, expected, status), n in wrong.most_common()]
    return "; ".join([*found, *(v.why for v in contender.verdicts if v.why)]) or "none"


def ratios(report: Report) -> Iterator[str]:
    ways = {contender.way: contender for contender in report.contenders}
    for ours in ("a", "b"):
        for theirs in ("c", "d"):
            if ours in ways and theirs in ways:
                times = ways[theirs].amortised_s / ways[ours].amortised_s
                yield f"- ({ours}) judges {times:.0f} times as many candidates an hour as ({theirs})"


def markdown(report: Report) -> str:
    lines = [
        "# Judging: candidates an hour",
        "",
        f"- `{report.command}`, {report.measured_at}",
        f"- {report.device}; host {report.host}, load average {report.load:.1f} before",
        f"- {', '.join(f'{name} {version}' for name, version in report.versions.items())}",
        f"- task {report.task}: (a) and (b) judge all {report.workloads} workloads, search and held-out, beside the "
        f"baselines; (c) and (d) look at {report.usual_workload} alone, and at a sample of the "
        "candidates, in which (c) weighs what does not compile by its share of the 64",
        "- seconds from text to verdict: under way together with others, and alone",
        "",
        "| way | candidates | an hour | s each | p50 s | p95 s | p50, compile errors | p50 alone | … compile errors |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(row(contender) for contender in report.contenders),
        "",
        *ratios(report),
        "",
        "Where the time goes, mean over the candidates that reach a stage (stages of different candidates overlap):",
        "",
        *(f"- ({contender.way}) {stages_of(contender)}" for contender in report.contenders),
        "",
        "Verdicts that are not what the candidate deserves:",
        "",
        *(f"- ({contender.way}) {surprises(contender)}" for contender in report.contenders),
    ]
    opened = [f"({c.way}) {c.opened_s:.1f} s" for c in report.contenders if c.opened_s]
    lines += ["", f"Once for the task, before the first candidate: {', '.join(opened)}."] if opened else []
    return "\n".join(lines) + "\n"


def slug(device: Device) -> str:
    """`h100` for NVIDIA H100 80GB HBM3, `cpu` for any CPU."""
    if device.target == "cpu":
        return "cpu"
    words = device.name.lower().replace("nvidia", "").split()
    return words[0] if words else "gpu"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--task", default="attention")
    parser.add_argument("--only", default="a,b,c,d")
    parser.add_argument("--minutes", type=float, default=3.0, help="for (a) and (b) each, to the end of a repetition")
    parser.add_argument("--repeat", type=int, help="repetitions of the 64 instead of minutes")
    parser.add_argument("--alone", type=int, default=12, help="candidates that (a) and (b) judge by themselves")
    parser.add_argument("--sample", type=int, default=4, help="candidates for (c)")
    parser.add_argument("--parallel-sample", type=int, default=16, help="candidates for (d)")
    parser.add_argument("--of", type=int, default=COUNT, help="fewer than the 64 for (a) and (b), for a first try")
    parser.add_argument("--usual-workload", type=int, default=0, help="which search workload (c) and (d) look at")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def measure(options: argparse.Namespace, task: Task, device: Device) -> Iterator[tuple[Contender, dict[str, str]]]:
    workload = task.workloads[options.usual_workload]
    for way in options.only.split(","):
        if way in ("a", "b"):
            yield this_judge(way, task, device, options)
        elif way == "c":
            sample = spread(specimens(task, device, 0), options.sample)
            yield one_after_another(task, device, workload, sample), {}
        else:
            yield in_parallel(task, device, workload, spread(specimens(task, device, 0), options.parallel_sample)), {}


def write(report: Report, name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(report.model_dump_json(indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown(report))


def main() -> None:
    options = arguments()
    device = devices.detect(options.target)
    task = tasks.load(options.task, device.target)
    report = Report(
        command=f"python -m bench.judge_throughput {' '.join(sys.argv[1:])}".strip(),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        device=device.name,
        host=devices.cpu().name,
        load=os.getloadavg()[0],
        task=task.name,
        workloads=len(task.workloads) + len(task.held_out),
        usual_workload=task.workloads[options.usual_workload].name,
        versions={},
        contenders=[],
    )
    for contender, versions in measure(options, task, device):
        report.contenders.append(contender)
        report.versions.update(versions)
        _say(row(contender), end="\n")
        # After each: the slow ones come last, and a run that is stopped there keeps what it measured.
        write(report, f"judge_throughput_{slug(device)}", options.out)
    print(markdown(report))


def _say(text: str, end: str = "\r") -> None:
    print(f"{text:100}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
