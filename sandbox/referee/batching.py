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
            reached = _tried(module, inputs, other, answers)
            shapes = reached if isinstance(reached, str) else _followed(outputs, reached, size, other)
            if not isinstance(shapes, str):
                found[other] = shapes
                continue
            why = f"with {other} rows in place of {size}: {shapes}"
            # What a model refuses is left out. At size 1 one that broadcasts or squeezes may answer otherwise, too.
            if not isinstance(reached, str) and other > 1:
                found.clear()
                break
        larger = {shapes for other, shapes in found.items() if other > 1}
        if len(larger) == 1:
            (common,) = larger
            return Batch(size, inputs, common, tuple(other for other, shapes in found.items() if shapes == common))
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


def _tried(module: ModuleType, inputs: tuple[int, ...], size: int, answers: Answers) -> Sequence[Tensor] | str:
    """The outputs at another size, or in words how the model refused it."""
    try:
        with torch.no_grad():
            return answers(drawn(module, inputs, size))
    # A model may refuse a size in any way it likes; that is an answer, not a fault.
    except Exception as exc:  # noqa: BLE001
        return f"{type(exc).__name__}: {exc}".splitlines()[0][:200]


def _followed(before: Sequence[Tensor], reached: Sequence[Tensor], size: int, other: int) -> tuple[Shape, ...] | str:
    """The outputs' shapes over AXIS, which are those of `before` at `size`; or in words what does not follow."""
    if len(before) != len(reached):
        return f"{len(reached)} outputs, not {len(before)}"
    shapes = []
    for old, new in zip(before, reached, strict=True):
        shape = _over_axis(old.shape, new.shape, size, other)
        if shape is None:
            return f"an output is {list(new.shape)} where it was {list(old.shape)}"
        shapes.append(shape)
    return tuple(shapes)


def _over_axis(old: Sequence[int], new: Sequence[int], size: int, other: int) -> Shape | None:
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
