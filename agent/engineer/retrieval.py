"""Kernels of other tasks that may teach something about this one: the best of the tasks most like it.

A task is a bag of features: its axes, dtypes and operations per byte, how outputs relate to inputs, the words of its
summary. Two tasks are as similar as the cosine of their TF-IDF vectors (Salton, Buckley 1988). Only tasks for the same
target compare. Not covered: what the kernels' texts have in common.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent import parts, tasks
from agent.engineer import roofline
from agent.engineer.niches import elites
from agent.engineer.tokens import tokens
from agent.steps import Judged
from archive import Archive
from sandbox.contract import Candidate, Device, Judgement, Task

MOST = 4
"""Kernels that a search begins with."""
PER_TASK = 2
"""Kernels of one task that are offered at most, so that the next task is seen too."""
LEAST_SIMILARITY = 0.1
LEAST_KINSHIP = 0.3
"""Of tasks whose kernels may be crossed: there code is carried over, not only shown."""

Shelf = tuple[Task, Sequence[Judged]]
"""A task, and what was judged for it."""


@dataclass(frozen=True)
class Related:
    """A kernel of another task."""

    task: Task
    candidate: Candidate
    judgement: Judgement
    similarity: float
    """Of the tasks, 0 to 1; 1 for a part of the task."""


def on_record(task: Task, archive: Archive, device: Device) -> list[Related]:
    """What the archive has to offer for the device: of the task's parts and of the built-in tasks."""
    chain = parts.read(task)
    own = {piece.task.name: piece.task for piece in chain.pieces} if chain else {}
    return related(task, shelves(archive, device, own), device, MOST, own)


def related(task: Task, shelves: Sequence[Shelf], device: Device, n: int, own: Collection[str] = ()) -> list[Related]:
    """Up to `n` elites of other tasks, those of its `own` parts first, then the most similar task's; the fastest first.

    The fastest of each part stands before the second of any. Versions of the task itself are passed over, and kernels
    that are no kernels of the contract.
    """
    others = [shelf for shelf in shelves if shelf[0].target == task.target and shelf[0].name != task.name]
    likeness = similarities(task, [other for other, _ in others], device)
    found = [
        (place, Related(other, candidate, judgement, 1.0 if other.name in own else similarity))
        for (other, judged), similarity in zip(others, likeness, strict=True)
        if other.name in own or similarity >= LEAST_SIMILARITY
        for place, (candidate, judgement) in enumerate(_fastest(judged, other, device))
    ]
    return [entry for _, entry in sorted(found, key=lambda placed: (-placed[1].similarity, placed[0]))][:n]


def shelves(archive: Archive, device: Device, own: Mapping[str, Task]) -> list[Shelf]:
    """The built-in tasks and one's `own` by name, each with what the archive knows of this version on the device."""
    found: list[Shelf] = []
    for name in dict.fromkeys([*own, *tasks.available()]):
        if judged := archive.judgements(name, device.target, device.name):
            task = own.get(name) or tasks.load(name, device.target)
            found.append((task, _comparable(judged, task)))
    return found


def _comparable(judged: Sequence[Judged], task: Task) -> list[Judged]:
    """Of the task's present version, by the newest judge that has judged it; what is taken up is judged anew anyway."""
    own = [(candidate, judgement) for candidate, judgement in judged if judgement.task_version == task.version]
    newest = max((judgement.judge_version for _, judgement in own), default=0)
    return [(candidate, judgement) for candidate, judgement in own if judgement.judge_version == newest]


def _fastest(judged: Sequence[Judged], task: Task, device: Device) -> list[Judged]:
    own = [(c, j) for c, j in judged if c.form == "kernel" and c.target == j.target == task.target]
    ranked = sorted(elites(own, task, device).values(), key=lambda entry: -entry.score)
    return [(entry.candidate, entry.judgement) for entry in ranked[:PER_TASK]]


# ---------------------------------------------------------------- similarity of tasks


def similarities(task: Task, others: Sequence[Task], device: Device) -> list[float]:
    """Of the task to each of the others, 0 to 1; what is rare among all of them counts more."""
    bags = [Counter(features(each, device)) for each in (task, *others)]
    present = Counter(feature for bag in bags for feature in bag)
    rarity = {feature: math.log((1 + len(bags)) / (1 + count)) + 1 for feature, count in present.items()}
    own, *rest = ({feature: count * rarity[feature] for feature, count in bag.items()} for bag in bags)
    return [_cosine(own, vector) for vector in rest]


def _cosine(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    product = sum(value * b[feature] for feature, value in a.items() if feature in b)
    lengths = math.hypot(*a.values()) * math.hypot(*b.values())
    return min(product / lengths, 1.0)


def features(task: Task, device: Device) -> Iterator[str]:
    """What describes the task, each feature once for every time it counts."""
    yield f"axes {len(task.axes)}"
    yield from (f"axis {name}" for name in task.axes)
    yield from sorted({f"dtype {workload.dtype}" for workload in task.workloads})
    # Neighbouring powers of four share a feature.
    power = math.floor(math.log(roofline.mean_intensity(task, device), 4))
    yield from (f"intensity {power}", f"intensity {power + 1}")
    yield from (f"output {_relation(task, output.shape)}" for output in task.outputs)
    if task.inouts:
        yield "changes its inputs"
    yield from (f"word {word}" for word in tokens(task.summary))


def _relation(task: Task, shape: tuple[str, ...]) -> str:
    """How an output's shape comes about."""
    inputs = [tensor.shape for tensor in (*task.inputs, *task.inouts)]
    if shape in inputs:
        return "like an input"
    if any(set(shape) < set(each) for each in inputs):
        return "reduces an input"
    return "of another shape"
