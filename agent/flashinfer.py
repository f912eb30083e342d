"""A task made of a FlashInfer-Bench definition: axes, inputs, outputs and a reference function `run`, as JSON.

The format is that of FlashInfer Trace (bench.flashinfer.ai, Definition). Variable axes get sizes of our own. Not
covered: recorded workloads, and so definitions whose inputs mean nothing without one: indices, lengths, 8-bit floats.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from agent.importing import RESERVED, kept, read_text, require_spellable, unique
from sandbox.contract import ITEMSIZE, SCALAR_T, Dtype, Fill, ScalarSpec, Target, Task, TensorSpec, Workload
from sandbox.errors import PlanError, TaskError
from sandbox.expressions import parse_expr

SEARCHED = (16, 256, 64)
HELD_OUT = (37, 1)
"""Sizes of a variable axis. Where there are several axes, each begins at another of them."""
SCALARS = {"searched": 0.125, "held out": 0.25}
"""Values of every float scalar."""
_FLOATING: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")
_REFERENCE = """\
{reference}


def reference(*tensors, **scalars):
    result = run(**dict(zip({inputs!r}, tensors, strict=True)), **scalars)
    if isinstance(result, dict):
        return tuple(result[name] for name in {outputs!r})
    return tuple(result) if isinstance(result, tuple | list) else (result,)
"""


class Axis(BaseModel):
    type: Literal["const", "var"]
    value: int | None = None


class Tensor(BaseModel):
    shape: tuple[str, ...] | None
    """None for a scalar."""
    dtype: str


class Definition(BaseModel):
    """The keys of a definition that a task needs; others are passed over."""

    name: str
    description: str | None = None
    axes: dict[str, Axis]
    constraints: list[str] | None = None
    inputs: dict[str, Tensor] = Field(min_length=1)
    outputs: dict[str, Tensor] = Field(min_length=1)
    reference: str


def load(path: Path, target: Target) -> Task:
    """The task of the definition at `path`. BadInput or TaskError where none can be made of it."""
    text = read_text(path)
    try:
        definition = Definition.model_validate_json(text)
    except ValidationError as exc:
        fault = exc.errors()[0]
        raise TaskError(f"{path}: {'.'.join(map(str, fault['loc'])) or 'JSON'}: {fault['msg']}") from exc
    _check(path, definition)
    tensors = {name: tensor for name, tensor in definition.inputs.items() if tensor.shape is not None}
    scalars = [name for name, tensor in definition.inputs.items() if tensor.shape is None]
    axes = [axis for axis in definition.axes if any(axis in (t.shape or ()) for t in _all(definition))]
    names = unique([*definition.outputs, *tensors], taken=(*axes, *scalars))
    dtype = next(d for t in (*definition.outputs.values(), *tensors.values()) for d in _FLOATING if d == t.dtype)
    specs = [
        _spec(definition, name, tensor, dtype)
        for name, tensor in zip(names, (*definition.outputs.values(), *tensors.values()), strict=True)
    ]
    reference = _REFERENCE.format(
        reference=definition.reference, inputs=tuple(tensors), outputs=tuple(definition.outputs)
    )
    task = Task(
        name=_identifier(definition.name),
        version=hashlib.sha256(json.dumps([text, SEARCHED, HELD_OUT]).encode()).hexdigest()[:12],
        summary=(definition.description or definition.name).split("\n")[0],
        target=target,
        axes=tuple(axes),
        outputs=tuple(specs[: len(definition.outputs)]),
        inputs=tuple(specs[len(definition.outputs) :]),
        scalars=tuple(ScalarSpec(name=name, type="float") for name in scalars),
        workloads=_workloads(path, definition, axes, scalars, dtype, "searched"),
        held_out=_workloads(path, definition, axes, scalars, dtype, "held out"),
        bytes_moved=" + ".join(_bytes(spec) for spec in specs),
        flops="0",
        folder=kept({"reference.py": reference, "definition.json": text}),
    )
    require_spellable(path, task)
    return task


def _all(definition: Definition) -> list[Tensor]:
    return [*definition.outputs.values(), *definition.inputs.values()]


def _check(path: Path, definition: Definition) -> None:
    for name, axis in definition.axes.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name, flags=re.ASCII) or name in RESERVED:
            raise TaskError(f"{path}: axis {name!r} is no name that C++ allows")
        if axis.type == "const" and (axis.value is None or axis.value < 1):
            raise TaskError(f"{path}: axis {name} is const and has value {axis.value}, wanted at least 1")
    for name, tensor in (*definition.outputs.items(), *definition.inputs.items()):
        if tensor.dtype not in _FLOATING:
            wanted = ", ".join(_FLOATING)
            raise TaskError(f"{path}: {name} is {tensor.dtype}, wanted {wanted}: no values can be drawn for others")
        if unknown := sorted(set(tensor.shape or ()) - set(definition.axes)):
            raise TaskError(f"{path}: {name} has a dimension {unknown[0]!r} that is no axis")
        if tensor.shape == () or (tensor.shape is None and name in definition.outputs):
            raise TaskError(f"{path}: {name} has no dimensions; wanted one or more")
    _check_run(path, definition)


def _check_run(path: Path, definition: Definition) -> None:
    try:
        tree = ast.parse(definition.reference)
    except SyntaxError as exc:
        raise TaskError(f"{path}: reference: line {exc.lineno}: {exc.msg}") from exc
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    wanted = f"def run({', '.join(definition.inputs)})"
    if not found:
        raise TaskError(f"{path}: reference has no function run; wanted {wanted}")
    taken = found[-1].args
    missing = set(definition.inputs) - {a.arg for a in (*taken.args, *taken.kwonlyargs)}
    if missing and not taken.kwarg:
        raise TaskError(f"{path}: reference: line {found[-1].lineno}: got run({ast.unparse(taken)}), wanted {wanted}")


def _spec(definition: Definition, name: str, tensor: Tensor, dtype: Dtype) -> TensorSpec:
    """An input of constant shape is taken for a weight."""
    shape = tensor.shape or ()
    varies = any(definition.axes[axis].type == "var" for axis in shape)
    own = SCALAR_T if tensor.dtype == dtype else tensor.dtype
    return TensorSpec(name=name, shape=shape, dtype=own, fill=Fill(kind="activation" if varies else "weight"))


def _bytes(spec: TensorSpec) -> str:
    return "*".join([*spec.shape, "itemsize" if spec.dtype == SCALAR_T else str(ITEMSIZE[spec.dtype])])


def _identifier(name: str) -> str:
    found = re.sub(r"\W", "_", name, flags=re.ASCII)
    return found if re.match(r"[A-Za-z_]", found) and found not in RESERVED else f"task_{found}"


def _workloads(
    path: Path,
    definition: Definition,
    axes: list[str],
    scalars: list[str],
    dtype: Dtype,
    purpose: Literal["searched", "held out"],
) -> tuple[Workload, ...]:
    """One for each size; those that break a constraint are left out. TaskError where none to search on is left."""
    variable = [axis for axis in axes if definition.axes[axis].type == "var"]
    choices = SEARCHED if purpose == "searched" else HELD_OUT
    found: dict[str, Workload] = {}
    for k in range(len(choices)):
        sizes = {axis: definition.axes[axis].value or 0 for axis in axes}
        sizes |= {axis: choices[(k + i) % len(choices)] for i, axis in enumerate(variable)}
        if _holds(path, definition, sizes):
            workload = Workload(axes=sizes, scalars=dict.fromkeys(scalars, SCALARS[purpose]), dtype=dtype)
            found[workload.name] = workload
    if not found and purpose == "searched":
        raise TaskError(f"{path}: no sizes of {', '.join(variable)} were found that meet {definition.constraints}")
    return tuple(found.values()) if variable or purpose == "searched" else ()


def _holds(path: Path, definition: Definition, sizes: dict[str, int]) -> bool:
    try:
        return all(parse_expr(text, names=sizes).evaluate(sizes) for text in definition.constraints or ())
    except PlanError as exc:
        raise TaskError(f"{path}: constraint: {exc}") from exc
