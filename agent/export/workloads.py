"""What a package's `verify` and `bench` need of its tasks, in plain values: they know nothing of Warpsmith.

Not covered: the values of tensors, which are drawn where they are used, and which kernel serves what (provenance).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from agent.export.coverage import Op
from agent.export.signature import arguments
from sandbox.contract import SCALAR_T, Task, TensorSpec, Workload
from sandbox.expressions import parse_expr
from sandbox.signature import dtype_of, nbytes, shape_of

UNCOMPILED = "float64"
"""A dtype that no kernel is compiled for, so a call in it is served by the reference."""


def text(ops: Sequence[Op]) -> str:
    """`workloads.json`: every task once, with all its workloads, and calls that lie beyond what was proven."""
    return json.dumps({op.task.name: _task(op) for op in ops}, indent=1) + "\n"


def _task(op: Op) -> dict[str, Any]:
    task = op.task
    shapes = _once(shape for part in op.parts for shape in part.shapes)
    kept = _once(shape for part in op.parts for shape in part.kept if shape.name not in shapes)
    smallest = min((*task.workloads, *task.held_out), key=lambda w: _bytes(task, w))
    listed = [_workload(task, w, "search") for w in task.workloads]
    listed += [_workload(task, w, "held-out") for w in task.held_out if w.name not in {**shapes, **kept}]
    listed += [_workload(task, w, "shape") for w in shapes.values()]
    listed += [_workload(task, w, "outside") for w in kept.values()]
    if beyond := _beyond(task, smallest, (*task.workloads, *task.held_out, *shapes.values())):
        listed.append(_workload(task, beyond, "outside"))
    if any(tensor.dtype == SCALAR_T for tensor in arguments(task)):
        listed.append(_workload(task, smallest, "outside", UNCOMPILED))
    return {
        "summary": task.summary,
        "target": task.target,
        "tolerance": task.tolerance,
        "inouts": len(task.inouts),
        "workloads": listed,
    }


def _once(shapes: Iterable[Workload]) -> dict[str, Workload]:
    return {shape.name: shape for shape in shapes}


def _beyond(task: Task, workload: Workload, proven: Sequence[Workload]) -> Workload | None:
    """The workload with more of the first axis than any that was proven; None where there is no axis.

    The first axis is what a batch is by custom, so a reference that takes one size of it takes another.
    """
    if not task.axes:
        return None
    most = max(w.axes[task.axes[0]] for w in proven)
    return workload.model_copy(update={"axes": {**workload.axes, task.axes[0]: most + 1}})


def _workload(task: Task, workload: Workload, kind: str, dtype: str = "") -> dict[str, Any]:
    own = dtype or workload.dtype
    return {
        "name": f"{workload.name.removesuffix(workload.dtype)}{own}",
        "kind": kind,
        "dtype": own,
        "scalars": workload.scalars,
        "tensors": [_tensor(task, tensor, workload, dtype) for tensor in arguments(task)],
        "outputs": [_sized(tensor, workload, dtype) for tensor in task.outputs],
    }


def _tensor(task: Task, tensor: TensorSpec, workload: Workload, dtype: str) -> dict[str, Any]:
    bounds = (tensor.fill.low, tensor.fill.high) if tensor.fill.kind == "integers" else ()
    return {
        "name": tensor.name,
        **_sized(tensor, workload, dtype),
        "fill": tensor.fill.kind,
        "bounds": [parse_expr(bound).evaluate(workload.axes) for bound in bounds],
        "changed": tensor in task.inouts,
    }


def _sized(tensor: TensorSpec, workload: Workload, dtype: str) -> dict[str, Any]:
    own = dtype if dtype and tensor.dtype == SCALAR_T else dtype_of(tensor, workload)
    return {"shape": list(shape_of(tensor, workload)), "dtype": own}


def _bytes(task: Task, workload: Workload) -> int:
    return sum(nbytes(tensor, workload) for tensor in task.tensors)
