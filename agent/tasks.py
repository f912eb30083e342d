"""Task folders: `seeds/<name>/` with task.toml, reference.py and numbered seed kernels for each target.

Tasks are content, loaded by path: a user adds one by adding a folder, or names a file that one is made of (importing,
flashinfer). Not covered: running reference.py, which is the trusted reference process's business, and judging whether
a workload is admissible, which is the judge's.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel

from agent import definition, flashinfer, importing
from sandbox import plan
from sandbox.contract import Candidate, Target, Task
from sandbox.errors import BadInput, PlanError, TaskError

_SUFFIX: dict[Target, str] = {"cuda": ".cu", "cpu": ".cpp"}
FILES: dict[str, Callable[[Path, Target], Task]] = {".py": importing.load, ".json": flashinfer.load}
"""What else than a folder a task is made of, by suffix; such a task has no seed kernels."""
_SEED_NAME = re.compile(r"(\d+)_\w+")


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
    """The task of that name under `roots`, in the folder of that path, or made of the file of that path.

    BadInput says what is wrong: no such task, a missing file, the key of task.toml at fault, or the line of the file.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix in FILES:
        return FILES[path.suffix](path, target)
    folder = _find(name_or_path, roots or (bundled(),))
    for name in ("task.toml", "reference.py"):
        if not (folder / name).is_file():
            raise TaskError(f"task {folder.name!r} has no {name} in {folder}")
    file = definition.read(folder / "task.toml")
    definition.check_reference(file, folder / "reference.py")
    section = file.cuda if target == "cuda" else file.cpu
    if section is None:
        raise TaskError(f"task {file.name!r} has no [{target}] section in {folder / 'task.toml'}")
    if not (folder / target).is_dir():
        raise TaskError(f"task {file.name!r} has no folder {folder / target}, wanted seed kernels in it")
    return Task(
        name=file.name,
        version=_version(folder),
        summary=file.summary,
        target=target,
        axes=file.axes,
        outputs=file.outputs,
        inouts=file.inouts,
        inputs=file.inputs,
        scalars=file.scalars,
        workloads=section.workloads,
        held_out=section.held_out,
        bytes_moved=file.bytes,
        flops=file.flops,
        tolerance=file.tolerance,
        folder=folder,
    )


def _version(folder: Path) -> str:
    """Changes with what a verdict depends on; kernels are no part of it."""
    content = (folder / "task.toml").read_bytes() + (folder / "reference.py").read_bytes()
    return hashlib.sha256(content).hexdigest()[:12]


def seeds(task: Task, own: Sequence[Path] = (), required: bool = True) -> list[Candidate]:
    """Kernels to start from: the user's `own`, then those of the task's folder in the order of their numbers.

    Tunables are at their defaults. TaskError where there is none, though one is `required`.
    """
    suffix = _SUFFIX[task.target]
    paths = sorted((task.folder / task.target).glob(f"*{suffix}"), key=_seed_number)
    if required and not paths and not own and not (task.folder / "task.toml").exists():
        raise TaskError(
            f"task {task.name!r} is made of a file and has no seed kernels: give some with --seed-kernel FILE, "
            "or a model that writes them with --model NAME"
        )
    if required and not paths and not own:
        raise TaskError(f"task {task.name!r} has no seed kernels: wanted files like {task.target}/1_naive{suffix}")
    _check_own(own, suffix, Counter(path.name for path in (*own, *paths)))
    return [_seed(task, path, importing.read_text(path)) for path in (*own, *paths)]


def _check_own(own: Sequence[Path], suffix: str, names: Counter[str]) -> None:
    for path in own:
        if path.suffix != suffix:
            raise BadInput(f"seed kernel {path}: wanted a {suffix} file for this target")
        if names[path.name] > 1:
            raise BadInput(
                f"seed kernel {path}: {names[path.name]} seeds are called {path.name}; wanted a name of its own"
            )


def _seed(task: Task, path: Path, source: str) -> Candidate:
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
    file = definition.read(folder / "task.toml")
    sections: dict[Target, definition.Section | None] = {"cuda": file.cuda, "cpu": file.cpu}
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
        f"unknown task {name_or_path!r}: {hint}tasks are {', '.join(names) or 'none'}, "
        "or a path to a folder, a PyTorch file or a definition"
    )
