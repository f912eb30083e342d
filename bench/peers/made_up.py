"""A made-up landscape: kernels that nobody compiles, with latencies drawn from a seed.

Each option of a part has an effect, each pair of options another, some pairs are wrong together; a knob's best value
depends on how the kernel reaches memory. So there are steps that only pay after others, closed ways, and structures
that look worse until they are tuned. Not covered: kernels; what is compared here is how contenders search.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from dataclasses import replace

from bench.peers.family import Family, Genome
from bench.peers.session import Outcome

OPTIONS = 4
PARTS = ("loop", "memory", "moments", "output", "ahead", "affine")
CHOICES = (1, 2, 4, 8, 16, 32)
KNOBS = ("ROWS", "AHEAD", "WAYS")
START = 1
"""Where every knob stands at first, in CHOICES."""

EFFECT, EFFECT_SPREAD = 0.05, 0.25
"""Of an option, as a logarithm of the speed; the first option of each part has none."""
PAIR_SPREAD = 0.12
WRONG = 0.04
"""Share of the pairs that give wrong results."""
SLOPE = 0.06
"""Lost for each step that a knob is off."""
NOISE = 0.01

_MEMORY = (
    "    reach(x, out);",
    "    reach(_mm256_loadu_ps(x), out);",
    "    for (int64_t d = 0; d < D; d += TILE) reach(x + d, out);",
    "    for (int64_t d = 0; d < D; d += TILE) reach(_mm256_loadu_ps(x + d), out);",
)
_TEMPLATE = """\
// A made-up kernel, of parts that can be exchanged.
// EVOLVE-BLOCK-START
@knobs
constexpr int64_t TILE = 64;

extern "C" void layernorm(float* out, const float* x, const float* weight, const float* bias, int64_t N, int64_t D,
                          float eps, void* workspace) {
@loop
@memory
@moments
@output
@ahead
@affine
@end
}
// EVOLVE-BLOCK-END
"""


def family(tunable: bool = True) -> Family:
    parts = {name: {f"{name}_{i}": f"    stage_{name}_{i}(x, out);" for i in range(OPTIONS)} for name in PARTS}
    parts["memory"] = {f"memory_{i}": code for i, code in enumerate(_MEMORY)}
    start = Genome({name: f"{name}_0" for name in PARTS}, dict.fromkeys(KNOBS, CHOICES[START]))
    return Family(_TEMPLATE, parts, dict.fromkeys(KNOBS, CHOICES), start, tunable)


class Landscape:
    """The speedups of one seed; the kernel that every search starts from has 1."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(f"landscape {seed}")
        self.family = family()
        options = [f"{name}_{i}" for name in PARTS for i in range(OPTIONS)]
        changed = [option for option in options if not option.endswith("_0")]
        pairs = [pair for pair in itertools.combinations(changed, 2) if pair[0][:-2] != pair[1][:-2]]
        self.effects = {option: rng.gauss(EFFECT, EFFECT_SPREAD) for option in changed}
        self.pairs = {pair: rng.gauss(0, PAIR_SPREAD) for pair in pairs}
        self.wrong = {pair for pair in pairs if rng.random() < WRONG}
        self.tuned = {
            (knob, memory): rng.randrange(len(CHOICES)) for knob in KNOBS for memory in self.family.parts["memory"]
        }
        self._noise = random.Random(f"noise {seed}")
        self._origin = self._height(self.family.start)

    def score(self, genome: Genome) -> float | None:
        """ln of the speedup over the kernel at the start; None where the results are wrong."""
        pairs = itertools.combinations(genome.parts.values(), 2)
        return None if any(pair in self.wrong for pair in pairs) else self._height(genome) - self._origin

    def _height(self, genome: Genome) -> float:
        options = list(genome.parts.values())
        structure = sum(self.effects.get(option, 0.0) for option in options)
        structure += sum(self.pairs.get(pair, 0.0) for pair in itertools.combinations(options, 2))
        memory = genome.parts["memory"]
        off = sum(abs(CHOICES.index(value) - self.tuned[knob, memory]) for knob, value in genome.knobs.items())
        return structure - SLOPE * off

    def highest(self) -> float:
        """The best score there is."""
        found = []
        for options in itertools.product(*(self.family.parts[name] for name in PARTS)):
            knobs = {knob: CHOICES[self.tuned[knob, options[PARTS.index("memory")]]] for knob in KNOBS}
            score = self.score(Genome(dict(zip(PARTS, options, strict=True)), knobs))
            found.append(-math.inf if score is None else score)
        return max(found)

    def evaluate(self, source: str, tunables: Mapping[str, int]) -> Outcome:
        genome = self.family.read(source)
        if genome is None or genome.flawed:
            return Outcome(status="BuildFailed")
        score = self.score(replace(genome, knobs={**genome.knobs, **tunables}))
        if score is None:
            return Outcome(status="Incorrect")
        measured = score + self._noise.gauss(0, NOISE)
        return Outcome(status="Passed", speedup=math.exp(measured), true=math.exp(score))
