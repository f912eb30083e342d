"""What a task came to: signature, sizes and tolerance in one record, for a person who is about to search with it.

Not covered: whether the judge admits its workloads, which takes running them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from agent import importing, tasks
from sandbox.contract import ITEMSIZE, Record, ScalarSpec, Target, Task, TensorSpec, Workload
from sandbox.expressions import parse_expr
from sandbox.signature import nbytes, prototype

_MODES = {
    "train": "train, as a model starts; the same inputs give the same answer",
    "eval": "eval: in train mode the same inputs give other answers",
}


class Parameter(Record):
    """A tensor of the kernel's signature."""

    role: Literal["output", "in-out", "input", "weight"]
    name: str
    shape: tuple[str, ...]
    dtype: str
    origin: str = ""
    """Of a weight: its name in the PyTorch module."""


class Size(Record):
    """A workload, and what it weighs."""

    name: str
    floor_bytes: int
    """The fewest bytes that must move."""
    held_bytes: int
    """Of all its tensors."""


class Checked(Record):
    """A task that could be made, and how."""

    name: str
    version: str
    target: Target
    summary: str
    prototype: str
    """As a kernel that is called like the task declares itself."""
    axes: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    scalars: tuple[ScalarSpec, ...]
    dtypes: tuple[str, ...]
    """What scalar_t can be."""
    workloads: tuple[Size, ...]
    held_out: tuple[Size, ...]
    bytes_moved: str
    tolerance: float
    mode: str = ""
    """Of a PyTorch module: train or eval, and why."""
    why_fixed: str = ""
    """Why the batch of a PyTorch module is no axis."""
    seeds: int
    """Kernels that there are to start from."""


def check(name_or_path: str, target: Target) -> Checked:
    """What the task is. BadInput says exactly why there is none."""
    path = Path(name_or_path).expanduser()
    if path.suffix == ".py":
        found = importing.read(path, target)
        return checked(found.task, why_fixed=found.why_fixed)
    task = tasks.load(name_or_path, target)
    return checked(task, seeds=0 if path.suffix in tasks.FILES else len(tasks.seeds(task)))


def checked(task: Task, seeds: int = 0, why_fixed: str = "") -> Checked:
    """The same of a task that is at hand."""
    return Checked(
        prototype=f'extern "C" {"__global__ " if task.target == "cuda" else ""}{prototype(task, task.name)}',
        parameters=_parameters(task),
        dtypes=tuple(dict.fromkeys(workload.dtype for workload in (*task.workloads, *task.held_out))),
        workloads=tuple(_size(task, workload) for workload in task.workloads),
        held_out=tuple(_size(task, workload) for workload in task.held_out),
        mode=_MODES[task.module.mode] if task.module else "",
        why_fixed=why_fixed,
        seeds=seeds,
        **task.model_dump(
            include={"name", "version", "target", "summary", "axes", "scalars", "bytes_moved", "tolerance"}
        ),
    )


def _parameters(task: Task) -> tuple[Parameter, ...]:
    weights = task.module.weights if task.module else ()
    given = len(task.inputs) - len(weights)
    return (
        *(_parameter("output", spec) for spec in task.outputs),
        *(_parameter("in-out", spec) for spec in task.inouts),
        *(_parameter("input", spec) for spec in task.inputs[:given]),
        *(_parameter("weight", spec, name) for spec, name in zip(task.inputs[given:], weights, strict=True)),
    )


def _parameter(role: Literal["output", "in-out", "input", "weight"], spec: TensorSpec, origin: str = "") -> Parameter:
    return Parameter(role=role, name=spec.name, shape=spec.shape, dtype=spec.dtype, origin=origin)


def _size(task: Task, workload: Workload) -> Size:
    ints = {spec.name: int(workload.scalars[spec.name]) for spec in task.scalars if spec.type == "int"}
    known = {**workload.axes, **ints, "itemsize": ITEMSIZE[workload.dtype]}
    return Size(
        name=workload.name,
        floor_bytes=parse_expr(task.bytes_moved).evaluate(known),
        held_bytes=sum(nbytes(tensor, workload) for tensor in task.tensors),
    )
