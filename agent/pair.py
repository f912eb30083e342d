"""The unfused pair: a candidate of a fused task that runs kernels of its parts one after the other, for the cpu target.

Each source stands in a namespace of its own, its tunables settled, its static axes spelt in those of the whole; what
one part hands to the next lies in the workspace. Where a part reads a tensor with its dimensions in another order, that
is copied first: the glue. Not covered: cuda, whose kernels would have to share launches and a parameter list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent.parts import Chain, Piece, substituted
from sandbox import plan as launch_plan
from sandbox.contract import ITEMSIZE, SCALAR_T, Candidate, Task, TensorSpec
from sandbox.duplicates import without_comments
from sandbox.expressions import parse_expr
from sandbox.plan import Plan
from sandbox.signature import C_TYPES, prototype

PROPOSER = "unfused"
"""Who proposes the pair; a kernel that a model fused has the model's name."""
_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*(<[^>]+>).*$", re.MULTILINE)
_DEFINE = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)", re.MULTILINE)
_EXTERN = re.compile(r'extern\s+"C"\s*')
_ALIGNMENT = 64
_ARITHMETIC = """\
namespace {
[[maybe_unused]] int64_t ws_div(int64_t a, int64_t b) { return a / b; }
[[maybe_unused]] int64_t ws_mod(int64_t a, int64_t b) { return a % b; }
[[maybe_unused]] int64_t ws_cdiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
[[maybe_unused]] int64_t ws_min(int64_t a, int64_t b) { return a < b ? a : b; }
[[maybe_unused]] int64_t ws_max(int64_t a, int64_t b) { return a > b ? a : b; }
}"""
"""What expressions in C++ are made of."""


class NoPair(Exception):
    """Kernels that cannot be run one after the other in one file; the message says why, in one line."""


@dataclass(frozen=True)
class Step:
    """A part with the kernel that stands in for it."""

    piece: Piece
    kernel: Candidate
    plan: Plan
    number: int

    @property
    def space(self) -> str:
        return f"part_{self.number}"


@dataclass(frozen=True)
class Region:
    """A stretch of the workspace."""

    name: str
    bytes: str
    """An expression of the plan's grammar."""


def unfused(task: Task, chain: Chain, kernels: Sequence[Candidate]) -> Candidate:
    """The pair of these kernels, one for each part, as a candidate of `task`. NoPair where they do not go together."""
    if task.target != "cpu":
        raise NoPair(f"kernels of several tasks are put into one file for target cpu only, got {task.target}")
    steps = [_step(number, *pair) for number, pair in enumerate(zip(chain.pieces, kernels, strict=True), start=1)]
    names = [f"{step.kernel.task} {step.kernel.id[:10]}" for step in steps]
    return Candidate(
        task=task.name,
        target=task.target,
        source=_source(task, chain, steps),
        parents=tuple(kernel.id for kernel in kernels),
        operator="compose",
        proposer=PROPOSER,
        note=f"{', then '.join(names)}, unfused",
    )


def glue_words(task: Task, chain: Chain) -> list[str]:
    """What happens between the parts, in words."""
    shapes = {name: ", ".join(tensor.shape) for name, tensor in chain.between.items()}
    words = [f"`{name}` [{shape}] goes from one part to the next." for name, shape in shapes.items()]
    for piece in chain.pieces:
        for name, order in piece.part.permute.items():
            source = chain.tensor(task, piece.part.tensor(name))
            turned = ", ".join(source.shape[i] for i in order)
            own = next(", ".join(tensor.shape) for tensor in piece.task.inputs if tensor.name == name)
            words.append(f"`{name}` [{own}] of {piece.task.name} is `{source.name}` laid out as [{turned}].")
    return words


def _step(number: int, piece: Piece, kernel: Candidate) -> Step:
    if re.search(r'extern\s+"C"\s*\{', kernel.source):
        raise NoPair(f'{kernel.task} {kernel.id[:10]} has a block of extern "C"; wanted single functions')
    return Step(piece, kernel, launch_plan.parse(kernel.source, piece.task), number)


# ---------------------------------------------------------------- the file


def _source(task: Task, chain: Chain, steps: Sequence[Step]) -> str:
    regions = [*_between(chain), *_turned(task, chain, steps), *_workspaces(steps)]
    includes = dict.fromkeys(name for step in steps for name in _INCLUDE.findall(without_comments(step.kernel.source)))
    static = _static(task, steps)
    head = [
        f"// The best kernels of {' and '.join(step.piece.task.name for step in steps)}, one after the other.",
        *([f"// workspace: {' + '.join(_padded(region) for region in regions)}"] if regions else []),
        *([f"// static: {' '.join(static)}"] if static else []),
        *(line for name in includes for line in (f"#if __has_include({name})", f"#include {name}", "#endif")),
        "#include <cstdint>",
        "#include <cstring>",
        _ARITHMETIC,
    ]
    bodies = [line for step in steps for line in _body(step)]
    return "\n".join([*head, *bodies, *_driver(task, chain, steps, regions), ""])


def _static(task: Task, steps: Sequence[Step]) -> list[str]:
    """Names of the whole that must be known at compile time, for some part's macros."""
    used = {name for step in steps for static in step.plan.static for name in _static_names(step, static)}
    return [name for name in (*task.axes, *(scalar.name for scalar in task.scalars)) if name in used]


def _static_names(step: Step, static: str) -> frozenset[str]:
    expression = step.piece.part.axis(static)
    if not re.fullmatch(r"[\w\s()+*-]+", expression):
        raise NoPair(f"{step.piece.task.name} has the static axis {static} = {expression}; wanted sums and products")
    return parse_expr(expression).names()


def _body(step: Step) -> Iterator[str]:
    """The part's source in its namespace, with its macros before it and undone behind it."""
    code = _INCLUDE.sub("", without_comments(step.kernel.source))
    for static in step.plan.static:
        value = re.sub(r"[A-Za-z_]\w*", lambda found: f"STATIC_{found[0].upper()}", step.piece.part.axis(static))
        yield f"#define {step.space}_STATIC_{static.upper()} ({value})"
    tunables = launch_plan.settle(step.plan, step.kernel.tunables)
    yield from (f"#define {name} {value}" for name, value in tunables.items())
    yield f"namespace {step.space} {{"
    yield re.sub(r"\bSTATIC_(\w+)", rf"{step.space}_STATIC_\1", _EXTERN.sub("static ", code)).strip("\n")
    yield "}"
    yield from (f"#undef {name}" for name in dict.fromkeys([*tunables, *_DEFINE.findall(code)]))


def _driver(task: Task, chain: Chain, steps: Sequence[Step], regions: Sequence[Region]) -> Iterator[str]:
    yield f'extern "C" {prototype(task, task.name)} {{'
    yield "    [[maybe_unused]] const int64_t itemsize = sizeof(scalar_t);"
    yield "    [[maybe_unused]] char* at = static_cast<char*>(workspace);"
    for region in regions:
        yield f"    [[maybe_unused]] char* {region.name} = at;"
        yield f"    at += {parse_expr(_padded(region)).to_cpp()};"
    for step in steps:
        for name, order in step.piece.part.permute.items():
            shape = chain.tensor(task, step.piece.part.tensor(name)).shape
            yield from _permuted(_pointer(task, step, name), _turned_name(step, name), shape, order)
        if step.plan.zero_workspace:
            yield f"    std::memset({_scratch(step)}, 0, {parse_expr(_workspace(step)).to_cpp()});"
        yield f"    {step.space}::{step.piece.task.name}({', '.join(_arguments(task, step))});"
    yield "}"


def _arguments(task: Task, step: Step) -> Iterator[str]:
    """In the order of the contract."""
    part, own = step.piece.part, step.piece.task
    for tensor in own.tensors:
        if tensor.name in part.permute:
            yield f"reinterpret_cast<{_c_type(tensor)}*>({_turned_name(step, tensor.name)})"
        else:
            yield _pointer(task, step, tensor.name)
    yield from (parse_expr(part.axis(axis)).to_cpp() for axis in own.axes)
    yield from (scalar.name for scalar in own.scalars)
    yield _scratch(step) if step.plan.workspace else "nullptr"


def _pointer(task: Task, step: Step, name: str) -> str:
    """What stands for a tensor of the part: a parameter, or a region of the workspace."""
    tensor = next(tensor for tensor in step.piece.task.tensors if tensor.name == name)
    whole = step.piece.part.tensor(name)
    own = {tensor.name for tensor in task.tensors}
    return whole if whole in own else f"reinterpret_cast<{_c_type(tensor)}*>(between_{whole})"


def _permuted(source: str, target: str, shape: Sequence[str], order: Sequence[int]) -> Iterator[str]:
    """Loops that write `source` to `target` with its dimensions in another order, whole rows at a time where it can."""
    sizes = [parse_expr(size).to_cpp() for size in shape]
    whole = order[-1] == len(order) - 1
    looped = order[:-1] if whole else order
    yield f"    auto* from_{target} = {source};"
    yield f"    auto* to_{target} = reinterpret_cast<decltype(from_{target})>({target});"
    yield f"#pragma omp parallel for collapse({min(2, len(looped))}) schedule(static)"
    yield from (f"    for (int64_t i{i} = 0; i{i} < {sizes[i]}; ++i{i})" for i in looped)
    row = sizes[-1] if whole else "1"
    given = _flat([i if i in looped else None for i in range(len(order))], sizes)
    turned = _flat([i if i in looped else None for i in order], sizes)
    yield f"        std::memcpy(to_{target} + {turned}, from_{target} + {given}, ({row}) * sizeof(*from_{target}));"


def _flat(indices: Sequence[int | None], sizes: Sequence[str]) -> str:
    """The offset of an element whose dimensions lie in the order given; None is the last dimension, from its start."""
    text = "0"
    for index in indices:
        text = f"({text}) * {sizes[-1]}" if index is None else f"(({text}) * {sizes[index]} + i{index})"
    return text


# ---------------------------------------------------------------- the workspace


def _between(chain: Chain) -> Iterator[Region]:
    yield from (Region(f"between_{name}", _bytes(tensor)) for name, tensor in chain.between.items())


def _turned(task: Task, chain: Chain, steps: Sequence[Step]) -> Iterator[Region]:
    for step in steps:
        for name in step.piece.part.permute:
            yield Region(_turned_name(step, name), _bytes(chain.tensor(task, step.piece.part.tensor(name))))


def _workspaces(steps: Sequence[Step]) -> Iterator[Region]:
    yield from (Region(_scratch(step), _workspace(step)) for step in steps if step.plan.workspace)


def _workspace(step: Step) -> str:
    """Bytes that the part's own kernel asks for, over the axes of the whole."""
    assert step.plan.workspace is not None
    tunables = launch_plan.settle(step.plan, step.kernel.tunables)
    values = {name: str(value) for name, value in tunables.items()}
    return substituted(step.plan.workspace.text, values | step.piece.part.axes)


def _padded(region: Region) -> str:
    return f"cdiv({region.bytes}, {_ALIGNMENT})*{_ALIGNMENT}"


def _scratch(step: Step) -> str:
    return f"scratch_{step.number}"


def _turned_name(step: Step, name: str) -> str:
    return f"turned_{step.number}_{name}"


def _bytes(tensor: TensorSpec) -> str:
    width = "itemsize" if tensor.dtype == SCALAR_T else str(ITEMSIZE[tensor.dtype])
    return "*".join([*(f"({size})" for size in tensor.shape), width])


def _c_type(tensor: TensorSpec) -> str:
    return SCALAR_T if tensor.dtype == SCALAR_T else C_TYPES[tensor.dtype]
