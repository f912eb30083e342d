"""The parent policy against simpler ones on made-up landscapes: no kernel, no model, nothing measured.

    python -m bench.search_policy [--evals 64] [--seeds 20]

A landscape has a peak for each structure, a memory strategy with or without tensor cores, and knobs whose best values
differ by structure. A child changes one knob, or now and then its structure, which leaves the knobs ill-tuned; a fifth
of the children fail. So a better structure looks worse at first. Not covered: models that plan, crossover, the bandit.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from agent import tasks
from agent.engineer.parents import children, choose, islands
from agent.engineer.scores import Scored, best, scored
from agent.steps import Judged
from sandbox import devices
from sandbox.contract import BuildFailed, Candidate, Judgement, Measurement, Passed, Timing, Verdict

TASK = tasks.load("vector_add", "cuda")
DEVICE = devices.cross("sm_90")

MEMORY = ("out[0] = a[0];", "float4 v;", "__shared__ float tile[4096];", 'asm("cp.async.cg");', 'asm("cp.async.bulk");')
TENSOR_CORES = ("", 'asm("mma.sync");', 'asm("wgmma.mma_async");')
KNOBS = 5
KNOB_VALUES = 8
SPREAD = 0.6
"""Standard deviation of the structures' peaks, as a logarithm of time."""
SLOPE = 0.1
"""Lost for each step that a knob is off."""
NOISE = 0.01
FAILURES = 0.2
RESTRUCTURED = 0.2
"""Share of the children that change their structure."""


@dataclass(frozen=True)
class Genome:
    memory: int
    tensor_cores: int
    knobs: tuple[int, ...]


class Landscape:
    """True scores, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(f"landscape {seed}")
        structures = [(m, t) for m in range(len(MEMORY)) for t in range(len(TENSOR_CORES))]
        self.peaks = {structure: rng.gauss(0, SPREAD) for structure in structures}
        self.tuned = {structure: [rng.randrange(KNOB_VALUES) for _ in range(KNOBS)] for structure in structures}

    def score(self, genome: Genome) -> float:
        structure = genome.memory, genome.tensor_cores
        off = sum(abs(own - right) for own, right in zip(genome.knobs, self.tuned[structure], strict=True))
        return self.peaks[structure] - SLOPE * off

    @property
    def highest(self) -> float:
        return max(self.peaks.values())


Pick = Callable[[Sequence[Judged], random.Random], Scored | None]


def policy(history: Sequence[Judged], rng: random.Random, count: int) -> Scored | None:
    choice = choose(islands(history, count), children(history), TASK, DEVICE, rng)
    return choice.parent if choice else None


def uniform(history: Sequence[Judged], rng: random.Random) -> Scored | None:
    return rng.choice(scored(history))


def greedy(history: Sequence[Judged], _: random.Random) -> Scored | None:
    return best(scored(history))


def best_of_n(history: Sequence[Judged], rng: random.Random) -> Scored | None:
    """Children of the seeds alone."""
    return rng.choice([entry for entry in scored(history) if not entry.candidate.parents])


PICKS: dict[str, Pick] = {
    "policy, two islands": partial(policy, count=2),
    "policy, one island": partial(policy, count=1),
    "uniform among all that passed": uniform,
    "always the best": greedy,
    "best of N children of the seeds": best_of_n,
}


def search(landscape: Landscape, pick: Pick, evals: int, seed: int) -> float:
    """How far the true score of the best candidate lies below the highest peak, after so many evaluations."""
    rng = random.Random(f"search {seed}")
    genomes: dict[str, Genome] = {}
    history: list[Judged] = []
    for start in (Genome(0, 0, any_knobs(rng)), Genome(2, 0, any_knobs(rng))):
        add(history, genomes, start, (), landscape.score(start) + rng.gauss(0, NOISE))
    while len(history) < evals:
        parent = pick(history, rng)
        assert parent is not None
        genome = child(genomes[parent.candidate.id], rng)
        measured = landscape.score(genome) + rng.gauss(0, NOISE) if rng.random() >= FAILURES else None
        add(history, genomes, genome, (parent.candidate.id,), measured)
    found = best(scored(history))
    assert found is not None
    return landscape.highest - landscape.score(genomes[found.candidate.id])


def any_knobs(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randrange(KNOB_VALUES) for _ in range(KNOBS))


def child(genome: Genome, rng: random.Random) -> Genome:
    if rng.random() >= RESTRUCTURED:
        at = rng.randrange(KNOBS)
        value = min(max(genome.knobs[at] + rng.choice((-2, -1, 1, 2)), 0), KNOB_VALUES - 1)
        return replace(genome, knobs=(*genome.knobs[:at], value, *genome.knobs[at + 1 :]))
    if rng.random() < 0.5:
        return replace(genome, memory=rng.randrange(len(MEMORY)))
    return replace(genome, tensor_cores=rng.randrange(len(TENSOR_CORES)))


def add(
    history: list[Judged], genomes: dict[str, Genome], genome: Genome, parents: tuple[str, ...], score: float | None
) -> None:
    """Judge the genome as a candidate; its place keeps two alike apart."""
    body = f"{MEMORY[genome.memory]} {TENSOR_CORES[genome.tensor_cores]} int at{len(history)};"
    candidate = Candidate(
        task=TASK.name,
        target="cuda",
        source=f"// launch {TASK.name}: grid(1) block(32)\nvoid {TASK.name}() {{ {body} }}",
        parents=parents,
        operator="propose" if parents else "seed",
        proposer="bench",
    )
    genomes[candidate.id] = genome
    judgement = Judgement(
        candidate=candidate.id,
        task=TASK.name,
        task_version=TASK.version,
        target="cuda",
        device=DEVICE.name,
        verdict=BuildFailed(log="") if score is None else passed(score),
        seconds=0.0,
        judged_at="",
    )
    history.append((candidate, judgement))


def passed(score: float) -> Verdict:
    timing = Timing(workload=TASK.workloads[0].name, candidate=took(math.exp(-score)), baselines={"eager": took(1.0)})
    return Passed(checks=(), timings=(timing,), speedup={}, latency_ms=math.exp(-score))


def took(ms: float) -> Measurement:
    return Measurement(rounds_ms=(ms,), median_ms=ms, low_ms=ms, high_ms=ms, samples=1)


def table(evals: int, seeds: int) -> str:
    """Markdown: for each policy the share of the highest peak's speed, over as many landscapes as seeds."""
    lines = [
        f"Speed of the best kernel found in {evals} evaluations over that of the best there is; {seeds} landscapes.",
        "",
        "| parents | median | lower quartile | upper quartile |",
        "|---|---|---|---|",
    ]
    for name, pick in PICKS.items():
        reached = [math.exp(-search(Landscape(seed), pick, evals, seed)) for seed in range(seeds)]
        low, middle, high = statistics.quantiles(reached, n=4, method="inclusive")
        lines.append(f"| {name} | {middle:.2f} | {low:.2f} | {high:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evals", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    print(table(arguments.evals, arguments.seeds))


if __name__ == "__main__":
    main()
