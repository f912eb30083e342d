"""What both targets share: a part with its kernel, its source in a namespace, and the layout of the workspace."""

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
from sandbox.signature import C_TYPES

_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*(<[^>]+>).*$", re.MULTILINE)
_DEFINE = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)", re.MULTILINE)
_ALIGNMENT = 256


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

    @property
    def tunables(self) -> dict[str, int]:
        return launch_plan.settle(self.plan, self.kernel.tunables)

    @property
    def values(self) -> dict[str, str]:
        """What stands for the names in the plan's expressions."""
        return {name: str(value) for name, value in self.tunables.items()} | self.piece.part.axes


@dataclass(frozen=True)
class Region:
    """A stretch of the workspace."""

    name: str
    bytes: str
    """An expression of the plan's grammar."""


# ---------------------------------------------------------------- the source


def head(task: Task, chain: Chain, steps: Sequence[Step], plan: Sequence[str] = ()) -> Iterator[str]:
    """The header comment with the lines of the `plan`, and every part's includes."""
    regions = layout(task, chain, steps)
    static = _static(task, steps)
    yield f"// The best kernels of {' and '.join(step.piece.task.name for step in steps)}, one after the other."
    yield from plan
    if regions:
        yield f"// workspace: {' + '.join(padded(region) for region in regions)}"
    if static:
        yield f"// static: {' '.join(static)}"
    includes = (name for step in steps for name in _INCLUDE.findall(without_comments(step.kernel.source)))
    for name in dict.fromkeys(includes):
        yield from (f"#if __has_include({name})", f"#include {name}", "#endif")


def arithmetic(qualifiers: str) -> str:
    """What expressions in C++ are made of."""
    bodies = {
        "ws_div": "a / b",
        "ws_mod": "a % b",
        "ws_cdiv": "(a + b - 1) / b",
        "ws_min": "a < b ? a : b",
        "ws_max": "a > b ? a : b",
    }
    head = f"[[maybe_unused]] {qualifiers} int64_t"
    return "\n".join(f"{head} {name}(int64_t a, int64_t b) {{ return {body}; }}" for name, body in bodies.items())


def namespace(step: Step, code: str, behind: Sequence[str] = ()) -> Iterator[str]:
    """The part's `code` in its namespace, with its macros before it and undone behind it."""
    code = _INCLUDE.sub("", code)
    for static in step.plan.static:
        value = re.sub(r"[A-Za-z_]\w*", lambda found: f"STATIC_{found[0].upper()}", step.piece.part.axis(static))
        # Without parentheses where it can: some sources make text of it.
        yield f"#define {step.space}_STATIC_{static.upper()} {value if value.isidentifier() else f'({value})'}"
    yield from (f"#define {name} {value}" for name, value in step.tunables.items())
    yield f"namespace {step.space} {{"
    yield re.sub(r"\bSTATIC_(\w+)", rf"{step.space}_STATIC_\1", code).strip("\n")
    yield from behind
    yield "}"
    yield from (f"#undef {name}" for name in dict.fromkeys([*step.tunables, *_DEFINE.findall(code)]))


def arguments(task: Task, step: Step) -> Iterator[str]:
    """What the part's kernel is called with, in the order of the contract."""
    part, own = step.piece.part, step.piece.task
    for tensor in own.tensors:
        yield _turned_pointer(step, tensor) if tensor.name in part.permute else pointer(task, step, tensor.name)
    yield from (parse_expr(part.axis(axis)).to_cpp() for axis in own.axes)
    yield from (scalar.name for scalar in own.scalars)
    yield scratch(step) if step.plan.workspace else "nullptr"


def pointer(task: Task, step: Step, name: str) -> str:
    """What stands for a tensor of the part: a parameter, or a region of the workspace."""
    tensor = next(tensor for tensor in step.piece.task.tensors if tensor.name == name)
    whole = step.piece.part.tensor(name)
    own = {tensor.name for tensor in task.tensors}
    return whole if whole in own else f"reinterpret_cast<{_c_type(tensor)}*>(between_{whole})"


def _turned_pointer(step: Step, tensor: TensorSpec) -> str:
    return f"reinterpret_cast<{_c_type(tensor)}*>({turned(step, tensor.name)})"


def flat(indices: Sequence[int | None], sizes: Sequence[str]) -> str:
    """The offset of an element whose dimensions lie in the order given; None is the last dimension, from its start."""
    text = "0"
    for index in indices:
        text = f"({text}) * {sizes[-1]}" if index is None else f"(({text}) * {sizes[index]} + i{index})"
    return text


def _static(task: Task, steps: Sequence[Step]) -> list[str]:
    """Names of the whole that must be known at compile time, for some part's macros."""
    used = {name for step in steps for static in step.plan.static for name in _static_names(step, static)}
    return [name for name in (*task.axes, *(scalar.name for scalar in task.scalars)) if name in used]


def _static_names(step: Step, static: str) -> frozenset[str]:
    expression = step.piece.part.axis(static)
    if not re.fullmatch(r"[\w\s()+*-]+", expression):
        raise NoPair(f"{step.piece.task.name} has the static axis {static} = {expression}; wanted sums and products")
    return parse_expr(expression).names()


# ---------------------------------------------------------------- the workspace


def layout(task: Task, chain: Chain, steps: Sequence[Step]) -> list[Region]:
    """Tensors between two parts, those in another order, and what the kernels ask for themselves."""
    tensors = [Region(f"between_{name}", _bytes(tensor)) for name, tensor in chain.between.items()]
    copies = [
        Region(turned(step, name), _bytes(chain.tensor(task, step.piece.part.tensor(name))))
        for step in steps
        for name in step.piece.part.permute
    ]
    return [*tensors, *copies, *(Region(scratch(step), workspace(step)) for step in steps if step.plan.workspace)]


def regions(task: Task, chain: Chain, steps: Sequence[Step]) -> Iterator[str]:
    """Declarations of where each region begins."""
    yield "    [[maybe_unused]] const int64_t itemsize = sizeof(scalar_t);"
    yield "    [[maybe_unused]] char* at = static_cast<char*>(workspace);"
    found = layout(task, chain, steps)
    for region in found:
        yield f"    [[maybe_unused]] char* {region.name} = at;"
        # The size of the last one is not needed here, so it may be made of figures that no kernel knows.
        if region != found[-1]:
            yield f"    at += {parse_expr(padded(region)).to_cpp()};"


def workspace(step: Step) -> str:
    """Bytes that the part's own kernel asks for, over the axes of the whole."""
    assert step.plan.workspace is not None
    return substituted(step.plan.workspace.text, step.values)


def padded(region: Region) -> str:
    return f"cdiv({region.bytes}, {_ALIGNMENT})*{_ALIGNMENT}"


def scratch(step: Step) -> str:
    return f"scratch_{step.number}"


def turned(step: Step, name: str) -> str:
    return f"turned_{step.number}_{name}"


def _bytes(tensor: TensorSpec) -> str:
    width = "itemsize" if tensor.dtype == SCALAR_T else str(ITEMSIZE[tensor.dtype])
    return "*".join([*(f"({size})" for size in tensor.shape), width])


def _c_type(tensor: TensorSpec) -> str:
    return SCALAR_T if tensor.dtype == SCALAR_T else C_TYPES[tensor.dtype]
