"""Task folders: `seeds/<name>/` with task.toml, reference.py and numbered seed kernels for each target.

Tasks are content, loaded by path: a user adds one by adding a folder. Not covered: running reference.py, which is
the trusted reference process's business, and judging whether a workload is admissible, which is the judge's.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sandbox import plan
from sandbox.contract import ITEMSIZE, SCALAR_T, Candidate, ScalarSpec, Target, Task, TensorSpec, Workload
from sandbox.errors import PlanError, TaskError
from sandbox.expressions import parse_expr

_FLOATING = ("float16", "bfloat16", "float32")
_SUFFIX: dict[Target, str] = {"cuda": ".cu", "cpu": ".cpp"}
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_SEED_NAME = re.compile(r"(\d+)_\w+")


class _Section(BaseModel):
    """The workloads for one target."""

    model_config = ConfigDict(extra="forbid")

    workloads: tuple[Workload, ...] = Field(min_length=1)
    held_out: tuple[Workload, ...] = ()


class _TaskFile(BaseModel):
    """task.toml, key by key."""

    model_config = ConfigDict(extra="forbid")

    name: str
    summary: str
    axes: tuple[str, ...] = Field(min_length=1)
    bytes: str
    flops: str
    tolerance: float = Field(default=3.0, gt=0)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    inouts: tuple[TensorSpec, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    scalars: tuple[ScalarSpec, ...] = ()
    cuda: _Section | None = None
    cpu: _Section | None = None

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        return self.outputs + self.inouts + self.inputs


class Overview(BaseModel):
    """A task in one line of a list."""

    name: str
    summary: str
    workloads: dict[Target, int]
    """How many there are to search on, by target."""


def bundled() -> Path:
    """The folder of the built-in tasks, beside the agent package in a checkout and in an installed wheel."""
    return Path(__file__).resolve().parent.parent / "seeds"


def available(roots: Sequence[Path] | None = None) -> list[str]:
    """Names of the tasks under `roots` (default: the built-in ones), sorted."""
    found = {toml.parent.name for root in roots or (bundled(),) for toml in root.glob("*/task.toml")}
    return sorted(found)


def overview(roots: Sequence[Path] | None = None) -> list[Overview]:
    """What there is to search for."""
    return [_overview(name, roots or (bundled(),)) for name in available(roots)]


def load(name_or_path: str, target: Target, roots: Sequence[Path] | None = None) -> Task:
    """The task of that name under `roots`, or in the folder of that path.

    TaskError says what is wrong: no such task, a missing file, or the key of task.toml at fault.
    """
    folder = _find(name_or_path, roots or (bundled(),))
    for name in ("task.toml", "reference.py"):
        if not (folder / name).is_file():
            raise TaskError(f"task {folder.name!r} has no {name} in {folder}")
    text = (folder / "task.toml").read_bytes()
    file = _read(text, folder / "task.toml")
    _check_names(file, folder)
    _check_expressions(file, folder)
    section = file.cuda if target == "cuda" else file.cpu
    if section is None:
        raise TaskError(f"task {file.name!r} has no [{target}] section in {folder / 'task.toml'}")
    if not (folder / target).is_dir():
        raise TaskError(f"task {file.name!r} has no folder {folder / target}, wanted seed kernels in it")
    return Task(
        name=file.name,
        version=hashlib.sha256(text + (folder / "reference.py").read_bytes()).hexdigest()[:12],
        summary=file.summary,
        target=target,
        axes=file.axes,
        outputs=file.outputs,
        inouts=file.inouts,
        inputs=file.inputs,
        scalars=file.scalars,
        **_workloads(file, section, folder),
        bytes_moved=file.bytes,
        flops=file.flops,
        tolerance=file.tolerance,
        folder=folder,
    )


def seeds(task: Task) -> list[Candidate]:
    """The task's seed kernels for its target, in the order of their numbers, tunables at their defaults."""
    suffix = _SUFFIX[task.target]
    paths = sorted((task.folder / task.target).glob(f"*{suffix}"), key=_seed_number)
    if not paths:
        raise TaskError(f"task {task.name!r} has no seed kernels: wanted files like {task.target}/1_naive{suffix}")
    return [_seed(task, path) for path in paths]


def _seed(task: Task, path: Path) -> Candidate:
    source = path.read_text(encoding="utf-8")
    try:
        tunables = plan.settle(plan.parse(source, task), {})
    except PlanError as exc:
        raise TaskError(f"{path}: {exc}") from exc
    return Candidate(
        task=task.name,
        target=task.target,
        source=source,
        tunables=tunables,
        operator="seed",
        proposer="seed",
        note=path.name,
    )


def _seed_number(path: Path) -> tuple[int, str]:
    match = _SEED_NAME.fullmatch(path.stem)
    if match is None:
        raise TaskError(f"seed kernel {path}: wanted a name like 1_naive{path.suffix}")
    return int(match[1]), path.name


def _overview(name: str, roots: Sequence[Path]) -> Overview:
    folder = _find(name, roots)
    file = _read((folder / "task.toml").read_bytes(), folder / "task.toml")
    sections: dict[Target, _Section | None] = {"cuda": file.cuda, "cpu": file.cpu}
    counts = {target: len(section.workloads) for target, section in sections.items() if section}
    return Overview(name=file.name, summary=file.summary, workloads=counts)


# ---------------------------------------------------------------- finding and reading


def _find(name_or_path: str, roots: Sequence[Path]) -> Path:
    path = Path(name_or_path).expanduser()
    if "/" in name_or_path or name_or_path.startswith((".", "~")):
        if not path.is_dir():
            raise TaskError(f"task folder {name_or_path} does not exist")
        return path.resolve()
    for root in roots:
        if (root / name_or_path).is_dir():
            return (root / name_or_path).resolve()
    names = available(roots)
    nearest = difflib.get_close_matches(name_or_path, names, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise TaskError(
        f"unknown task {name_or_path!r}: {hint}tasks are {', '.join(names) or 'none'}, or a path to a folder"
    )


def _read(text: bytes, path: Path) -> _TaskFile:
    try:
        return _TaskFile.model_validate(tomllib.loads(text.decode("utf-8")))
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


def _check_names(file: _TaskFile, folder: Path) -> None:
    if file.name != folder.name:
        raise TaskError(f"{folder / 'task.toml'}: name is {file.name!r}, wanted the folder's name {folder.name!r}")
    names = [file.name, *file.axes, *(t.name for t in file.tensors), *(s.name for s in file.scalars), "workspace"]
    for name, count in Counter(names).items():
        if count > 1:
            raise TaskError(f"{folder / 'task.toml'}: the name {name!r} is used {count} times")
        if not _IDENTIFIER.fullmatch(name):
            raise TaskError(f"{folder / 'task.toml'}: {name!r} is no identifier")
    for tensor in file.tensors:
        if tensor.dtype not in (SCALAR_T, *ITEMSIZE):
            wanted = ", ".join((SCALAR_T, *ITEMSIZE))
            raise TaskError(f"{folder / 'task.toml'}: {tensor.name} has dtype {tensor.dtype!r}, wanted one of {wanted}")


def _check_expressions(file: _TaskFile, folder: Path) -> None:
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
            raise TaskError(f"{folder / 'task.toml'}: {what}: {exc}") from exc


def _workloads(file: _TaskFile, section: _Section, folder: Path) -> dict[str, Any]:
    search = tuple(_workload(file, workload, folder) for workload in section.workloads)
    held_out = tuple(_workload(file, workload, folder) for workload in section.held_out)
    for name, count in Counter(w.name for w in search + held_out).items():
        if count > 1:
            raise TaskError(
                f"{folder / 'task.toml'}: {count} workloads are called {name!r}; they may not differ in floats alone"
            )
    return {"workloads": search, "held_out": held_out}


def _workload(file: _TaskFile, workload: Workload, folder: Path) -> Workload:
    """The workload with axes and scalars in the order of the signature, defaults filled in."""
    where = f"{folder / 'task.toml'}: workload {workload.name!r}"
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
