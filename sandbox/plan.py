"""The launch plan in a candidate's header: parse it, check it, settle it for one workload.

The grammar stands in docs/kernel-contract.md. Not covered: compiling (toolchain) and launching (worker).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Literal

from sandbox.contract import ITEMSIZE, SCALAR_T, Candidate, Device, Record, Task, Workload
from sandbox.errors import PlanError
from sandbox.expressions import Expr, parse_expr, split_arguments
from sandbox.signature import SCALAR_T_IN_C, dtype_of, numel, prototype

CUDA_FIGURES = ("sm_count", "smem_optin")

_LINE = re.compile(r"^//\s*(launch\s+\w+|tensormap\s+\w+|workspace|zero|static|tune-if)\s*:\s*(.*?)\s*$")
_TUNE = re.compile(r"^\s*#\s*define\s+(\w+)\s+(\S+)\s*//\s*tune:\s*(.*?)\s*$")
_COUNT = re.compile(r"[0-9]{1,18}")
_CLAUSE = re.compile(r"\s*([A-Za-z_]+)\s*(\()?")
_GRID_LIMITS = (2**31 - 1, 65535, 65535)
_BLOCK_LIMITS = (1024, 1024, 64)

Triple = tuple[Expr, Expr, Expr]


class Launch(Record):
    """One kernel launch of the plan."""

    kernel: str
    grid: Triple
    block: Triple
    smem: Expr | None = None
    cluster: Triple | None = None
    cooperative: bool = False
    when: Expr | None = None
    line: int


class TensorMap(Record):
    """A TMA descriptor for a tensor of the signature, dimensions outermost first."""

    name: str
    tensor: str
    view: tuple[Expr, ...]
    box: tuple[Expr, ...]
    swizzle: Literal[0, 32, 64, 128]
    line: int


class Tunable(Record):
    name: str
    default: int
    choices: tuple[int, ...]
    line: int


class Plan(Record):
    """Everything a source's header says."""

    launches: tuple[Launch, ...] = ()
    workspace: Expr | None = None
    zero_workspace: bool = False
    static: tuple[str, ...] = ()
    tensormaps: tuple[TensorMap, ...] = ()
    tunables: tuple[Tunable, ...] = ()
    constraints: tuple[Expr, ...] = ()


class ResolvedLaunch(Record):
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    smem_bytes: int = 0
    cluster: tuple[int, int, int] | None = None
    cooperative: bool = False


class ResolvedTensorMap(Record):
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int


class ResolvedPlan(Record):
    """A plan in plain integers, for one workload, one choice of tunables and one device."""

    launches: tuple[ResolvedLaunch, ...]
    workspace_bytes: int
    zero_workspace: bool
    tensormaps: tuple[ResolvedTensorMap, ...]


# ---------------------------------------------------------------- parse


def parse(source: str, task: Task) -> Plan:
    """The plan of `source`; PlanError names the line of whatever is wrong with it."""
    lines = list(enumerate(source.splitlines(), start=1))
    tunables = _unique(tuple(_tunables(lines)), task)
    names = _names(task, tunables)
    found: dict[str, list[tuple[int, str, str]]] = {}
    for number, text in lines:
        if match := _LINE.match(text):
            word, _, name = match[1].partition(" ")
            found.setdefault(word, []).append((number, name.strip(), match[2]))
    plan = Plan(
        launches=tuple(_launch(*entry, names) for entry in found.get("launch", [])),
        workspace=_workspace(found.get("workspace", []), names),
        zero_workspace=_zero(found.get("zero", []), "workspace" in found),
        static=_static(found.get("static", []), task),
        tensormaps=tuple(_tensormap(*entry, task, names) for entry in found.get("tensormap", [])),
        tunables=tunables,
        constraints=tuple(parse_expr(text, number, names) for number, _, text in found.get("tune-if", [])),
    )
    _check_target(plan, task, source)
    return plan


def _tunables(lines: list[tuple[int, str]]) -> Iterator[Tunable]:
    for number, text in lines:
        match = _TUNE.match(text)
        if match is None:
            continue
        name, value, choices = match.groups()
        words = choices.split()
        if not words or not all(_COUNT.fullmatch(word) for word in (value, *words)):
            raise PlanError(f"tunable {name}: got value {value!r}, choices {choices!r}; wanted integers >= 0", number)
        if value not in words:
            raise PlanError(f"tunable {name}: its value {value} is none of its choices {choices}", number)
        yield Tunable(name=name, default=int(value), choices=tuple(dict.fromkeys(map(int, words))), line=number)


def _unique(tunables: tuple[Tunable, ...], task: Task) -> tuple[Tunable, ...]:
    taken = dict.fromkeys(
        (*task.axes, *(s.name for s in task.scalars), "itemsize", *CUDA_FIGURES), "a name of the task"
    )
    for tunable in tunables:
        if tunable.name in taken:
            raise PlanError(f"tunable {tunable.name} is already {taken[tunable.name]}", tunable.line)
        taken[tunable.name] = "a tunable"
    return tunables


def _names(task: Task, tunables: tuple[Tunable, ...]) -> frozenset[str]:
    ints = [scalar.name for scalar in task.scalars if scalar.type == "int"]
    figures = CUDA_FIGURES if task.target == "cuda" else ()
    return frozenset([*task.axes, *ints, *(t.name for t in tunables), "itemsize", *figures])


def _launch(line: int, kernel: str, text: str, names: frozenset[str]) -> Launch:
    clauses = dict(_clauses(text, line, ("grid", "block", "smem", "cluster", "cooperative", "when")))
    for wanted in ("grid", "block"):
        if wanted not in clauses:
            raise PlanError(f"launch {kernel} has no {wanted}(…)", line)

    def single(word: str) -> Expr | None:
        return parse_expr(clauses[word], line, names) if word in clauses else None

    return Launch(
        kernel=kernel,
        grid=_triple(clauses["grid"], line, names),
        block=_triple(clauses["block"], line, names),
        smem=single("smem"),
        cluster=_triple(clauses["cluster"], line, names) if "cluster" in clauses else None,
        cooperative="cooperative" in clauses,
        when=single("when"),
        line=line,
    )


def _clauses(text: str, line: int, known: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield each `word(argument)` of a plan line; a bare word has an empty argument."""
    at, seen = 0, set()
    while at < len(text.rstrip()):
        match = _CLAUSE.match(text, at)
        word = match[1] if match else text[at:].split()[0]
        if match is None or word not in known:
            raise PlanError(f"got {word!r}, wanted one of {', '.join(known)}", line)
        if word in seen:
            raise PlanError(f"{word} stands twice", line)
        if (match[2] is None) != (word == "cooperative"):
            raise PlanError(f"{word} takes {'no' if word == 'cooperative' else 'a'} value in parentheses", line)
        seen.add(word)
        at = match.end() if match[2] is None else _closing(text, match.end(), line)
        yield word, "" if match[2] is None else text[match.end() : at - 1]


def _closing(text: str, start: int, line: int) -> int:
    depth = 1
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at + 1
    raise PlanError(f"no ')' closes {text[start - 1 :]!r}", line)


def _triple(text: str, line: int, names: frozenset[str]) -> Triple:
    parts = split_arguments(text)
    if len(parts) > 3:
        raise PlanError(f"got {len(parts)} dimensions in ({text}), wanted 1 to 3", line)
    x, y, z = (parse_expr(part, line, names) for part in [*parts, "1", "1"][:3])
    return x, y, z


def _workspace(entries: list[tuple[int, str, str]], names: frozenset[str]) -> Expr | None:
    if len(entries) > 1:
        raise PlanError("workspace stands twice", entries[1][0])
    return parse_expr(entries[0][2], entries[0][0], names) if entries else None


def _zero(entries: list[tuple[int, str, str]], has_workspace: bool) -> bool:
    for line, _, text in entries:
        if text != "workspace" or not has_workspace:
            raise PlanError(f"zero: got {text!r}; only a declared workspace can be zeroed", line)
    return bool(entries)


def _static(entries: list[tuple[int, str, str]], task: Task) -> tuple[str, ...]:
    allowed = [*task.axes, *(scalar.name for scalar in task.scalars if scalar.type == "int")]
    names: dict[str, None] = {}
    for line, _, text in entries:
        for name in text.split():
            if name not in allowed:
                raise PlanError(f"static {name!r} is no axis or int scalar; wanted some of {', '.join(allowed)}", line)
            names[name] = None
    return tuple(names)


def _tensormap(line: int, name: str, text: str, task: Task, names: frozenset[str]) -> TensorMap:
    tensor, _, rest = text.partition(" ")
    spec = next((t for t in task.tensors if t.name == tensor), None)
    if spec is None:
        raise PlanError(f"tensormap of {tensor!r}; wanted one of {', '.join(t.name for t in task.tensors)}", line)
    clauses = dict(_clauses(rest, line, ("view", "box", "swizzle")))
    view = split_arguments(clauses["view"]) if "view" in clauses else list(spec.shape)
    box = split_arguments(clauses.get("box", ""))
    if not 1 <= len(view) <= 5 or len(view) != len(box) or not box[0]:
        raise PlanError(
            f"tensormap {name}: {len(view)} dimensions, box({clauses.get('box', '')}); wanted as many, 1 to 5", line
        )
    swizzle = {"": 0, "32B": 32, "64B": 64, "128B": 128}.get(clauses.get("swizzle", "").strip())
    if swizzle is None:
        raise PlanError(f"swizzle({clauses['swizzle']}): wanted 32B, 64B or 128B", line)
    parsed = tuple(parse_expr(part, line, names) for part in view)
    boxes = tuple(parse_expr(part, line, names) for part in box)
    return TensorMap(name=name, tensor=tensor, view=parsed, box=boxes, swizzle=swizzle, line=line)  # type: ignore[arg-type]


def _check_target(plan: Plan, task: Task, source: str) -> None:
    if task.target == "cuda" and not plan.launches:
        raise PlanError("no '// launch NAME: grid(…) block(…)' line in the source; a cuda candidate needs at least one")
    if task.target == "cpu" and (plan.launches or plan.tensormaps):
        line = (plan.launches or plan.tensormaps)[0].line
        raise PlanError("a cpu candidate has no launches or tensor maps; it is one function named like the task", line)
    for entry in plan.launches if task.target == "cuda" else ():
        if not re.search(rf"\b{re.escape(entry.kernel)}\b\s*\(", source):
            raise PlanError(f"launch {entry.kernel}: the source has no kernel of that name", entry.line)
    if task.target == "cpu" and not re.search(rf"\b{re.escape(task.name)}\b\s*\(", source):
        raise PlanError(f'the source has no function {task.name}; wanted extern "C" {prototype(task, task.name)}')


# ---------------------------------------------------------------- settle and resolve


def settle(plan: Plan, tunables: Mapping[str, int]) -> dict[str, int]:
    """A value for every tunable, defaults filled in.

    PlanError for a tunable the plan does not have, or a value that is none of its choices. Constraints are not
    checked here: they may hold axes (see `allowed`).
    """
    known = {tunable.name: tunable for tunable in plan.tunables}
    for name, value in tunables.items():
        if name not in known:
            raise PlanError(f"tunable {name!r} is not declared; declared: {', '.join(known) or 'none'}")
        if value not in known[name].choices:
            raise PlanError(f"tunable {name}: got {value}, wanted one of {known[name].choices}", known[name].line)
    return {name: tunables.get(name, tunable.default) for name, tunable in known.items()}


def allowed(plan: Plan, task: Task, tunables: Mapping[str, int], device: Device) -> bool:
    """Whether every `tune-if` holds on every search workload."""
    values = settle(plan, tunables)
    return all(
        constraint.evaluate(environment(task, workload, values, device))
        for constraint in plan.constraints
        for workload in task.workloads
    )


def environment(task: Task, workload: Workload, tunables: Mapping[str, int], device: Device) -> dict[str, int]:
    """The names an expression of the plan may use, with their values."""
    ints = {s.name: int(workload.scalars[s.name]) for s in task.scalars if s.type == "int"}
    figures = {"sm_count": device.sm_count, "smem_optin": device.smem_optin} if task.target == "cuda" else {}
    return {**workload.axes, **ints, **tunables, "itemsize": ITEMSIZE[workload.dtype], **figures}


def macros(task: Task, plan: Plan, workload: Workload, tunables: Mapping[str, int]) -> dict[str, str]:
    """The -D definitions of the specialisation that serves `workload`; `tunables` must be settled."""
    dtypes = {f"DTYPE_{name.upper()}": str(int(name == workload.dtype)) for name in SCALAR_T_IN_C}
    values = {**workload.axes, **workload.scalars}
    static = {f"STATIC_{name.upper()}": str(int(values[name])) for name in plan.static}
    return {SCALAR_T: SCALAR_T_IN_C[workload.dtype], **dtypes, **static, **{k: str(v) for k, v in tunables.items()}}


def specialisations(task: Task, plan: Plan, tunables: Mapping[str, int]) -> dict[str, dict[str, str]]:
    """The macros for each workload of the task, search and held-out, by workload name."""
    return {w.name: macros(task, plan, w, tunables) for w in (*task.workloads, *task.held_out)}


def resolve(plan: Plan, task: Task, workload: Workload, tunables: Mapping[str, int], device: Device) -> ResolvedPlan:
    """The plan in integers; PlanError where a dimension, a block or the shared memory is beyond the device."""
    env = environment(task, workload, tunables, device)
    launches = tuple(
        _resolve_launch(launch, env, device)
        for launch in plan.launches
        if launch.when is None or launch.when.evaluate(env)
    )
    if plan.launches and not launches:
        raise PlanError(f"no launch's when(…) holds for {workload.name}", plan.launches[0].line)
    workspace = plan.workspace.evaluate(env) if plan.workspace else 0
    if workspace < 0:
        raise PlanError(
            f"workspace of {workspace} bytes for {workload.name}", plan.workspace.line if plan.workspace else 0
        )
    maps = tuple(_resolve_tensormap(entry, task, workload, env) for entry in plan.tensormaps)
    return ResolvedPlan(
        launches=launches, workspace_bytes=workspace, zero_workspace=plan.zero_workspace, tensormaps=maps
    )


def _resolve_launch(launch: Launch, env: Mapping[str, int], device: Device) -> ResolvedLaunch:
    grid = _within(launch.grid, env, "grid", _GRID_LIMITS)
    block = _within(launch.block, env, "block", _BLOCK_LIMITS)
    if block[0] * block[1] * block[2] > 1024:
        raise PlanError(f"a block of {block} has more than 1024 threads", launch.line)
    smem = launch.smem.evaluate(env) if launch.smem else 0
    if not 0 <= smem <= device.smem_optin:
        raise PlanError(f"smem({smem}) is beyond the device's {device.smem_optin} bytes", launch.line)
    cluster = _within(launch.cluster, env, "cluster", (16, 16, 16)) if launch.cluster else None
    return ResolvedLaunch(
        kernel=launch.kernel, grid=grid, block=block, smem_bytes=smem, cluster=cluster, cooperative=launch.cooperative
    )


def _within(triple: Triple, env: Mapping[str, int], what: str, limits: tuple[int, int, int]) -> tuple[int, int, int]:
    for expr, axis, limit in zip(triple, "xyz", limits, strict=True):
        value = expr.evaluate(env)
        if not 1 <= value <= limit:
            raise PlanError(f"{what}.{axis} = {expr.text} = {value}, wanted 1 to {limit}", expr.line)
    x, y, z = (expr.evaluate(env) for expr in triple)
    return x, y, z


def _resolve_tensormap(entry: TensorMap, task: Task, workload: Workload, env: Mapping[str, int]) -> ResolvedTensorMap:
    spec = next(t for t in task.tensors if t.name == entry.tensor)
    shape = tuple(expr.evaluate(env) for expr in entry.view)
    box = tuple(expr.evaluate(env) for expr in entry.box)
    wanted = numel(spec, workload)
    if math.prod(shape) != wanted:
        raise PlanError(
            f"tensormap {entry.name}: view {shape} has {math.prod(shape)} elements, {spec.name} has {wanted}",
            entry.line,
        )
    if not all(1 <= size <= 256 for size in box):
        raise PlanError(f"tensormap {entry.name}: box {box}, wanted 1 to 256 in each dimension", entry.line)
    return ResolvedTensorMap(
        tensor=spec.name, dtype=dtype_of(spec, workload), shape=shape, box=box, swizzle=entry.swizzle
    )


def plan_of(candidate: Candidate, task: Task) -> tuple[Plan, dict[str, int]]:
    """The plan of a candidate and its settled tunables."""
    plan = parse(candidate.source, task)
    return plan, settle(plan, candidate.tunables)
