"""Other batch sizes of a user's model: whether it takes them, found by trying.

The first dimension of the first input is taken for the batch, and that of every input that has as many rows; where the
model refuses that, of the first input alone. Not covered: other dimensions, and sizes given as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sandbox.referee.pytorch_file import drawn

AXIS = "B"
"""What the batch is called in shapes; the task may call it something else."""

Answers = Callable[[Sequence[Any]], Sequence[Tensor]]
Shape = tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """A model's batch axis."""

    size: int
    """As the file has it."""
    inputs: tuple[int, ...]
    """Positions of the arguments that have it as their first dimension."""
    outputs: tuple[Shape, ...]
    """Shapes of the outputs, over AXIS."""
    others: tuple[int, ...]
    """Further sizes that the model takes."""


def find(
    module: ModuleType, given: Sequence[Any], outputs: Sequence[Tensor], fixed: Sequence[int], answers: Answers
) -> Batch | str:
    """The batch axis of `answers(arguments)`, which gave `outputs` for `given`; why there is none, as words.

    Arguments at the positions `fixed` have a structure that other sizes would break.
    """
    why = "no input has a dimension"
    for inputs in _groups(given):
        if clash := sorted(set(inputs) & set(fixed)):
            why = f"argument {clash[0]} has a structure that other sizes would break"
            continue
        size = len(given[inputs[0]])
        found: dict[int, tuple[Shape, ...]] = {}
        for other in sizes(size):
            shapes = _tried(module, inputs, size, other, outputs, answers)
            if isinstance(shapes, str):
                why = shapes
            else:
                found[other] = shapes
        # At size 1 a model that broadcasts may give an answer that it did not mean.
        if larger := max((other for other in found if other > 1), default=0):
            taken = tuple(other for other, shapes in found.items() if shapes == found[larger])
            return Batch(size, inputs, found[larger], taken)
    return why


def sizes(size: int) -> list[int]:
    """Batch sizes to try beside the file's own: one, an odd one, and half."""
    odd = 3 * size // 4 | 1
    odd = odd if odd not in (1, size) else size + 1 + size % 2
    return [other for other in dict.fromkeys((1, odd, max(2, size // 2))) if other != size]


def _groups(given: Sequence[Any]) -> Iterator[tuple[int, ...]]:
    """Which arguments may share a batch axis, most of them first."""
    rows = {i: len(value) for i, value in enumerate(given) if isinstance(value, Tensor) and value.dim()}
    if rows:
        first = min(rows)
        shared = tuple(i for i, count in rows.items() if count == rows[first])
        yield from dict.fromkeys((shared, (first,)))


def _tried(
    module: ModuleType, inputs: tuple[int, ...], size: int, other: int, outputs: Sequence[Tensor], answers: Answers
) -> tuple[Shape, ...] | str:
    """The outputs' shapes over AXIS, going by what they are at another size; or what went wrong there."""
    try:
        with torch.no_grad():
            reached = answers(drawn(module, inputs, other))
    # A model may refuse a size in any way it likes; that is an answer, not a fault.
    except Exception as exc:  # noqa: BLE001
        return f"with {other} rows in place of {size}: {type(exc).__name__}: {exc}".splitlines()[0][:200]
    if len(reached) != len(outputs):
        return f"with {other} rows in place of {size} there are {len(reached)} outputs, not {len(outputs)}"
    shapes = [_followed(old.shape, new.shape, size, other) for old, new in zip(outputs, reached, strict=True)]
    for shape, old, new in zip(shapes, outputs, reached, strict=True):
        if shape is None:
            return f"with {other} rows in place of {size} an output is {list(new.shape)}, not {list(old.shape)}"
    return tuple(shape for shape in shapes if shape is not None)


def _followed(old: Sequence[int], new: Sequence[int], size: int, other: int) -> Shape | None:
    """A shape over AXIS that is `old` at `size` and `new` at `other`; None where no multiple of it is."""
    if len(old) != len(new):
        return None
    shape = []
    for was, now in zip(old, new, strict=True):
        if was == now:
            shape.append(str(was))
        elif was % size == 0 and now == was // size * other:
            shape.append(AXIS if was == size else f"{was // size}*{AXIS}")
        else:
            return None
    return tuple(shape)
