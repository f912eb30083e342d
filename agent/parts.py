"""What a fused task is made of: `parts.toml` in its folder names other tasks, to be run one after the other.

It says nothing that a verdict depends on, so it is no part of a task's version. Not covered: kernels for the parts, and
what running them one after the other takes (pair).
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent import tasks
from sandbox.contract import Task, TensorSpec, Workload
from sandbox.errors import PlanError, TaskError
from sandbox.expressions import parse_expr
from sandbox.signature import dtype_of, shape_of

FILE = "parts.toml"
_NAME = re.compile(r"[A-Za-z_]\w*")


class Part(BaseModel):
    """One task of several, and how its names are to be read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    axes: dict[str, str] = {}
    """An axis of the part as an expression over those of the whole; one that is missing has the same name."""
    tensors: dict[str, str] = {}
    """A tensor of the part by what the whole calls it, or by a name of its own between two parts."""
    permute: dict[str, tuple[int, ...]] = {}
    """Inputs of the part that are another tensor with its dimensions in this order."""

    def axis(self, name: str) -> str:
        return self.axes.get(name, name)

    def tensor(self, name: str) -> str:
        return self.tensors.get(name, name)


class Parts(BaseModel):
    """parts.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: tuple[Part, ...] = Field(min_length=2)
    between: dict[str, tuple[str, ...]] = {}
    """Shapes, over the axes of the whole, of what one part writes and a later one reads; else they are the writer's."""


@dataclass(frozen=True)
class Piece:
    """A part, and its task."""

    part: Part
    task: Task


@dataclass(frozen=True)
class Chain:
    """The parts of a task, in the order in which they run."""

    pieces: tuple[Piece, ...]
    between: Mapping[str, TensorSpec]
    """What one part writes and a later one reads, over the axes of the whole, by name."""

    def tensor(self, task: Task, name: str) -> TensorSpec:
        """A tensor of the whole, or one between two parts."""
        return next((tensor for tensor in task.tensors if tensor.name == name), None) or self.between[name]


def read(task: Task) -> Chain | None:
    """The parts of a task; None where it has no parts.toml. TaskError says what does not fit."""
    path = task.folder / FILE
    if not path.is_file():
        return None
    try:
        file = Parts.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise TaskError(f"{path}: {exc}") from exc
    except ValidationError as exc:
        fault = exc.errors()[0]
        raise TaskError(f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from exc
    roots = (task.folder.parent, tasks.bundled())
    pieces = tuple(Piece(part, tasks.load(part.task, task.target, roots)) for part in file.parts)
    chain = Chain(pieces, dict(_between(task, pieces, file.between)))
    try:
        _check(task, chain, path)
    except PlanError as exc:
        raise TaskError(f"{path}: {exc}") from exc
    return chain


def substituted(expression: str, values: Mapping[str, str]) -> str:
    """The expression with other expressions in place of names, all at once."""

    def value(found: re.Match[str]) -> str:
        text = values.get(found[0], found[0])
        return text if re.fullmatch(r"\w+", text) else f"({text})"

    return _NAME.sub(value, expression)


def _between(
    task: Task, pieces: Sequence[Piece], shapes: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, TensorSpec]]:
    own = {tensor.name for tensor in task.tensors}
    for piece in pieces:
        for output in piece.task.outputs:
            name = piece.part.tensor(output.name)
            shape = shapes.get(name, tuple(substituted(size, piece.part.axes) for size in output.shape))
            if name not in own:
                yield name, TensorSpec(name=name, shape=shape, dtype=output.dtype)


# ---------------------------------------------------------------- checks


def _check(task: Task, chain: Chain, path: Path) -> None:
    pieces = chain.pieces
    for number, piece in enumerate(pieces, start=1):
        if fault := next(_faults(task, chain, pieces[:number], piece), ""):
            raise TaskError(f"{path}: part {piece.part.task}: {fault}")
    changed = [(piece, tensor) for piece in pieces for tensor in (*piece.task.outputs, *piece.task.inouts)]
    written = {piece.part.tensor(tensor.name) for piece, tensor in changed}
    if missing := [tensor.name for tensor in (*task.outputs, *task.inouts) if tensor.name not in written]:
        raise TaskError(f"{path}: no part writes {missing[0]}")


def _faults(task: Task, chain: Chain, so_far: Sequence[Piece], piece: Piece) -> Iterator[str]:
    """What a part, the last of those `so_far`, names that is not there or is of another size."""
    part, own = piece.part, piece.task
    tensors = [tensor.name for tensor in own.tensors]
    known = {"axes": own.axes, "tensors": tensors, "permute": [tensor.name for tensor in own.inputs]}
    for key, names in known.items():
        yield from (f"it has no {name}, named under {key}" for name in getattr(part, key) if name not in names)
    for axis in own.axes:
        unknown = sorted(parse_expr(part.axis(axis)).names() - set(task.axes))
        yield from (f"its axis {axis} is made of {name}, which is no axis of {task.name}" for name in unknown)
    given = {scalar.name: scalar.type for scalar in task.scalars}
    for scalar in own.scalars:
        if given.get(scalar.name) != scalar.type:
            yield f"{task.name} has no scalar {scalar.name} of type {scalar.type}"
    only_read = {tensor.name for tensor in task.inputs}
    for tensor in (*own.outputs, *own.inouts):
        if part.tensor(tensor.name) in only_read:
            yield f"it writes {tensor.name}, which is {part.tensor(tensor.name)}, an input of {task.name}"
    there = {tensor.name for tensor in task.tensors}
    there |= {earlier.part.tensor(output.name) for earlier in so_far for output in earlier.task.outputs}
    for tensor in own.tensors:
        name = part.tensor(tensor.name)
        if name in there:
            yield from _misfits(task, piece, tensor, chain.tensor(task, name))
        else:
            yield f"its {tensor.name} is {name}, which is no tensor of {task.name} and of no earlier part"


def _misfits(task: Task, piece: Piece, tensor: TensorSpec, source: TensorSpec) -> Iterator[str]:
    """Where a tensor of the part does not hold as much as what it stands for, in any workload."""
    order = piece.part.permute.get(tensor.name, tuple(range(len(source.shape))))
    dimensions = list(range(len(source.shape)))
    if sorted(order) != dimensions:
        yield f"permute: {tensor.name} = {list(order)}, wanted dimensions {dimensions} of {source.name} in some order"
        return
    for workload in (*task.workloads, *task.held_out):
        axes = {name: parse_expr(piece.part.axis(name)).evaluate(workload.axes) for name in piece.task.axes}
        own = Workload(axes=axes, dtype=workload.dtype)
        got, wanted = shape_of(source, workload), shape_of(tensor, own)
        if math.prod(got) != math.prod(wanted) or dtype_of(source, workload) != dtype_of(tensor, own):
            yield f"its {tensor.name} is {list(wanted)} where {source.name} is {list(got)}, on {workload.name}"
