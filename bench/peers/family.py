"""Kernels made of exchangeable parts and knobs, as text: what the scripted engineer changes and what is judged.

A part stands between `// part NAME: OPTION` and `// end NAME`, a knob is a `#define` with its choices behind it. So a
kernel can be read back from any prompt that holds its text. Not covered: what a kernel is worth (landscape, judge).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

_PART = re.compile(r"^// part (\w+): (\w+)$", re.MULTILINE)
FLAW = "    int flaw = ;"
"""What breaks a kernel: no compiler takes it."""
END = "// the parts end here"
TUNE = "// tune:"

Move = tuple[str, str]
"""A part and its option, a knob and its value, or `flaw` and `yes` or `no`."""

KNOB, PART, TWO_PARTS, BREAK, NOTHING = 0.4, 0.35, 0.1, 0.1, 0.05
"""How often each kind of move is made."""
MENDED = 0.7
"""Share of the flaws that the engineer sees."""


@dataclass(frozen=True)
class Genome:
    """What a kernel is made of."""

    parts: Mapping[str, str]
    knobs: Mapping[str, int]
    flawed: bool = False


@dataclass(frozen=True)
class Family:
    """Every kernel that the parts and knobs can make. In `template`, @NAME stands for a part, @knobs for all knobs."""

    template: str
    parts: Mapping[str, Mapping[str, str]]
    """Code by option by part."""
    knobs: Mapping[str, Sequence[int]]
    start: Genome
    tunable: bool = True
    """Whether the text tells the tuner of the knobs."""

    def text(self, genome: Genome) -> str:
        found = self.template.replace("@knobs", "\n".join(self._knob(*knob) for knob in genome.knobs.items()))
        for name, option in genome.parts.items():
            found = found.replace(f"@{name}\n", f"{self._part(name, option)}\n")
        return found.replace("@end", f"{FLAW}\n{END}" if genome.flawed else END)

    def read(self, text: str) -> Genome | None:
        """The genome of a kernel's text; None where it is no kernel of the family."""
        parts = dict(_PART.findall(text))
        knobs = {name: int(value) for name, value in re.findall(r"^#define (\w+) (\d+)", text, re.MULTILINE)}
        known = parts.keys() == self.parts.keys() and all(parts[name] in self.parts[name] for name in parts)
        if not known or not self.knobs.keys() <= knobs.keys():
            return None
        return Genome(parts, {name: knobs[name] for name in self.knobs}, FLAW in text)

    def edits(self, before: Genome, after: Genome) -> list[tuple[str, str]]:
        """Lines of the one kernel's text and what is there in the other's; a line for itself where they are equal."""
        changed = [
            (self._part(name, option), self._part(name, after.parts[name]))
            for name, option in before.parts.items()
            if after.parts[name] != option
        ]
        changed += [
            (self._define(name, value), self._define(name, after.knobs[name]))
            for name, value in before.knobs.items()
            if after.knobs[name] != value
        ]
        if before.flawed != after.flawed:
            changed += [(f"{FLAW}\n{END}", END) if before.flawed else (END, f"{FLAW}\n{END}")]
        return changed or [(END, END)]

    def _part(self, name: str, option: str) -> str:
        code = self.parts[name][option].strip("\n")
        return (
            f"// part {name}: {option}\n{code}\n// end {name}" if code else f"// part {name}: {option}\n// end {name}"
        )

    def _knob(self, name: str, value: int) -> str:
        return f"#ifndef {name}\n{self._define(name, value)}\n#endif"

    def _define(self, name: str, value: int) -> str:
        choices = " ".join(str(choice) for choice in self.knobs[name])
        return f"#define {name} {value}  {TUNE if self.tunable else '// choices:'} {choices}"


# ---------------------------------------------------------------- moves


def drawn(family: Family, genome: Genome, rng: random.Random) -> list[Move]:
    """What the engineer would do to the kernel: one move, now and then two, a mistake, or nothing."""
    if genome.flawed and rng.random() < MENDED:
        return [("flaw", "no")]
    kind = rng.choices(range(5), (KNOB, PART, TWO_PARTS, BREAK, NOTHING))[0]
    if kind == 0:
        return [_turned(family, genome, rng)]
    if kind in (1, 2):
        return [_exchanged(family, genome, name, rng) for name in rng.sample(sorted(family.parts), kind)]
    return [("flaw", "yes")] if kind == 3 else []


def _turned(family: Family, genome: Genome, rng: random.Random) -> Move:
    """A knob one or two steps further; from an end of its scale the other way."""
    name = rng.choice(sorted(family.knobs))
    choices = family.knobs[name]
    at = choices.index(genome.knobs[name])
    near = [place for step in (-2, -1, 1, 2) if 0 <= (place := at + step) < len(choices)]
    return name, str(choices[rng.choice(near)])


def _exchanged(family: Family, genome: Genome, name: str, rng: random.Random) -> Move:
    return name, rng.choice([option for option in family.parts[name] if option != genome.parts[name]])


def crossed(one: Genome, other: Genome, rng: random.Random) -> list[Move]:
    """Each part and knob in which the two differ is taken from the other half of the time."""
    differing = [(name, option) for name, option in other.parts.items() if one.parts[name] != option]
    differing += [(name, str(value)) for name, value in other.knobs.items() if one.knobs[name] != value]
    return [move for move in differing if rng.random() < 0.5]


def moved(genome: Genome, moves: Sequence[Move]) -> Genome:
    for name, value in moves:
        if name == "flaw":
            genome = replace(genome, flawed=value == "yes")
        elif name in genome.knobs:
            genome = replace(genome, knobs={**genome.knobs, name: int(value)})
        else:
            genome = replace(genome, parts={**genome.parts, name: value})
    return genome
