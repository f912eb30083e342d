"""The pair on cuda: the launches of the parts in one plan, each kernel behind one that has the parameters of the whole.

Not covered: tensor maps of what lies between two parts, and workspaces that depend on the device's figures, but for
that of the last part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from agent.pair.steps import (
    NoPair,
    Step,
    arguments,
    arithmetic,
    flat,
    head,
    namespace,
    pointer,
    regions,
    turned,
)
from agent.parts import Chain, substituted
from sandbox.contract import Task
from sandbox.duplicates import without_comments
from sandbox.expressions import parse_expr
from sandbox.plan import CUDA_FIGURES
from sandbox.signature import prototype

_KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+((?:__launch_bounds__\s*\([^{;]*?\)\s*)?)(\w+)\s*\(')
_MAP = re.compile(r"const\s+__grid_constant__\s+CUtensorMap\s+(\w+)")
_LINE = re.compile(r"^//\s*(launch|tensormap)\s+(\w+)\s*:\s*(.*?)\s*$", re.MULTILINE)
_COPYING = 256
"""Threads of a block that copies."""


def source(task: Task, chain: Chain, steps: Sequence[Step]) -> str:
    """The whole file."""
    # The last region's size is asked of the plan alone.
    for step in steps[:-1]:
        if step.plan.workspace and step.plan.workspace.names() & set(CUDA_FIGURES):
            raise NoPair(f"the workspace of {step.kernel.task} {step.kernel.id[:10]} depends on the device")
    maps = tuple(name for step in steps for name in _maps(step))
    lines = [
        *head(task, chain, steps, [*_launches(task, chain, steps), *_tensormaps(task, steps), *_zero(steps)]),
        arithmetic("static __device__"),
        *(line for step in steps for line in _glue(task, chain, steps, step, maps)),
        *(line for step in steps for line in _part(task, chain, steps, step, maps)),
    ]
    return "\n".join([*lines, ""])


# ---------------------------------------------------------------- the plan


def _launches(task: Task, chain: Chain, steps: Sequence[Step]) -> Iterator[str]:
    for step in steps:
        for name in step.piece.part.permute:
            total = "*".join(f"({size})" for size in chain.tensor(task, step.piece.part.tensor(name)).shape)
            yield f"// launch glue_{turned(step, name)}: grid(cdiv({total}, {8 * _COPYING})) block({_COPYING})"
        for kernel, text in _lines(step, "launch"):
            yield f"// launch {step.space}_{kernel}: {substituted(text, step.values)}"


def _tensormaps(task: Task, steps: Sequence[Step]) -> Iterator[str]:
    own = {tensor.name for tensor in task.tensors}
    for step in steps:
        for name, text in _lines(step, "tensormap"):
            tensor, _, rest = text.partition(" ")
            whole = step.piece.part.tensor(tensor)
            if whole not in own or tensor in step.piece.part.permute:
                raise NoPair(
                    f"{step.kernel.task} {step.kernel.id[:10]} has a tensor map of {tensor}, which is in the workspace"
                )
            yield f"// tensormap {step.space}_{name}: {whole} {substituted(rest, step.values)}"


def _zero(steps: Sequence[Step]) -> Iterator[str]:
    if any(step.plan.zero_workspace for step in steps):
        yield "// zero: workspace"


def _lines(step: Step, word: str) -> list[tuple[str, str]]:
    """Name and text of the lines of a plan that begin with the word."""
    return [(name, text) for found, name, text in _LINE.findall(step.kernel.source) if found == word]


def _maps(step: Step) -> list[str]:
    return [f"{step.space}_{name}" for name, _ in _lines(step, "tensormap")]


# ---------------------------------------------------------------- the kernels


def _part(task: Task, chain: Chain, steps: Sequence[Step], step: Step, maps: tuple[str, ...]) -> Iterator[str]:
    """The part's kernels as functions, and behind them kernels that call them."""
    code = without_comments(step.kernel.source)
    bounds = {name: text.strip() for text, name in _KERNEL.findall(code)}
    if missing := [name for name, _ in _lines(step, "launch") if name not in bounds]:
        raise NoPair(
            f'{step.kernel.task} {step.kernel.id[:10]}: {missing[0]} is not defined as extern "C" __global__ void'
        )
    functions = _MAP.sub(r"const CUtensorMap& \1", _KERNEL.sub(r"static __device__ __forceinline__ void \2(", code))
    given = ", ".join([*arguments(task, step), *_maps(step)])
    wrappers: list[str] = []
    for name in dict.fromkeys(name for name, _ in _lines(step, "launch")):
        head = prototype(task, f"{bounds[name]} {step.space}_{name}".strip(), maps)
        wrappers += [f'extern "C" __global__ {head} {{', *regions(task, chain, steps), f"    {name}({given});", "}"]
    yield from namespace(step, functions, wrappers)


def _glue(task: Task, chain: Chain, steps: Sequence[Step], step: Step, maps: tuple[str, ...]) -> Iterator[str]:
    """Kernels that lay tensors out in another order, 16 bytes at a time where rows stay whole and allow it."""
    for name, order in step.piece.part.permute.items():
        shape = chain.tensor(task, step.piece.part.tensor(name)).shape
        sizes = [parse_expr(size).to_cpp() for size in shape]
        target, wide = turned(step, name), f"{sizes[-1]} * int64_t(sizeof(*from)) / 16"
        yield f'extern "C" __global__ {prototype(task, f"glue_{target}", maps)} {{'
        yield from regions(task, chain, steps)
        yield f"    const auto* from = {pointer(task, step, name)};"
        yield from _copying([*sizes[:-1], "last"], order)
        if order[-1] == len(order) - 1:
            yield f"    if ({sizes[-1]} * sizeof(*from) % 16 == 0)"
            yield f"        copy(reinterpret_cast<uint4*>({target}), reinterpret_cast<const uint4*>(from), {wide});"
            yield "    else"
        yield f"    copy(reinterpret_cast<scalar_t*>({target}), from, {sizes[-1]});"
        yield "}"


def _copying(sizes: Sequence[str], order: Sequence[int]) -> Iterator[str]:
    """A function of target, source and length of the last dimension that copies element by element of the target."""
    yield "    const auto copy = [&](auto* to, const auto* given, int64_t last) {"
    yield f"        const int64_t total = {' * '.join(sizes)}, stride = gridDim.x * int64_t({_COPYING});"
    yield f"        for (int64_t i = blockIdx.x * int64_t({_COPYING}) + threadIdx.x; i < total; i += stride) {{"
    yield "            int64_t rest = i;"
    for dimension in reversed(order):
        yield f"            const int64_t i{dimension} = rest % {sizes[dimension]};"
        yield f"            rest /= {sizes[dimension]};"
    yield f"            to[i] = given[{flat(range(len(order)), sizes)}];"
    yield "        }"
    yield "    };"
