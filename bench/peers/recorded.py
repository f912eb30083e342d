"""A recorded landscape: every kernel of a small family, measured once by our judge, and searched many times.

What a knob does not touch is measured once; kernels with a part that makes results wrong are judged for each structure.
A measurement's luck is recorded with it. Not covered: other machines, on which other kernels win.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from bench.peers import layernorm
from bench.peers.family import Family, Genome
from bench.peers.session import Evaluate, Outcome

FILE = Path(__file__).parent.parent / "results" / "landscape_layernorm.json"
KNOBS = {"ROWS": (1, 8, 64), "AHEAD": (1, 4)}
IDLE = {"ROWS": ("loop", "one_thread"), "AHEAD": ("ahead", "nothing")}
"""The part and its option with which a knob does nothing."""
WRONG = ("half_precise", "vectors")
"""Options that the judge refuses, whatever the knobs."""
NOISE = 0.01


class Record(BaseModel):
    """All that was measured, and on what."""

    command: str
    measured_at: str
    device: str
    axes: dict[str, int]
    speedups: dict[str, float | None]
    """Over eager, by kernel; None where the judge refused it."""


def family(tunable: bool = True) -> Family:
    """LayerNorm with fewer choices, so that all of it can be measured."""
    whole = layernorm.family()
    start = replace(whole.start, knobs={name: choices[0] for name, choices in KNOBS.items()})
    return replace(whole, knobs=KNOBS, start=start, tunable=tunable)


def key(genome: Genome) -> str:
    """The same for kernels that differ in idle knobs only; of a wrong one in any knob."""
    parts = [genome.parts[name] for name in sorted(genome.parts)]
    wrong = any(part in WRONG for part in parts)
    idle = [wrong or genome.parts[part] == option for part, option in (IDLE[name] for name in KNOBS)]
    knobs = [f"{name}={genome.knobs[name]}" for name, does_nothing in zip(KNOBS, idle, strict=True) if not does_nothing]
    return " ".join([*parts, *knobs])


def genomes() -> Iterator[Genome]:
    """One kernel for each key."""
    known: set[str] = set()
    whole = family()
    for options in itertools.product(*whole.parts.values()):
        for values in itertools.product(*KNOBS.values()):
            genome = Genome(dict(zip(whole.parts, options, strict=True)), dict(zip(KNOBS, values, strict=True)))
            if key(genome) not in known:
                known.add(key(genome))
                yield genome


def measured(evaluate: Evaluate) -> Iterator[tuple[str, float | None]]:
    """Every kernel's speedup over eager."""
    whole = family()
    for genome in genomes():
        yield key(genome), evaluate(whole.text(genome), {}).speedup


class Recorded:
    """The landscape of the record; a seed only draws the noise."""

    def __init__(self, seed: int, record: Record | None = None) -> None:
        self.record = record or Record.model_validate(json.loads(FILE.read_text()))
        self.family = family()
        self._noise = random.Random(f"noise {seed}")

    def highest(self) -> float:
        """ln of the best speedup there is."""
        return math.log(max(speedup for speedup in self.record.speedups.values() if speedup is not None))

    def evaluate(self, source: str, tunables: Mapping[str, int]) -> Outcome:
        genome = self.family.read(source)
        if genome is None or genome.flawed:
            return Outcome(status="BuildFailed")
        speedup = self.record.speedups[key(replace(genome, knobs={**genome.knobs, **tunables}))]
        if speedup is None:
            return Outcome(status="Incorrect")
        return Outcome(status="Passed", speedup=speedup * math.exp(self._noise.gauss(0, NOISE)), true=speedup)
