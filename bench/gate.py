"""The promotion gate against itself: how often it calls a kernel faster than itself, and whether it finds a true 3 %.

    python -m bench.gate --simulate                      # the statistics alone, against models of noise
    python -m bench.gate --target cpu|cuda [--trials 200]   # the judge's own duels, on this machine

A trial is one `Judge.duel`: interleaved rounds, a t interval over them, and a gate that the whole interval must
exceed. The slow kernel is the same kernel doing a few per cent of its work twice; how much slower it truly is comes
from one long measurement that no trial uses. Not covered: drift that lasts longer than a whole duel.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics as plain
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from bench.candidates import paced
from sandbox import statistics
from sandbox.contract import Candidate, Device, Interval, Task

if TYPE_CHECKING:
    from sandbox.judge import Judge

RESULTS = Path(__file__).parent / "results"
LEAST_GAIN = 0.02
"""The gate never opens for less."""
AXES = {"cpu": {"N": 512, "D": 1024}, "cuda": {"N": 8192, "D": 4096}}
"""Of the one workload: what is tested is the gate, not the mean over workloads."""
TRUE_GAIN = 0.03
CALIBRATIONS = 8
"""Most short duels that look for the share to do twice."""
SIMULATED_TRIALS = 4000


class Row(BaseModel):
    """One experiment: so many duels between the same two kernels."""

    what: str
    true_ratio: float
    """Champion's time over the challenger's: above 1 the challenger is truly faster."""
    rounds: float
    """Mean of the trials: a duel that its first rounds leave open goes on."""
    trials: int
    declared: int
    """How often the challenger was declared faster."""
    mean_ratio: float
    spread: float
    """Standard deviation of the trials' ratios."""

    @property
    def rate(self) -> float:
        return self.declared / self.trials


class Report(BaseModel):
    command: str
    measured_at: str
    device: str
    load: float
    """Load average over the minute before."""
    notes: list[str]
    rows: list[Row]


# ---------------------------------------------------------------- simulation


@dataclass(frozen=True)
class Noise:
    """How one block's time strays from the truth, as a logarithm; drawn anew for each kernel and round."""

    name: str
    draw: Callable[[random.Random], float]
    shared: float = 0.0
    """Standard deviation of what hits both kernels of a round alike, such as a clock that wanders."""


NOISES = (
    Noise("normal, 0.5 %", lambda rng: rng.gauss(0, 0.005)),
    Noise("normal, 1 %", lambda rng: rng.gauss(0, 0.01)),
    Noise("normal, 2 %", lambda rng: rng.gauss(0, 0.02)),
    Noise("normal, 1 %, and 5 % that hits both", lambda rng: rng.gauss(0, 0.01), shared=0.05),
    Noise("skewed: exponential, 1 %", lambda rng: rng.expovariate(100)),
    Noise("1 %, one block in twenty 30 % late", lambda rng: rng.gauss(0, 0.01) + (0.26 if rng.random() < 0.05 else 0)),
    Noise("heavy tails: Student's t with 2 degrees, 0.5 %", lambda rng: 0.005 * student(rng, 2)),
    Noise("normal, 5 %", lambda rng: rng.gauss(0, 0.05)),
)


def student(rng: random.Random, freedom: int) -> float:
    squares = sum(rng.gauss(0, 1) ** 2 for _ in range(freedom))
    return rng.gauss(0, 1) / math.sqrt(squares / freedom)


def simulated_round(rng: random.Random, noise: Noise, ratio: float) -> tuple[float, float]:
    """One ABBA round: the log ratio of champion over challenger, and how far both strayed from themselves."""
    common = rng.gauss(0, noise.shared)  # cancels in the ratio, as it does in an interleaved round
    champion = [noise.draw(rng) + common for _ in range(2)]
    challenger = [noise.draw(rng) + common for _ in range(2)]
    strayed = (champion[0] - champion[1] + challenger[0] - challenger[1]) / 2
    return math.log(ratio) + plain.fmean(champion) - plain.fmean(challenger), strayed * rng.choice((-1, 1))


def simulate(noise: Noise, ratio: float, rounds: int, trials: int, seed: int) -> Row:
    """Duels whose noise is known, through the judge's own intervals and gate."""
    rng = random.Random(seed)
    declared, taken, ratios = 0, 0, []
    for _ in range(trials):
        pairs = [simulated_round(rng, noise, ratio) for _ in range(rounds)]
        if statistics.open_question(*zip(*pairs, strict=True)):
            pairs += [simulated_round(rng, noise, ratio) for _ in range(statistics.MORE_ROUNDS * rounds)]
        found, strayed = zip(*pairs, strict=True)
        interval = statistics.trimmed_interval(found)
        declared += interval.low > statistics.gate_of(statistics.trimmed_interval(strayed))
        taken += len(found)
        ratios.append(interval.ratio)
    return _row(noise.name, ratio, taken, declared, ratios)


def simulation(rounds: int, trials: int) -> Iterator[Row]:
    for ratio in (1.0, 1 + LEAST_GAIN, 1 + TRUE_GAIN, 1.05, 1.10):
        for seed, noise in enumerate(NOISES):
            yield simulate(noise, ratio, rounds, trials, seed)


# ---------------------------------------------------------------- the judge's own duels


def duels(what: str, duel: Callable[[], Any], true_ratio: float, trials: int, minutes: float) -> Row:
    declared, taken, ratios, deadline = 0, 0, [], time.perf_counter() + 60 * minutes
    for trial in range(trials):
        if ratios and time.perf_counter() > deadline:
            break
        found = duel()
        declared += found.faster
        taken += found.rounds
        ratios.append(found.interval.ratio)
        _say(f"{what}: {trial + 1}/{trials}, declared faster {declared} times, mean ratio {plain.fmean(ratios):.4f}")
    _say("", end="\n")
    return _row(what, true_ratio, taken, declared, ratios)


def _row(what: str, true_ratio: float, taken: int, declared: int, ratios: list[float]) -> Row:
    spread = plain.stdev(ratios) if len(ratios) > 1 else 0.0
    return Row(
        what=what,
        true_ratio=true_ratio,
        rounds=taken / len(ratios),
        trials=len(ratios),
        declared=declared,
        mean_ratio=plain.fmean(ratios),
        spread=spread,
    )


def measure(options: argparse.Namespace, device: Device) -> None:
    """A kernel against itself, then against itself with a few per cent more work."""
    from agent import tasks
    from sandbox import launch
    from sandbox.judge import Judge
    from sandbox.toolchain import Toolchain

    loaded = tasks.load("layernorm", device.target)
    workload = loaded.workloads[0].model_copy(update={"axes": AXES[device.target]})
    task = loaded.model_copy(update={"workloads": (workload,), "held_out": ()})
    launcher, why = launch.choose(options.sandbox, device)
    notes = [f"layernorm, workload {task.workloads[0].name}; sandbox: {launcher.name} ({why})"]
    with tempfile.TemporaryDirectory() as cache, Toolchain(Path(cache), launcher=launcher) as toolchain:
        try:
            with Judge(device, toolchain, launcher) as judge:
                rows: list[Row] = []
                for row in experiments(judge, task, options, notes):
                    # After each: a run that is stopped keeps what it measured.
                    rows.append(row)
                    write(report(device.name, rows, notes), f"gate_{device.target}", options.out)
        finally:
            launcher.close()


def experiments(judge: Judge, task: Task, options: argparse.Namespace, notes: list[str]) -> Iterator[Row]:
    def experiment(what: str, challenger: Candidate, champion: Candidate, true: float, trials: int) -> Row:
        def duel() -> Any:
            return judge.duel(task, challenger, champion, rounds=options.rounds, processes=options.processes)

        return duels(what, duel, true, trials, options.minutes)

    fast = paced(task, 0.0)
    yield experiment("a kernel against itself", fast, fast, 1.0, options.trials)
    extra, true = calibrated(judge, task, fast, options.calibration)
    low, high = (100 * (bound - 1) for bound in (true.low, true.high))
    what = "rows" if task.target == "cpu" else "columns"
    notes.append(
        f"the slow kernel does {extra:.1%} of its {what} twice, which takes {100 * (true.ratio - 1):.2f} % more time "
        f"(95 %: {low:.2f}–{high:.2f}; {options.calibration} rounds that no trial uses)"
    )
    slow = paced(task, extra)
    yield experiment("against itself, slowed", fast, slow, true.ratio, options.power_trials)
    yield experiment("slowed, against the fast one", slow, fast, 1 / true.ratio, options.power_trials)


def calibrated(judge: Judge, task: Task, fast: Candidate, rounds: int) -> tuple[float, Interval]:
    """The share to do twice that costs TRUE_GAIN, closed in on by short duels, and what it costs by a long one.

    What is read a second time comes from a cache and may hide behind the rest, so the cost is no multiple of the share.
    """

    def gain(extra: float) -> float:
        found = judge.duel(task, fast, paced(task, extra), rounds=max(12, rounds // 3)).interval.ratio - 1
        _say(f"calibration: {extra:.2%} twice, a gain of {found:.2%}", end="\n")
        return found

    extra = closed_in(gain, TRUE_GAIN)
    return extra, judge.duel(task, fast, paced(task, extra), rounds=rounds).interval


def closed_in(gain: Callable[[float], float], wanted: float) -> float:
    """The share whose gain is within a twentieth of what is wanted, or comes next to it in CALIBRATIONS tries."""
    low, high, extra = (0.0, 0.0), (1.0, math.inf), wanted
    tried: list[tuple[float, float]] = []
    for _ in range(CALIBRATIONS):
        found = gain(extra)
        tried.append((abs(found - wanted), extra))
        if abs(found - wanted) < wanted / 20:
            break
        low, high = ((extra, found), high) if found < wanted else (low, (extra, found))
        if math.isinf(high[1]):
            extra = min(1.0, 2 * extra)
        else:
            # By the line through both, but never so near to one of them that the next try teaches nothing.
            along = (wanted - low[1]) / max(high[1] - low[1], wanted / 20)
            extra = low[0] + min(0.8, max(0.2, along)) * (high[0] - low[0])
    return min(tried)[1]


# ---------------------------------------------------------------- several judges at once


def side_by_side(options: argparse.Namespace) -> None:
    """As many judges as asked for, each on cores of its own, and their trials together in one table."""
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // options.side_by_side
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(options.side_by_side)]
    if options.target == "cuda" and len(gpus) < options.side_by_side:
        sys.exit(f"--side-by-side {options.side_by_side}: wanted as many GPUs, CUDA_VISIBLE_DEVICES has {visible}")
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / str(i) for i in range(options.side_by_side)]
        judges = [
            _judge_on(cores[i * share : (i + 1) * share], gpus[i] if options.target == "cuda" else "", options, out)
            for i, out in enumerate(outs)
        ]
        for judge in judges:
            judge.wait()
        files = [out / f"gate_{options.target}.json" for out in outs]
        reports = [Report.model_validate_json(file.read_text()) for file in files if file.exists()]
    groups = [[r for report in reports for r in report.rows if r.what == row.what] for row in reports[0].rows]
    notes = list(dict.fromkeys(note for report in reports for note in report.notes))
    each = f"{share} cores" + (" and a GPU" if options.target == "cuda" else "")
    notes.append(f"{len(reports)} judges side by side, each on {each} of its own")
    write(report(reports[0].device, [together(rows) for rows in groups], notes), f"gate_{options.target}", options.out)


def _judge_on(cores: list[int], gpu: str, options: argparse.Namespace, out: Path) -> subprocess.Popen[bytes]:
    each = [f"--trials={-(-options.trials // options.side_by_side)}"]
    each += [f"--power-trials={-(-options.power_trials // options.side_by_side)}", f"--minutes={options.minutes}"]
    command = [sys.executable, "-m", "bench.gate", f"--target={options.target}", f"--out={out}", *each]
    # Where it may run is inherited by everything it starts, and is what it counts as its cores.
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    command += [f"--sandbox={options.sandbox}", f"--calibration={options.calibration}"]
    try:
        return subprocess.Popen(command, env=os.environ | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}))
    finally:
        os.sched_setaffinity(0, before)


def together(rows: list[Row]) -> Row:
    """The trials of several judges as if one had run them all; the true ratio is the mean of what each calibrated."""
    trials = sum(row.trials for row in rows)
    mean = sum(row.trials * row.mean_ratio for row in rows) / trials
    squares = sum((row.trials - 1) * row.spread**2 + row.trials * (row.mean_ratio - mean) ** 2 for row in rows)
    return rows[0].model_copy(
        update={
            "true_ratio": sum(row.trials * row.true_ratio for row in rows) / trials,
            "rounds": sum(row.trials * row.rounds for row in rows) / trials,
            "trials": trials,
            "declared": sum(row.declared for row in rows),
            "mean_ratio": mean,
            "spread": math.sqrt(squares / (trials - 1)) if trials > 1 else 0.0,
        }
    )


# ---------------------------------------------------------------- report


def report(device: str, rows: list[Row], notes: list[str]) -> Report:
    return Report(
        command=f"python -m bench.gate {' '.join(sys.argv[1:])}".strip(),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        device=device,
        load=os.getloadavg()[0],
        notes=notes,
        rows=rows,
    )


def markdown(found: Report) -> str:
    lines = [
        "# The promotion gate against itself",
        "",
        f"- `{found.command}`, {found.measured_at}; {found.device}, load average {found.load:.1f}",
        *(f"- {note}" for note in found.notes),
        "- gate: the lower bound of the 95 % t interval over rounds (trimmed by 20 % at both ends) "
        f"exceeds 1 + max({LEAST_GAIN:.0%}, A/A spread)",
        "- true ratio: champion's time over the challenger's; above 1 the challenger is faster",
        "",
        "| duel | true ratio | rounds | trials | declared faster | share | mean ratio | spread of ratios |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found.rows:
        cells = [
            row.what,
            f"{row.true_ratio:.4f}",
            f"{row.rounds:.0f}",
            str(row.trials),
            str(row.declared),
            f"{row.rate:.1%}",
            f"{row.mean_ratio:.4f}",
            f"{row.spread:.2%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(found: Report, name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(found.model_dump_json(indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown(found))
    print(markdown(found), flush=True)


def _say(text: str, end: str = "\r") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulate", action="store_true", help="noise from models, no kernel at all")
    parser.add_argument("--target", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--sandbox", choices=["auto", "docker", "local"], default="auto")
    parser.add_argument("--rounds", type=int, help="of each duel; the judge's own number by default")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--power-trials", type=int, default=50)
    parser.add_argument(
        "--processes", type=int, help="fresh workers a duel is spread over; the judge's choice by default"
    )
    parser.add_argument("--side-by-side", type=int, default=1, help="judges at once, on cores, and GPUs, of their own")
    parser.add_argument("--minutes", type=float, default=math.inf, help="most minutes for each row of the table")
    parser.add_argument("--calibration", type=int, default=100, help="rounds of the long measurement")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.side_by_side > 1 and options.target == "auto":
        parser.error("--side-by-side wants --target cpu or cuda")
    return options


def main() -> None:
    options = arguments()
    if options.simulate:
        trials = options.trials if options.trials != 200 else SIMULATED_TRIALS
        start = time.perf_counter()
        rows = list(simulation(options.rounds or 12, trials))
        notes = [f"simulated noise, two blocks for each kernel and round; {time.perf_counter() - start:.0f} s"]
        write(report("no device", rows, notes), "gate_simulated", options.out)
        return
    if options.side_by_side > 1:
        side_by_side(options)
        return
    from sandbox.devices import detect

    measure(options, detect(options.target))


if __name__ == "__main__":
    main()
