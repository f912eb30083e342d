"""The pair on cpu: one function that calls the functions of the parts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from agent.pair.steps import (
    Step,
    arguments,
    arithmetic,
    flat,
    head,
    namespace,
    pointer,
    regions,
    scratch,
    turned,
    workspace,
)
from agent.parts import Chain
from sandbox.contract import Task
from sandbox.duplicates import without_comments
from sandbox.expressions import parse_expr
from sandbox.signature import prototype

_EXTERN = re.compile(r'extern\s+"C"\s*')


def source(task: Task, chain: Chain, steps: Sequence[Step]) -> str:
    """The whole file."""
    parts = [namespace(step, _EXTERN.sub("static ", without_comments(step.kernel.source))) for step in steps]
    lines = [
        *head(task, chain, steps),
        "#include <cstdint>",
        "#include <cstring>",
        arithmetic("static"),
        *(line for part in parts for line in part),
        *_driver(task, chain, steps),
    ]
    return "\n".join([*lines, ""])


def _driver(task: Task, chain: Chain, steps: Sequence[Step]) -> Iterator[str]:
    yield f'extern "C" {prototype(task, task.name)} {{'
    yield from regions(task, chain, steps)
    for step in steps:
        for name, order in step.piece.part.permute.items():
            shape = chain.tensor(task, step.piece.part.tensor(name)).shape
            yield from _permuted(pointer(task, step, name), turned(step, name), shape, order)
        if step.plan.zero_workspace:
            yield f"    std::memset({scratch(step)}, 0, {parse_expr(workspace(step)).to_cpp()});"
        yield f"    {step.space}::{step.piece.task.name}({', '.join(arguments(task, step))});"
    yield "}"


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
    given = flat([i if i in looped else None for i in range(len(order))], sizes)
    turned = flat([i if i in looped else None for i in order], sizes)
    yield f"        std::memcpy(to_{target} + {turned}, from_{target} + {given}, ({row}) * sizeof(*from_{target}));"
