"""A task's signature in one workload: shapes, bytes, and the prototype of its kernels.

Parameters stand in contract order: outputs, in-outs, inputs, axes, scalars, workspace, tensor maps.
"""

from __future__ import annotations

import math

from sandbox.contract import ITEMSIZE, SCALAR_T, Task, TensorSpec, Workload
from sandbox.expressions import parse_expr

SCALAR_T_IN_C = {"float16": "__half", "bfloat16": "__nv_bfloat16", "float32": "float"}
C_TYPES = {"int32": "int32_t", "int64": "int64_t", "uint8": "uint8_t", "float32": "float"}
SCALAR_C_TYPES = {"float": "float", "int": "int"}


def shape_of(tensor: TensorSpec, workload: Workload) -> tuple[int, ...]:
    """The tensor's shape in this workload."""
    return tuple(parse_expr(size).evaluate(workload.axes) for size in tensor.shape)


def dtype_of(tensor: TensorSpec, workload: Workload) -> str:
    """The tensor's dtype in this workload."""
    return workload.dtype if tensor.dtype == SCALAR_T else tensor.dtype


def numel(tensor: TensorSpec, workload: Workload) -> int:
    return math.prod(shape_of(tensor, workload))


def nbytes(tensor: TensorSpec, workload: Workload) -> int:
    return numel(tensor, workload) * ITEMSIZE[dtype_of(tensor, workload)]


def prototype(task: Task, kernel: str, tensormaps: tuple[str, ...] = ()) -> str:
    """The kernel's declaration, parameters in contract order, without `extern "C"` or `__global__`."""
    maps = [f"const __grid_constant__ CUtensorMap {name}" for name in tensormaps]
    return f"void {kernel}({', '.join([*parameters(task), 'void* workspace', *maps])})"


def parameters(task: Task) -> list[str]:
    """Those that the task gives a kernel, as C declares them, without workspace and tensor maps."""
    changed = [f"{_c_type(t)}* {t.name}" for t in (*task.outputs, *task.inouts)]
    inputs = [f"const {_c_type(t)}* {t.name}" for t in task.inputs]
    axes = [f"int64_t {axis}" for axis in task.axes]
    scalars = [f"{SCALAR_C_TYPES[s.type]} {s.name}" for s in task.scalars]
    return [*changed, *inputs, *axes, *scalars]


def _c_type(tensor: TensorSpec) -> str:
    return SCALAR_T if tensor.dtype == SCALAR_T else C_TYPES[tensor.dtype]
