"""A decoder-only transformer end to end, prefill and decode: an exported package against plain PyTorch.

    python -m bench.transformer --package warpsmith_kernels [--path FOLDER] [--device auto|cpu|cuda] [--phase decode]

24 layers, 2048 wide, grouped-query heads, random weights, contexts of 2k and 8k; much smaller on a CPU. The contenders
(bench/decoders.py) share their weights, must agree before anything is timed, and take turns in random order in every
round. Medians over rounds with bootstrap intervals; one round is one prefill, or `--steps` decode steps after a full
context. Written after every row; with --append the same command goes on where it stopped. Not covered: sampling,
several GPUs, the quality of text.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import torch
import torch._dynamo
from pydantic import BaseModel
from torch import Tensor

from bench.decoders import KINDS, Caches, Contender, Preallocated, Shape, contenders

RESULTS = Path(__file__).parent / "results"
OURS = ("ours", "graph", "ours-compile")
TOLERANCES = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest relative L2 difference of logits from eager SDPA in the same dtype, after all layers."""
DRAWS = 2000
SIZES = {
    "cuda": {
        "layers": 24, "d_model": 2048, "heads": 16, "kv_heads": 4, "hidden": 5632, "vocabulary": 32000,
        "contexts": [2048, 8192], "batches": [1, 8], "steps": 32, "rounds": 15, "dtype": "float16",
        "contenders": ["eager", "sdpa", "compile", "ours", "graph", "ours-compile"],
    },
    "cpu": {
        "layers": 2, "d_model": 1024, "heads": 8, "kv_heads": 2, "hidden": 2048, "vocabulary": 1000,
        "contexts": [512], "batches": [1], "steps": 8, "rounds": 9, "dtype": "float32",
        "contenders": ["eager", "sdpa", "compile", "ours"],
    },
}  # fmt: skip


class Interval(BaseModel):
    median: float
    low: float
    high: float


class Result(BaseModel):
    """One contender in one row."""

    contender: str
    rounds_s: list[float] = []
    tokens_per_s: Interval | None = None
    error: float | None = None
    """Relative L2 difference of its logits from eager SDPA."""
    failed: str = ""


class Row(BaseModel):
    phase: str
    batch: int
    context: int
    steps: int
    """Decode steps in a round; 1 for a prefill."""
    served: list[str]
    """Operators with a kernel that was proven for these shapes."""
    results: list[Result]

    @property
    def key(self) -> tuple[str, int, int]:
        return self.phase, self.batch, self.context


class Report(BaseModel):
    command: str
    measured_at: str
    device: str
    host: str
    versions: dict[str, str]
    model: dict[str, int | str]
    notes: list[str] = []
    rows: list[Row] = []


# ---------------------------------------------------------------- measuring


def rows(options: argparse.Namespace, package: ModuleType, report: Report) -> Iterator[Row]:
    """Until all are measured or the time is up."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    deadline = time.perf_counter() + 60 * options.minutes
    made = contenders(package, shape_of(options), options.contenders, device, dtype)
    # Fills every cache, and is what all are held against.
    standard = made[options.contenders.index("sdpa")]
    assert isinstance(standard, Preallocated)
    done = {row.key for row in report.rows}
    for phase in options.phase:
        for batch in options.batches if phase == "decode" else options.prefill_batches:
            for context in options.contexts:
                if (phase, batch, context) in done:
                    continue
                if time.perf_counter() > deadline:
                    report.notes.append(f"the time was up before {phase} B{batch} {context}")
                    continue
                yield measure(options, package, made, standard, phase, batch, context)
                for contender in made:
                    contender.release()
                forget(device)


def measure(
    options: argparse.Namespace,
    package: ModuleType,
    made: list[Contender],
    standard: Preallocated,
    phase: str,
    batch: int,
    context: int,
) -> Row:
    """One row: prepare, compare, then rounds in which all that agree take turns."""
    steps = options.steps if phase == "decode" else 1
    room = with_room(context, options.steps)
    device = torch.device(options.device)
    rng = torch.Generator().manual_seed(batch * context)
    tokens = torch.randint(options.vocabulary, (batch, context), generator=rng).to(device)
    with torch.inference_mode():
        caches = filled(standard, tokens, room) if phase == "decode" else []
        calls = {c.name: call(c, phase, tokens, room, steps, caches) for c in made}
        wanted = calls[standard.name]()
        results = [compared(c.name, calls[c.name], wanted) for c in made]
        ready = [r for r in results if not r.failed]
        for _ in range(options.warmup):
            for result in ready:
                timed(calls[result.contender], device)
        for number in range(options.rounds):
            for result in random.Random(number).sample(ready, len(ready)):
                result.rounds_s.append(timed(calls[result.contender], device))
    for result in ready:
        result.tokens_per_s = throughput(result.rounds_s, batch * (steps if phase == "decode" else context))
    served = serves(package, options, phase, batch, context)
    return Row(phase=phase, batch=batch, context=context, steps=steps, served=served, results=results)


def filled(standard: Preallocated, tokens: Tensor, room: int) -> Caches:
    """Caches after a prefill, one row of the batch at a time, since the contenders need the memory."""
    parts = []
    for row in tokens.split(1):
        standard.prepare(1, room)
        standard.prefill(row)
        parts.append(standard.caches(tokens.shape[1]))
    return [(torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in zip(*parts, strict=True)]


def call(
    contender: Contender, phase: str, tokens: Tensor, room: int, steps: int, caches: Caches
) -> Callable[[], Tensor]:
    """What a round does; the first one prepares."""
    prepared = False

    def prepare() -> None:
        nonlocal prepared
        if not prepared:
            contender.prepare(tokens.shape[0], room)
            if phase == "decode":
                contender.fill(caches)
            prepared = True

    def decode() -> Tensor:
        prepare()
        contender.rewind()
        return contender.decode(tokens[:, -1:], tokens.shape[1], steps)

    def prefill() -> Tensor:
        prepare()
        return contender.prefill(tokens)

    return decode if phase == "decode" else prefill


def compared(name: str, run: Callable[[], Tensor], wanted: Tensor) -> Result:
    """Its difference from what is wanted; what fails or disagrees is not timed."""
    say(f"{name}: first call")
    try:
        got = run()
        error = float((got.double() - wanted.double()).norm() / wanted.double().norm())
    except RuntimeError as exc:  # out of memory, too
        return Result(contender=name, failed=f"{type(exc).__name__}: {exc}".partition("\n")[0][:200])
    if error <= TOLERANCES[wanted.dtype]:
        return Result(contender=name, error=error)
    return Result(contender=name, error=error, failed=f"disagrees with eager SDPA: off by {error:.2g}")


def timed(run: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def serves(package: ModuleType, options: argparse.Namespace, phase: str, batch: int, context: int) -> list[str]:
    """Which operators have a kernel for the shapes of a row."""
    like = torch.empty(0, dtype=getattr(torch, options.dtype), device=options.device)
    tokens = batch * (context if phase == "prefill" else 1)
    K, N, H, Hkv = options.d_model, options.hidden, options.heads, options.kv_heads
    D, room = K // H, with_room(context, options.steps)
    sizes = {"layernorm": {"N": tokens, "D": K}, "mlp": {"M": tokens, "K": K, "N": N}}
    if phase == "prefill":
        sizes["attention"] = {"B": batch, "H": H, "S": context, "D": D, "causal": 1}
    else:
        sizes["kv_cache"] = {"B": batch, "H": H, "Hkv": Hkv, "L": room, "D": D}
    return [task for task, axes in sorted(sizes.items()) if package.regions.serves(task, like, **axes)]


# ---------------------------------------------------------------- statistics


def bootstrap(values: list[float]) -> Interval:
    """The median with a 95 % percentile interval over rounds drawn again."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(DRAWS))
    low, high = medians[int(0.025 * DRAWS)], medians[int(0.975 * DRAWS) - 1]
    return Interval(median=statistics.median(values), low=low, high=high)


def throughput(rounds_s: list[float], tokens: int) -> Interval:
    return bootstrap([tokens / seconds for seconds in rounds_s])


def speedup(row: Row, ours: Result, theirs: Result) -> Interval:
    """Their time over ours, paired by round."""
    logs = [math.log(b / a) for a, b in zip(ours.rounds_s, theirs.rounds_s, strict=True)]
    found = bootstrap(logs)
    return Interval(median=math.exp(found.median), low=math.exp(found.low), high=math.exp(found.high))


# ---------------------------------------------------------------- report


def markdown(report: Report) -> str:
    names = {KINDS[kind].name: KINDS[kind].what for kind in KINDS}
    shown = [name for name in names if any(r.contender == name for row in report.rows for r in row.results)]
    model = ", ".join(f"{name} {value}" for name, value in report.model.items())
    lines = [
        "# A transformer end to end",
        "",
        f"- `{report.command}`, {report.measured_at}",
        f"- {report.device}; host {report.host}",
        f"- {', '.join(f'{name} {version}' for name, version in report.versions.items())}",
        f"- {model}; random weights, the same for all",
        *(f"- {name}: {names[name]}" for name in shown),
        "- tokens per second: median over rounds (95 % bootstrap interval); decode rounds begin after the context",
        "- kernels: operators that have one proven for the row's shapes; the others are PyTorch's",
        *(f"- {note}" for note in report.notes),
        "",
    ]
    for phase in ("prefill", "decode"):
        found = [row for row in report.rows if row.phase == phase]
        if found:
            lines += [f"## {phase.capitalize()}, tokens per second", "", *table(found, shown), ""]
    ours = [name for name in shown if name in [KINDS[kind].name for kind in OURS]]
    lines += ["## Ours over the others", "", "Times as fast, paired by round; below 1 the other is faster.", ""]
    for name in ours:
        lines += [f"### {name}", "", *ratios(report.rows, name, [other for other in shown if other not in ours]), ""]
    return "\n".join(lines).rstrip() + "\n"


def table(found: list[Row], names: list[str]) -> Iterator[str]:
    yield f"| batch | context | {' | '.join(names)} | kernels |"
    yield f"|---:|---:|{'---:|' * len(names)}---|"
    for row in found:
        results = {result.contender: result for result in row.results}
        cells = [rate(results.get(name)) for name in names]
        yield f"| {row.batch} | {row.context} | {' | '.join(cells)} | {', '.join(row.served) or 'none'} |"


def rate(result: Result | None) -> str:
    if result is None:
        return "–"
    if result.tokens_per_s is None:
        return f"failed: {result.failed}"
    found = result.tokens_per_s
    return f"{found.median:,.0f} ({found.low:,.0f}–{found.high:,.0f})"


def ratios(found: list[Row], name: str, others: list[str]) -> Iterator[str]:
    yield f"| phase | batch | context | {' | '.join(others)} |"
    yield f"|---|---:|---:|{'---:|' * len(others)}"
    for row in found:
        results = {result.contender: result for result in row.results if result.rounds_s}
        cells = [
            ratio(speedup(row, results[name], results[other])) if name in results and other in results else "–"
            for other in others
        ]
        yield f"| {row.phase} | {row.batch} | {row.context} | {' | '.join(cells)} |"


def ratio(found: Interval) -> str:
    return f"{found.median:.2f} ({found.low:.2f}–{found.high:.2f})"


def write(report: Report, name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(report.model_dump_json(indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown(report))


def earlier(file: Path, report: Report) -> list[Row]:
    """Rows of an earlier run of the same model on the same device."""
    if not file.exists():
        return []
    known = Report.model_validate_json(file.read_text())
    if (known.device, known.model, known.versions) != (report.device, report.model, report.versions):
        sys.exit(f"{file} is of another model, device or PyTorch; leave out --append")
    report.command = f"{known.command} && {report.command}"
    return known.rows


def slug(device: str) -> str:
    """`h100` for NVIDIA H100 80GB HBM3, `cpu` for any CPU."""
    return "cpu" if device == "cpu" else torch.cuda.get_device_name().lower().replace("nvidia", "").split()[0]


def shape_of(options: argparse.Namespace) -> Shape:
    return Shape(
        layers=options.layers,
        d_model=options.d_model,
        heads=options.heads,
        kv_heads=options.kv_heads,
        d_hidden=options.hidden,
        vocabulary=options.vocabulary,
        context=with_room(max(options.contexts), options.steps),
    )


def with_room(context: int, steps: int) -> int:
    """Positions to allocate: the context and the steps after it."""
    return context + 64 * -(-steps // 64)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="warpsmith_kernels", help="name of the exported package")
    parser.add_argument("--path", type=Path, help="folder it lies in, where it is not installed")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--phase", choices=["prefill", "decode"], action="append", help="both by default")
    parser.add_argument("--contenders", nargs="+", choices=list(KINDS), help="all that the device can run by default")
    for name in ("layers", "d-model", "heads", "kv-heads", "hidden", "vocabulary", "steps", "rounds"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--contexts", type=int, nargs="+")
    parser.add_argument("--batches", type=int, nargs="+", help="for decode")
    parser.add_argument("--prefill-batches", type=int, nargs="+", default=[1])
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--warmup", type=int, default=2, help="rounds before those that count")
    parser.add_argument("--minutes", type=float, default=5.5, help="no row is begun later")
    parser.add_argument("--append", action="store_true", help="keep the rows of earlier runs, measure what is missing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, value in SIZES[options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.phase = options.phase or ["decode", "prefill"]
    if "sdpa" not in options.contenders:
        options.contenders.insert(0, "sdpa")
    return options


def load(options: argparse.Namespace) -> ModuleType:
    if options.path:
        sys.path.insert(0, str(options.path))
    try:
        package = importlib.import_module(options.package)
        for name in ("layers", "plain", "regions"):
            importlib.import_module(f"{options.package}.{name}")
    except ImportError as exc:
        sys.exit(f"{options.package} cannot be imported: {exc}")
    return package


def main() -> None:
    options = arguments()
    package = load(options)
    torch._dynamo.config.recompile_limit = 64  # one for every row and compiled contender
    cuda = options.device == "cuda"
    model = {key: getattr(options, key) for key in ("layers", "d_model", "heads", "kv_heads", "hidden", "dtype")}
    report = Report(
        command=f"python -m bench.transformer {' '.join(sys.argv[1:])}".strip(),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        device=torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        host=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        versions={"torch": torch.__version__, options.package: package.__version__},
        model=model,
    )
    name = f"transformer_{slug(options.device)}"
    report.rows = earlier(options.out / f"{name}.json", report) if options.append else []
    for row in rows(options, package, report):
        report.rows.append(row)
        # After each: a run that is stopped keeps what it measured.
        write(report, name, options.out)
        say(f"{row.phase} B{row.batch} {row.context}: " + ", ".join(f"{r.contender} {rate(r)}" for r in row.results))
    write(report, name, options.out)
    print(markdown(report))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
