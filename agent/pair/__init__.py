"""The unfused pair: a candidate of a fused task that runs kernels of its parts one after the other.

Each source stands in a namespace of its own, its tunables settled, its static axes spelt in those of the whole; what
one part hands to the next lies in the workspace. Where a part reads a tensor with its dimensions in another order, that
is copied first: the glue. Not covered: which kernels are paired (fusion).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from agent.pair import cpu, cuda
from agent.pair.steps import NoPair, Step
from agent.parts import Chain, Piece
from sandbox import plan as launch_plan
from sandbox.contract import Candidate, Task

__all__ = ["PROPOSER", "NoPair", "glue_words", "unfused"]

PROPOSER = "unfused"
"""Who proposes the pair; a kernel that a model fused has the model's name."""
_SOURCES = {"cpu": cpu.source, "cuda": cuda.source}


def unfused(task: Task, chain: Chain, kernels: Sequence[Candidate]) -> Candidate:
    """The pair of these kernels, one for each part, as a candidate of `task`. NoPair where they do not go together."""
    steps = [_step(number, *pair) for number, pair in enumerate(zip(chain.pieces, kernels, strict=True), start=1)]
    names = [f"{step.kernel.task} {step.kernel.id[:10]}" for step in steps]
    return Candidate(
        task=task.name,
        target=task.target,
        source=_SOURCES[task.target](task, chain, steps),
        parents=tuple(kernel.id for kernel in kernels),
        operator="compose",
        proposer=PROPOSER,
        note=f"{', then '.join(names)}, unfused",
    )


def glue_words(task: Task, chain: Chain) -> list[str]:
    """What happens between the parts, in words."""
    shapes = {name: ", ".join(tensor.shape) for name, tensor in chain.between.items()}
    words = [f"`{name}` [{shape}] goes from one part to the next." for name, shape in shapes.items()]
    changed = {tensor.name: ", ".join(tensor.shape) for tensor in task.inouts}
    for piece in chain.pieces:
        for tensor in piece.task.inouts:
            if (name := piece.part.tensor(tensor.name)) in changed:
                words.append(f"`{name}` [{changed[name]}] is changed in place by {piece.task.name}.")
        for name, order in piece.part.permute.items():
            source = chain.tensor(task, piece.part.tensor(name))
            turned = ", ".join(source.shape[i] for i in order)
            own = next(", ".join(tensor.shape) for tensor in piece.task.inputs if tensor.name == name)
            words.append(f"`{name}` [{own}] of {piece.task.name} is `{source.name}` laid out as [{turned}].")
    return words


def _step(number: int, piece: Piece, kernel: Candidate) -> Step:
    if re.search(r'extern\s+"C"\s*\{', kernel.source):
        raise NoPair(f'{kernel.task} {kernel.id[:10]} has a block of extern "C"; wanted single functions')
    return Step(piece, kernel, launch_plan.parse(kernel.source, piece.task), number)
