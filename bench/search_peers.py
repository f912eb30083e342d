"""This search against simpler ones and against other programs, all driven by one scripted engineer.

    python -m bench.search_peers [--others VENV/bin/python] [--evals 64] [--seeds 12]
    python -m bench.search_peers --real [--others VENV/bin/python] [--evals 16] [--seeds 10]
    python -m bench.search_peers --record                     # measures every kernel of a small family, once
    python -m bench.search_peers --recorded [--others VENV/bin/python] [--evals 64] [--seeds 12]

`--others` is a Python with openevolve and shinka-evolve, which are no dependencies of ours; whoever is not there is
passed over. A search on a made-up landscape costs nothing but its own work: there the policies compare, and how long
it takes to propose. `--real` is LayerNorm on this machine's CPU, compiled and judged by our judge; `--recorded` looks
up what `--record` has measured of it. Not covered: prompts, and whatever a model makes of them: the engineer reads
nothing but the kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from agent import tasks
from bench.peers import contenders, layernorm, made_up, recorded
from bench.peers.contenders import SETTINGS, Arena, Search
from bench.peers.judges import Real, Scripted
from bench.peers.session import Kernel, Session
from sandbox import devices, launch
from sandbox.contract import Interval
from sandbox.judge import Judge
from sandbox.statistics import interval
from sandbox.toolchain import Toolchain

RESULTS = Path(__file__).parent / "results"
OURS = "Warpsmith"
UNTUNED = "Warpsmith, knobs not declared"
PACKAGES = {"OpenEvolve": "openevolve", "ShinkaEvolve": "shinka-evolve"}

Setting = Literal["made up", "recorded", "real"]


class Searched(BaseModel):
    """One search by one contender."""

    contender: str
    seed: int
    best: list[float]
    """Speedup of the fastest kernel so far after each evaluation, without noise where it is known; 0 for none."""
    failed: int
    """Evaluations that did not pass."""
    requests: int
    """To the engineer."""
    seconds: float
    highest: float | None = None
    """The best speedup that there is."""
    ahead: float | None = None
    """Time of its best kernel over that of ours with the same seed, measured side by side."""


class Report(BaseModel):
    command: str
    measured_at: str
    device: str
    load: float
    """Load average over the minute before its end."""
    versions: dict[str, str]
    budget: int
    notes: list[str]
    searches: list[Searched]


# ---------------------------------------------------------------- searching


def made_up_arena(seed: int) -> Arena:
    landscape, device = made_up.Landscape(seed), devices.cpu()
    return Arena(tasks.load("layernorm", "cpu"), landscape.evaluate, lambda session: Scripted(session, device))


def recorded_arena(seed: int) -> Arena:
    landscape, device = recorded.Recorded(seed), devices.cpu()
    return Arena(layernorm.task(), landscape.evaluate, lambda session: Scripted(session, device))


@contextmanager
def real_arena(sandbox: str) -> Iterator[Arena]:
    """With a judge for all searches: its baselines take most of a minute to get ready."""
    device, task = devices.cpu(), layernorm.task()
    launcher, _ = launch.choose(sandbox, device)
    with (
        contextlib.closing(launcher),
        tempfile.TemporaryDirectory() as cache,
        Toolchain(Path(cache), launcher=launcher) as tools,
        Judge(device, tools, launcher) as judge,
    ):
        real = Real(judge, task)
        yield Arena(task, real.evaluate, real.of, real.faster_by)


def searched(name: str, search: Search, session: Session, arena: Arena, seed: int) -> Searched:
    with tempfile.TemporaryDirectory() as folder:
        search(session, arena, seed, Path(folder))
    if not session.log:
        raise SystemExit(f"{name}, seed {seed}: not a single evaluation")
    return Searched(
        contender=name,
        seed=seed,
        best=curve(session),
        failed=sum(entry.outcome.speedup is None for entry in session.log),
        requests=session.requests,
        seconds=session.log[-1].at,
    )


def curve(session: Session) -> list[float]:
    """The speedup of what measured fastest so far, without noise where that is known."""
    best, measured, found = 0.0, 0.0, []
    for entry in session.log:
        outcome = entry.outcome
        if outcome.speedup is not None and outcome.speedup > measured:
            measured = outcome.speedup
            best = outcome.speedup if outcome.true is None else outcome.true
        found.append(round(best, 4))
    return found


def contestants(others: Path | None, setting: Setting, say: Callable[[str], None]) -> dict[str, Search]:
    """Ours first; of the other programs those that `others` can import."""
    found: dict[str, Search] = {OURS: contenders.ours}
    if setting != "real":
        found |= {f"{OURS}, never standing still": contenders.ours_to_the_end, UNTUNED: contenders.ours_to_the_end}
    found["best of N"] = contenders.best_of_n
    if setting != "real":
        found["always the best"] = contenders.always_the_best
    for name, search in {"OpenEvolve": contenders.openevolve, "ShinkaEvolve": contenders.shinka}.items():
        if others is not None and version_there(others, PACKAGES[name]):
            found[name] = search(others)
        else:
            where = f"not installed beside {others}" if others else "no --others given"
            say(f"{name} is passed over: {where}")
    return found


def version_there(python: Path, package: str) -> str:
    """Empty where the package is not there."""
    ask = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    done = subprocess.run([python, "-c", ask, package], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def made_up_searches(options: argparse.Namespace, field: Mapping[str, Search]) -> Iterator[Searched]:
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        highest = round(math.exp(made_up.Landscape(seed).highest()), 4)
        for name, search in field.items():
            family, arena = made_up.family(tunable=name != UNTUNED), made_up_arena(seed)
            session = Session(family, seed, arena.evaluate, options.evals)
            yield searched(name, search, session, arena, seed).model_copy(update={"highest": highest})


def recorded_searches(options: argparse.Namespace, field: Mapping[str, Search]) -> Iterator[Searched]:
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        highest = round(math.exp(recorded.Recorded(seed).highest()), 4)
        for name, search in field.items():
            family, arena = recorded.family(tunable=name != UNTUNED), recorded_arena(seed)
            session = Session(family, seed, arena.evaluate, options.evals)
            yield searched(name, search, session, arena, seed).model_copy(update={"highest": highest})


def record(options: argparse.Namespace) -> None:
    """Measure every kernel of the small family and write it down."""
    speedups: dict[str, float | None] = {}
    with real_arena(options.sandbox) as arena:
        for name, speedup in recorded.measured(arena.evaluate):
            speedups[name] = None if speedup is None else round(speedup, 4)
            say(f"{len(speedups)}: {name}: {speedup}")
    found = recorded.Record(
        command=" ".join(["python -m bench.search_peers", *_without_paths(sys.argv[1:])]),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        device=devices.cpu().name,
        axes=layernorm.AXES,
        speedups=speedups,
    )
    recorded.FILE.write_text(found.model_dump_json(indent=0) + "\n")


def real_searches(options: argparse.Namespace, field: Mapping[str, Search]) -> Iterator[Searched]:
    """Seed by seed; no further seed is begun once the minutes are over."""
    family, late = layernorm.family(), time.monotonic() + 60 * options.minutes
    with real_arena(options.sandbox) as arena:
        arena.evaluate(family.text(family.start), {})
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            if time.monotonic() > late:
                say(f"{options.minutes:g} minutes are over: seeds from {seed} on are left out")
                break
            winners: dict[str, Kernel] = {}
            for name, search in field.items():
                session = Session(family, seed, arena.evaluate, options.evals)
                found = searched(name, search, session, arena, seed)
                winners[name] = fastest(session)
                ahead = (
                    arena.faster_by(winners[OURS], winners[name])
                    if arena.faster_by and OURS in winners and name != OURS
                    else None
                )
                yield found.model_copy(update={"ahead": ahead})


def fastest(session: Session) -> Kernel:
    speeds = [entry.outcome.speedup or 0.0 for entry in session.log]
    return session.kernels[speeds.index(max(speeds))]


# ---------------------------------------------------------------- report


def stages(budget: int) -> list[int]:
    """After how many evaluations the searches are compared."""
    return [budget // 4, budget // 2, budget]


def reached(search: Searched, evals: int) -> float:
    """The speedup after so many evaluations; a search that ended before keeps what it had."""
    return search.best[min(evals, len(search.best)) - 1]


def spread(values: Sequence[float]) -> str:
    """Geometric mean and its 95 % t interval over seeds."""
    return shown(interval([math.log(value) for value in values]))


def shown(found: Interval) -> str:
    return f"{found.ratio:.2f} ({found.low:.2f}–{found.high:.2f})"


def ahead(report: Report, name: str) -> str:
    """Ours over the contender's at the end, seed by seed."""
    own = {search.seed: reached(search, report.budget) for search in report.searches if search.contender == OURS}
    pairs = [
        math.log(search.ahead or own[search.seed] / reached(search, report.budget))
        for search in report.searches
        if search.contender == name and search.seed in own
    ]
    return "–" if name == OURS or not pairs else shown(interval(pairs))


def table(report: Report) -> list[str]:
    made = report.searches[0].highest is not None
    at = stages(report.budget)
    share = ["of the best there is"] if made else []
    heads = ["contender", *(f"best after {count}" for count in at), *share, "ours ÷ it at the end"]
    heads += ["seeds", "evaluations", "failed", "asked", "evaluations a minute"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for name in dict.fromkeys(search.contender for search in report.searches):
        own = [search for search in report.searches if search.contender == name]
        ends = [reached(search, report.budget) / search.highest for search in own if search.highest]
        counts = [len(search.best) for search in own]
        total, minutes = sum(counts), sum(search.seconds for search in own) / 60
        cells = [
            name,
            *(spread([reached(search, count) for search in own]) for count in at),
            *([spread(ends)] if made else []),
            ahead(report, name),
            str(len(own)),
            f"{total / len(own):.1f}",
            f"{sum(search.failed for search in own) / total:.0%}",
            f"{sum(search.requests for search in own) / len(own):.0f}",
            f"{total / minutes:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


TITLES: dict[Setting, str] = {
    "made up": "Made-up landscapes",
    "recorded": "A recorded landscape: LayerNorm on the CPU, every kernel measured once",
    "real": "LayerNorm on the CPU, for real",
}


def section(setting: Setting, report: Report) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    return [
        f"## {TITLES[setting]}",
        "",
        f"- `{report.command}`, {report.measured_at}",
        f"- {report.device}, load average {report.load:.1f}; {versions}",
        *(f"- {note}" for note in report.notes),
        "",
        *table(report),
        "",
    ]


def notes(setting: Setting, options: argparse.Namespace) -> list[str]:
    common = f"budget: {options.evals} evaluations, the first kernel's among them; seeds from {options.first_seed} on"
    if setting == "made up":
        return [
            f"{common}; each seed is a landscape of its own, the same for all",
            "speedups are over the first kernel, without the noise of 1 % that the contenders see",
            "an evaluation takes no time: evaluations a minute show what proposing, bookkeeping and starting cost",
            f"{OURS} stops where it stands still, as by default; the rows below it go on",
            "where the knobs are not declared, our tuner has nothing to do: nobody else has one",
        ]
    if setting == "recorded":
        known = recorded.Recorded(0).record
        right = [speedup for speedup in known.speedups.values() if speedup is not None]
        return [
            f"{common}; all search the same landscape, a seed draws what the engineer does and noise of 1 %",
            f"{len(known.speedups)} kernels of LayerNorm with {known.axes}, {len(right)} right, judged by ours: "
            f"`{known.command}`, {known.measured_at}, {known.device}",
            f"speedups are over eager, {max(right):.2f} at best",
            f"{OURS} stops where it stands still, as by default; the rows below it go on",
        ]
    return [
        f"{common}; the first kernel is one thread with plain loops",
        f"LayerNorm with {layernorm.AXES}; speedups are over eager, as measured in the search: others who use the "
        "machine are in them, and the best of several measurements flatters",
        "ours ÷ it: the fastest kernels of both searches in a duel, rounds side by side",
        "one judge for all: a text that was built before is not built again, whoever wrote it",
    ]


HEADER = """\
# Searches side by side

One scripted engineer behind one HTTP server proposes for every contender. Of the kernel it is shown it turns a knob
(40 %), exchanges a part (35 %) or two (10 %), breaks it (10 %) or leaves it as it is (5 %); a crossover mixes the two
kernels shown. It reads no verdicts and no advice: this compares policies, not prompts.

- geometric means over seeds, in brackets 95 % t intervals; ours ÷ it: paired by seed, above 1 ours is ahead
- asked: requests to the engineer in one search; ours asks for plans too, and refuses twins before they are judged
- one evaluation and one proposal at a time, for all
"""


def markdown(reports: Mapping[Setting, Report]) -> str:
    settings = [f"- {name}, other than by default: `{json.dumps(given)}`" for name, given in SETTINGS.items()]
    sections = [line for setting in TITLES if setting in reports for line in section(setting, reports[setting])]
    return HEADER + "\n".join([*settings, "", *sections])


def write(setting: Setting, report: Report, folder: Path) -> None:
    """Into the file that holds both settings; the other one's results stay."""
    path = folder / "search_peers.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    reports: dict[Setting, Report] = {name: Report.model_validate(kept[name]) for name in TITLES if name in kept}
    reports[setting] = report
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("{" + ",\n".join(f'"{name}": {lines(each)}' for name, each in reports.items()) + "}\n")
    (folder / "search_peers.md").write_text(markdown(reports))
    print("\n".join(section(setting, report)))


def lines(report: Report) -> str:
    """JSON with a line for each search."""
    head = report.model_dump_json(exclude={"searches"})
    rows = ",\n".join(search.model_dump_json() for search in report.searches)
    return f'{head[:-1]},"searches":[\n{rows}]}}'


# ---------------------------------------------------------------- command line


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="LayerNorm on this CPU by our judge")
    parser.add_argument("--record", action="store_true", help="measure every kernel of the recorded landscape")
    parser.add_argument("--recorded", action="store_true", help="LayerNorm as it was recorded")
    parser.add_argument("--others", type=Path, help="a Python with openevolve and shinka-evolve")
    parser.add_argument("--only", nargs="*", help="contenders, by name; all by default")
    parser.add_argument("--evals", type=int, help="of each search; 64 by default, 16 for real")
    parser.add_argument("--seeds", type=int, help="searches of each contender; 12 by default, 10 for real")
    parser.add_argument(
        "--first-seed", type=int, default=1000, help="seeds below 1000 served to try changes of the policy"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further seed after so many, for real")
    parser.add_argument("--sandbox", choices=["auto", "docker", "local"], default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.evals = options.evals or (16 if options.real else 64)
    options.seeds = options.seeds or (10 if options.real else 12)
    return options


def main() -> None:
    options = arguments()
    if options.record:
        record(options)
        return
    setting: Setting = "real" if options.real else "recorded" if options.recorded else "made up"
    field = contestants(options.others, setting, say)
    if options.only:
        field = {name: search for name, search in field.items() if name in options.only}
    found = []
    for search in SEARCHES[setting](options, field):
        found.append(search)
        say(f"seed {search.seed}, {search.contender}: {reached(search, options.evals):.2f} in {search.seconds:.1f} s")
    versions = {name: version_there(options.others, PACKAGES[name]) for name in field if name in PACKAGES}
    command = " ".join(["python -m bench.search_peers", *_without_paths(sys.argv[1:])])
    report = Report(
        command=command,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        device=devices.cpu().name,
        load=os.getloadavg()[0],
        versions={"Warpsmith": version("warpsmith"), **versions},
        budget=options.evals,
        notes=notes(setting, options),
        searches=found,
    )
    write(setting, report, options.out)


SEARCHES: dict[Setting, Callable[[argparse.Namespace, Mapping[str, Search]], Iterator[Searched]]] = {
    "made up": made_up_searches,
    "recorded": recorded_searches,
    "real": real_searches,
}


def _without_paths(given: Sequence[str]) -> list[str]:
    """Places on this machine say nothing to anybody else."""
    own = {"--others": "PYTHON", "--out": "FOLDER"}
    return [own.get(before, argument) for before, argument in zip(["", *given], given, strict=False)]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
