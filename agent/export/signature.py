"""The operator's face to PyTorch: schema, axes from shapes, C++ and Python spellings of dtypes and scalars.

Not covered: anything about kernels or plans.
"""

from __future__ import annotations

import re
from pathlib import Path

from sandbox.contract import SCALAR_T, Record, ScalarSpec, Task, TensorSpec
from sandbox.errors import BadInput
from sandbox.expressions import parse_expr

PACKAGE = Path(__file__).parent / "package"
"""The files that every package carries as they are."""
TORCH_DTYPES = {
    "float16": "Half",
    "bfloat16": "BFloat16",
    "float32": "Float",
    "int32": "Int",
    "int64": "Long",
    "uint8": "Byte",
}
"""The names of torch::headeronly::ScalarType."""


TAKEN = {
    *(path.stem for path in PACKAGE.glob("*.py*")),
    *("references", "patch", "provenance", "torch", "cdiv", "min", "max"),
}
"""Names in a package or in its operators.py that a task would hide."""


class AxisSource(Record):
    """Where the value of an axis is read from: the first dimension of an argument that is just this axis."""

    axis: str
    tensor: str
    dimension: int


def check(task: Task) -> None:
    """BadInput where the task cannot be an operator of a package."""
    axis_sources(task)
    dtype_source(task)
    if task.name in TAKEN:
        raise BadInput(f"task {task.name}: the package has a name {task.name} of its own; wanted another name")


def arguments(task: Task) -> tuple[TensorSpec, ...]:
    """The tensors a caller passes: in-outs, then inputs."""
    return task.inouts + task.inputs


def axis_sources(task: Task) -> tuple[AxisSource, ...]:
    """One source for each axis; BadInput where an axis is no argument's bare dimension."""
    found: dict[str, AxisSource] = {}
    for tensor in arguments(task):
        for dimension, text in enumerate(tensor.shape):
            found.setdefault(text.strip(), AxisSource(axis=text.strip(), tensor=tensor.name, dimension=dimension))
    if missing := [axis for axis in task.axes if axis not in found]:
        raise BadInput(
            f"task {task.name}: axis {missing[0]} cannot be read from the arguments; "
            "wanted an input or in-out with a dimension that is just this axis"
        )
    return tuple(found[axis] for axis in task.axes)


def dtype_source(task: Task) -> str:
    """The argument whose dtype is scalar_t."""
    for tensor in arguments(task):
        if tensor.dtype == SCALAR_T:
            return tensor.name
    raise BadInput(f"task {task.name}: no input or in-out has dtype {SCALAR_T}, so the call's dtype cannot be known")


def schemas(task: Task) -> list[str]:
    """The operator, PyTorch's own way to compute it, and its gradient where there is one."""
    scalars = "".join(f"{s.type} {s.name}, " for s in task.scalars)
    backward = f"{task.name}_backward(Tensor[] grads, Tensor[] tensors, {scalars}bool[] needs) -> Tensor[]"
    return [schema(task), schema(task, "_reference"), *([] if task.inouts else [backward])]


def schema(task: Task, suffix: str = "") -> str:
    """The operator's schema in PyTorch's notation, or with a suffix that of another on the same arguments."""
    aliases = iter("abcdefghijklmnop")
    tensors = [f"Tensor({next(aliases)}!) {t.name}" for t in task.inouts] + [f"Tensor {t.name}" for t in task.inputs]
    scalars = [f"{s.type} {s.name}{_default(task, s)}" for s in task.scalars]
    returns = ["Tensor"] * len(task.outputs)
    result = returns[0] if len(returns) == 1 else f"({', '.join(returns)})"
    return f"{task.name}{suffix}({', '.join(tensors + scalars)}) -> {result}"


def python_parameters(task: Task) -> str:
    """The parameters of the Python function, with annotations and defaults."""
    tensors = [f"{t.name}: torch.Tensor" for t in arguments(task)]
    scalars = [f"{s.name}: {s.type}{_default(task, s, ' = ')}" for s in task.scalars]
    return ", ".join(tensors + scalars)


def python_result(task: Task) -> str:
    """The annotation of what the Python function returns."""
    returns = ["torch.Tensor"] * len(task.outputs)
    return {0: "None", 1: "torch.Tensor"}.get(len(returns), f"tuple[{', '.join(returns)}]")


def cpp_shape(tensor: TensorSpec, prefix: str = "p.") -> str:
    """The tensor's sizes as a C++ initialiser list, axes spelt as members of the problem."""
    return "{" + ", ".join(parse_expr(text).to_cpp(prefix) for text in tensor.shape) + "}"


def identifier(text: str) -> str:
    return re.sub(r"\W", "_", text)


def _default(task: Task, scalar: ScalarSpec, equals: str = "=") -> str:
    """A default is only allowed where every later scalar has one, too."""
    later = task.scalars[task.scalars.index(scalar) :]
    return f"{equals}{scalar.default}" if all(s.default is not None for s in later) else ""
