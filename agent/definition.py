"""task.toml: read, and checked until a task can be made of it. Every fault names the file and the key.

Not covered: finding task folders and the kernels in them (tasks).
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sandbox.contract import ITEMSIZE, SCALAR_T, ScalarSpec, TensorSpec, Workload
from sandbox.errors import PlanError, TaskError
from sandbox.expressions import parse_expr

_FLOATING = ("float16", "bfloat16", "float32")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


class Section(BaseModel):
    """The workloads for one target."""

    model_config = ConfigDict(extra="forbid")

    workloads: tuple[Workload, ...] = Field(min_length=1)
    held_out: tuple[Workload, ...] = ()


class Definition(BaseModel):
    """task.toml, key by key."""

    model_config = ConfigDict(extra="forbid")

    name: str
    summary: str
    axes: tuple[str, ...] = Field(min_length=1)
    bytes: str
    flops: str
    tolerance: float = Field(default=3.0, gt=0)
    outputs: tuple[TensorSpec, ...] = ()
    inouts: tuple[TensorSpec, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    scalars: tuple[ScalarSpec, ...] = ()
    cuda: Section | None = None
    cpu: Section | None = None

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        return self.outputs + self.inouts + self.inputs


def read(path: Path) -> Definition:
    """The task.toml at `path`, names and expressions checked, workloads in the order of the signature."""
    definition = _parsed(path)
    if not definition.outputs and not definition.inouts:
        raise TaskError(f"{path}: got no outputs and no inouts, wanted at least one tensor that a kernel writes")
    _check_names(definition, path)
    _check_expressions(definition, path)
    sections = {"cuda": definition.cuda, "cpu": definition.cpu}
    checked = {target: _checked(definition, section, path) for target, section in sections.items() if section}
    return definition.model_copy(update=checked)


def _parsed(path: Path) -> Definition:
    try:
        return Definition.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise TaskError(f"{path}: {exc}") from exc
    except ValidationError as exc:
        raise TaskError(f"{path}: {_first_fault(exc)}") from exc


def _first_fault(exc: ValidationError) -> str:
    fault = exc.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key {where!r}"
    if fault["type"] == "missing":
        return f"key {where!r} is missing"
    return f"{where}: {fault['msg']}, got {fault['input']!r}"


# ---------------------------------------------------------------- checks


def check_reference(file: Definition, path: Path) -> None:
    """TaskError where reference.py does not parse, or `reference` does not take the task's tensors and scalars.

    Parsed and never run: that is for the trusted reference process.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as exc:
        raise TaskError(f"{path}: line {getattr(exc, 'lineno', 0)}: {getattr(exc, 'msg', exc)}") from exc
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "reference"]
    tensors = [tensor.name for tensor in (*file.inouts, *file.inputs)]
    wanted = f"reference({', '.join([*tensors, *(['*', *(s.name for s in file.scalars)] if file.scalars else [])])})"
    if not functions and b"reference" in path.read_bytes():
        return  # An alias or an import: only running it would tell.
    if not functions:
        raise TaskError(f"{path}: no function reference; wanted def {wanted}")
    taken = functions[-1].args
    positional = [*taken.posonlyargs, *taken.args]
    keywords = {argument.arg for argument in (*taken.args, *taken.kwonlyargs)}
    missing = [scalar.name for scalar in file.scalars if scalar.name not in keywords and not taken.kwarg]
    if missing or (len(positional) < len(tensors) and not taken.vararg):
        got = ast.unparse(taken)
        raise TaskError(f"{path}: line {functions[-1].lineno}: got reference({got}), wanted {wanted}")


def _check_names(file: Definition, path: Path) -> None:
    if file.name != path.parent.name:
        raise TaskError(f"{path}: name is {file.name!r}, wanted the folder's name {path.parent.name!r}")
    names = [file.name, *file.axes, *(t.name for t in file.tensors), *(s.name for s in file.scalars), "workspace"]
    for name, count in Counter(names).items():
        if count > 1:
            raise TaskError(f"{path}: the name {name!r} is used {count} times")
        if not _IDENTIFIER.fullmatch(name):
            raise TaskError(f"{path}: {name!r} is no identifier")
    for tensor in file.tensors:
        if tensor.dtype not in (SCALAR_T, *ITEMSIZE):
            wanted = ", ".join((SCALAR_T, *ITEMSIZE))
            raise TaskError(f"{path}: {tensor.name} has dtype {tensor.dtype!r}, wanted one of {wanted}")


def _check_expressions(file: Definition, path: Path) -> None:
    ints = [s.name for s in file.scalars if s.type == "int"]
    expressions: list[tuple[str, str, Iterable[str]]] = [
        ("bytes", file.bytes, (*file.axes, *ints, "itemsize")),
        ("flops", file.flops, (*file.axes, *ints)),
    ]
    for tensor in file.tensors:
        expressions += [(f"shape of {tensor.name}", size, file.axes) for size in tensor.shape]
        expressions += [(f"fill of {tensor.name}", bound, file.axes) for bound in (tensor.fill.low, tensor.fill.high)]
    for what, text, names in expressions:
        try:
            parse_expr(text, names=names)
        except PlanError as exc:
            raise TaskError(f"{path}: {what}: {exc}") from exc


def _checked(file: Definition, section: Section, path: Path) -> Section:
    search = tuple(_workload(file, workload, path) for workload in section.workloads)
    held_out = tuple(_workload(file, workload, path) for workload in section.held_out)
    for name, count in Counter(w.name for w in search + held_out).items():
        if count > 1:
            raise TaskError(f"{path}: {count} workloads are called {name!r}; they may not differ in floats alone")
    return Section(workloads=search, held_out=held_out)


def _workload(file: Definition, workload: Workload, path: Path) -> Workload:
    """The workload with axes and scalars in the order of the signature, defaults filled in."""
    where = f"{path}: workload {workload.name!r}"
    if set(workload.axes) != set(file.axes):
        raise TaskError(f"{where}: got axes {sorted(workload.axes)}, wanted {sorted(file.axes)}")
    if any(size < 1 for size in workload.axes.values()):
        raise TaskError(f"{where}: every axis must be at least 1")
    if workload.dtype not in _FLOATING:
        raise TaskError(f"{where}: got dtype {workload.dtype!r}, wanted one of {', '.join(_FLOATING)}")
    unknown = sorted(set(workload.scalars) - {s.name for s in file.scalars})
    if unknown:
        raise TaskError(f"{where}: unknown scalar {unknown[0]!r}")
    scalars = {spec.name: _scalar(spec, workload, where) for spec in file.scalars}
    return Workload(axes={axis: workload.axes[axis] for axis in file.axes}, scalars=scalars, dtype=workload.dtype)


def _scalar(spec: ScalarSpec, workload: Workload, where: str) -> float | int:
    value = workload.scalars.get(spec.name, spec.default)
    if value is None:
        raise TaskError(f"{where}: scalar {spec.name!r} has no value and no default")
    if spec.type == "float":
        return float(value)
    if not isinstance(value, int):
        raise TaskError(f"{where}: scalar {spec.name!r} is {value!r}, wanted an int")
    return value
