"""Problem sizes that a user has beyond a task's own: read from a flag or a TOML file, held against the signature.

Not covered: whether any kernel is right or fast there (proving).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sandbox.contract import Record, ScalarSpec, Task, Workload
from sandbox.errors import BadInput

FORM = "wanted TASK:NAME=VALUE,… such as layernorm:N=8,D=2048,dtype=float16"
_INTEGER = re.compile(r"[+-]?\d+")


class Shape(Record):
    """Values for the axes and scalars of a task, as they were given."""

    task: str
    values: dict[str, Any]
    place: str
    """Where it stands, for messages."""


def read(texts: Sequence[str], file: Path | None) -> tuple[Shape, ...]:
    """The shapes of every `--shape`, then those of the file: a table array for each task, a table for each shape."""
    return (*(_spelt(text) for text in texts), *(_listed(file) if file else ()))


def workload(task: Task, shape: Shape) -> Workload:
    """The shape as a workload of the task, defaults filled in. BadInput names the axis, scalar or dtype at fault."""
    scalars = [scalar.name for scalar in task.scalars]
    names = (*task.axes, *scalars, "dtype")
    if unknown := sorted(set(shape.values) - set(names)):
        raise BadInput(f"{shape.place}: task {task.name!r} has no axis or scalar {unknown[0]!r}; it has {_all(names)}")
    if missing := [axis for axis in task.axes if axis not in shape.values]:
        raise BadInput(f"{shape.place}: axis {missing[0]!r} is missing; wanted {_all(names)}")
    return Workload(
        axes={axis: _size(shape, axis) for axis in task.axes},
        scalars={scalar.name: _scalar(shape, scalar) for scalar in task.scalars},
        dtype=_dtype(task, shape),
    )


# ---------------------------------------------------------------- reading


def _spelt(text: str) -> Shape:
    place = f"--shape {text}"
    task, colon, rest = text.partition(":")
    pairs = [item.partition("=") for item in rest.split(",")]
    if not task or not colon or not all(name.strip() and equals and value.strip() for name, equals, value in pairs):
        raise BadInput(f"{place}: {FORM}")
    values = {name.strip(): _value(value.strip()) for name, _, value in pairs}
    if len(values) < len(pairs):
        raise BadInput(f"{place}: a name is given twice")
    return Shape(task=task.strip(), values=values, place=place)


def _value(text: str) -> int | float | str:
    if _INTEGER.fullmatch(text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def _listed(file: Path) -> Iterator[Shape]:
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise BadInput(f"--shapes {file}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise BadInput(f"--shapes {file}: {exc}") from exc
    for task, tables in found.items():
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise BadInput(f"--shapes {file}: {task!r} is {tables!r}; wanted tables [[{task}]], one for each shape")
        for number, values in enumerate(tables, start=1):
            yield Shape(task=task, values=values, place=f"{file}, shape {number} of {task}")


# ---------------------------------------------------------------- values


def _size(shape: Shape, axis: str) -> int:
    value = shape.values[axis]
    if type(value) is not int or value < 1:
        raise BadInput(f"{shape.place}: axis {axis!r} is {value!r}, wanted an integer from 1 on")
    return value


def _scalar(shape: Shape, scalar: ScalarSpec) -> int | float:
    value = shape.values.get(scalar.name, scalar.default)
    if value is None:
        raise BadInput(f"{shape.place}: scalar {scalar.name!r} is missing and has no default")
    if type(value) is int or (scalar.type == "float" and type(value) is float):
        return float(value) if scalar.type == "float" else int(value)
    raise BadInput(f"{shape.place}: scalar {scalar.name!r} is {value!r}, wanted {scalar.type}")


def _dtype(task: Task, shape: Shape) -> Any:
    known = list(dict.fromkeys(workload.dtype for workload in task.workloads))
    value = shape.values.get("dtype", known[0] if len(known) == 1 else None)
    if value is None:
        raise BadInput(f"{shape.place}: dtype is missing; wanted {' or '.join(known)}")
    if value not in known:
        raise BadInput(
            f"{shape.place}: dtype {value!r} is not supported: task {task.name!r} for {task.target} is judged in "
            f"{' and '.join(known)} only"
        )
    return value


def _all(names: Sequence[str]) -> str:
    return ", ".join(names)
