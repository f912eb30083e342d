"""What the benchmarks judge: 64 variants of a task's seed kernels, a quarter of them broken, and a kernel with a brake.

The variants differ by tunables; those of another repetition are other sources, by a constant that nothing uses, so
that neither the build cache nor a comparison of normalised texts can answer. Kernels that <<<>>> cannot launch (tensor
maps, clusters, cooperative launches) are left out: every contender judges the same 64.
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent import tasks
from sandbox import plan
from sandbox.contract import Candidate, Device, Target, Task
from sandbox.signature import prototype

COUNT = 64
BROKEN = 16
FOLDER = Path(__file__).parent
SUFFIX: dict[Target, str] = {"cuda": "cu", "cpu": "cpp"}


@dataclass(frozen=True)
class Specimen:
    """A candidate, and the verdict it should get."""

    candidate: Candidate
    expected: str
    kind: str
    """`right`, or how it is broken."""


def specimens(task: Task, device: Device, repeat: int) -> list[Specimen]:
    """The 64 of one repetition, right and broken ones mixed evenly."""
    right = [Specimen(candidate, "Passed", "right") for candidate in variants(task, device)]
    good = [right[i * len(right) // (COUNT - BROKEN)] for i in range(COUNT - BROKEN)]
    damages = list(itertools.islice(itertools.cycle(_damages(task)), BROKEN))
    every = COUNT // BROKEN
    mixed: list[Specimen] = []
    for i, (expected, kind, damage) in enumerate(damages):
        mixed += good[i * (every - 1) : (i + 1) * (every - 1)]
        victim = good[(7 * i) % len(good)].candidate
        mixed.append(Specimen(victim.model_copy(update={"source": damage(victim.source)}), expected, kind))
    return [_distinct(specimen, repeat, index) for index, specimen in enumerate(mixed)]


def variants(task: Task, device: Device) -> list[Candidate]:
    """Every seed with every combination of tunables that its constraints allow on the device."""
    found = []
    for seed in tasks.seeds(task):
        parsed = plan.parse(seed.source, task)
        if parsed.tensormaps or any(launch.cluster or launch.cooperative for launch in parsed.launches):
            continue
        names = [tunable.name for tunable in parsed.tunables]
        for values in itertools.product(*(tunable.choices for tunable in parsed.tunables)):
            tunables = dict(zip(names, values, strict=True))
            if plan.allowed(parsed, task, tunables, device):
                found.append(seed.model_copy(update={"tunables": tunables}))
    return found


def _distinct(specimen: Specimen, repeat: int, index: int) -> Specimen:
    name = f"distinct_{repeat}_{index}_{secrets.token_hex(6)}"
    source = f"{specimen.candidate.source}\nnamespace {{ [[maybe_unused]] constexpr int {name} = {index}; }}\n"
    return Specimen(specimen.candidate.model_copy(update={"source": source}), specimen.expected, specimen.kind)


# ---------------------------------------------------------------- broken ones


def _damages(task: Task) -> Iterator[tuple[str, str, _Damage]]:
    """Six compile errors, then what compiles and is wrong, as often as a model writes such things."""
    yield "BuildFailed", "syntax error", _Damage(task, tail="static int broken = ;")
    yield "Incorrect", "one element wrong", _Damage(task, body=f"{_first(task)}[3] = 1000.0f;")
    yield "BuildFailed", "unknown name", _Damage(task, tail="static int broken() { return no_such_name; }")
    yield "Incorrect", "writes past the end", _Damage(task, body=f"{_first(task)}[{_elements(task)} + 2] = 1.0f;")
    yield "BuildFailed", "missing header", _Damage(task, tail="#include <no_such_header.h>")
    yield "LaunchFailed", "illegal address", _Damage(task, body="*(volatile int*)16 = 1;")
    yield "BuildFailed", "unbalanced brace", _Damage(task, tail="namespace open {")
    yield "Incorrect", "changes an input", _Damage(task, body=f"(({_type(task)}*){task.inputs[0].name})[1] = 3.0f;")


class _Damage:
    """Text put after a kernel: a tail as it is, or a body that runs after the kernel did its work."""

    def __init__(self, task: Task, tail: str = "", body: str = "") -> None:
        self.task, self.tail, self.body = task, tail, body

    def __call__(self, source: str) -> str:
        if self.tail:
            return f"{source}\n{self.tail}\n"
        return self._on_cuda(source) if self.task.target == "cuda" else self._on_cpu(source)

    def _on_cuda(self, source: str) -> str:
        launch = "// launch damage: grid(1) block(1)"
        return f'{source}\n{launch}\nextern "C" __global__ {prototype(self.task, "damage")} {{ {self.body} }}\n'

    def _on_cpu(self, source: str) -> str:
        task, inner = self.task, f"right_{self.task.name}"
        names = [t.name for t in task.tensors] + list(task.axes) + [s.name for s in task.scalars] + ["workspace"]
        renamed = f"#define {task.name} {inner}\n{source}\n#undef {task.name}\n"
        declared = prototype(task, task.name).replace("scalar_t", "float")
        return f'{renamed}extern "C" {declared} {{ {inner}({", ".join(names)}); {self.body} }}\n'


def _first(task: Task) -> str:
    return (*task.outputs, *task.inouts)[0].name


def _type(task: Task) -> str:
    return "scalar_t" if task.target == "cuda" else "float"


def _elements(task: Task) -> str:
    """How many elements the first output has, in C."""
    return "*".join(f"({size})" for size in (*task.outputs, *task.inouts)[0].shape)


# ---------------------------------------------------------------- a kernel with a brake


def paced(task: Task, extra: float) -> Candidate:
    """LayerNorm that does a share `extra` of its work twice: the same kernel, slower. 0 does none twice."""
    source = (FOLDER / f"layernorm_paced.{SUFFIX[task.target]}").read_text()
    braked = source.replace("#define EXTRA 0\n", f"#define EXTRA {math.floor(extra * 10000 + 0.5)}\n")
    return Candidate(task=task.name, target=task.target, source=braked, operator="seed", proposer="bench", note="paced")
