"""How kernels of another task are called differently: what stands between copying their code and compiling it.

Not covered: what the other task computes, and other sizes of axes with the same name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sandbox.contract import Task
from sandbox.signature import parameters


def differences(task: Task, other: Task) -> Iterator[str]:
    """Where kernels of `other` are called otherwise than those of `task`, a line each; none where they are not."""
    here, there = parameters(task), parameters(other)
    if more := [each for each in there if each not in here]:
        yield f"only there: {_listed(more)}"
    if less := [each for each in here if each not in there]:
        yield f"only here: {_listed(less)}"
    if [each for each in there if each in here] != [each for each in here if each in there]:
        yield "the parameters that both have stand in another order"
    yield from _shapes(task, other)
    if (own := _dtypes(task)) != (its := _dtypes(other)):
        yield f"`scalar_t` is {' or '.join(its)} there, {' or '.join(own)} here"


def _shapes(task: Task, other: Task) -> Iterator[str]:
    here = {tensor.name: tensor.shape for tensor in task.tensors}
    for tensor in other.tensors:
        own = here.get(tensor.name, tensor.shape)
        if own != tensor.shape:
            yield f"`{tensor.name}` is [{', '.join(tensor.shape)}] there, [{', '.join(own)}] here"


def _dtypes(task: Task) -> list[str]:
    return sorted({workload.dtype for workload in task.workloads})


def _listed(declarations: Sequence[str]) -> str:
    return ", ".join(f"`{each}`" for each in declarations)
