"""The cuda half of an extension: compiled code as arrays, and launches written from the plans.

Nothing here is compiled by nvcc: the kernels are cubins already, and the host side talks to the driver alone.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from agent.export.coverage import Image, Library, Specialisation, Variant, capability
from agent.export.rendering import candidate_file, condition, conjunction, label, region, render, title, workspace
from sandbox.contract import ITEMSIZE, SCALAR_T, Task, TensorSpec
from sandbox.expressions import Expr, parse_expr
from sandbox.nvrtc import CUDA_HEADERS, CUDA_OPTIONS, cuda_text
from sandbox.plan import Launch, TensorMap

CFLAGS = ["-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden"]
LDFLAGS = ["-ldl"]

# Entry points by member; where the plain name is an older interface, the versioned symbol.
DRIVER_SYMBOLS = {
    name: {"cuCtxPushCurrent": "cuCtxPushCurrent_v2", "cuCtxPopCurrent": "cuCtxPopCurrent_v2"}.get(name, name)
    for name in (
        "cuInit",
        "cuGetErrorString",
        "cuDeviceGet",
        "cuDeviceGetAttribute",
        "cuDevicePrimaryCtxRetain",
        "cuCtxGetCurrent",
        "cuCtxPushCurrent",
        "cuCtxPopCurrent",
        "cuLibraryLoadData",
        "cuLibraryGetKernel",
        "cuKernelGetFunction",
        "cuFuncSetAttribute",
        "cuLaunchKernelEx",
        "cuMemsetD8Async",
        "cuTensorMapEncodeTiled",
    )
}
# Enumerators of CUtensorMapDataType and CUtensorMapSwizzle.
_MAP_TYPES = {"uint8": 0, "int32": 3, "int64": 5, "float16": 6, "float32": 7, "bfloat16": 9}
_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
_WORDS_PER_LINE = 6


def write(library: Library) -> dict[str, str]:
    """The files of the cuda target, by path."""
    ns = library.namespace
    files = {
        "csrc/driver.h": render("driver.h.j2", ns=ns),
        "csrc/driver.cpp": render("driver.cpp.j2", ns=ns, driver_symbols=DRIVER_SYMBOLS),
    }
    for op in library.ops:
        for variant in op.variants:
            files[candidate_file(op.task, variant)] = _candidate(ns, op.task, variant)
            for number, spec in enumerate(variant.specialisations):
                files |= _images(ns, op.task, variant, number, spec)
    return files


def recipe(library: Library) -> dict[str, Any]:
    """How to compile each specialisation again, for GPUs that there is no code for (package/compiling.py)."""
    modules = {
        _module(op.task, variant, number): {
            "source": f"kernels/{variant.id12}.cu",
            "prelude": cuda_text(variant.candidate.source).removesuffix(variant.candidate.source),
            "macros": spec.macros,
        }
        for op in library.ops
        for variant in op.variants
        for number, spec in enumerate(variant.specialisations)
    }
    return {"options": CUDA_OPTIONS, "headers": CUDA_HEADERS, "modules": modules}


def words(code: bytes) -> str:
    """The bytes as 64-bit literals, zeros at the end: an eighth of the tokens that single bytes would be."""
    padded = code + bytes(-len(code) % 8)
    literals = [f"0x{word:x}," for (word,) in struct.iter_unpack("<Q", padded)]
    lines = (literals[i : i + _WORDS_PER_LINE] for i in range(0, len(literals), _WORDS_PER_LINE))
    return "\n".join("".join(line) for line in lines) + "\n"


def _module(task: Task, variant: Variant, number: int) -> str:
    return f"{task.name}/{variant.id12}/{number}"


def _symbol(variant: Variant, number: int, image: Image) -> str:
    return f"code_{variant.id12}_{number}_{image.arch}"


def _code(image: Image) -> bytes:
    """What is embedded; PTX is text that the driver reads up to a zero byte."""
    content = Path(image.artifact.path).read_bytes()
    return content if _kind(image) != "ptx" or content.endswith(b"\0") else content + b"\0"


def _kind(image: Image) -> str:
    if image.arch.startswith("compute_"):
        return "ptx"
    return "cubin" if image.arch[-1].isdigit() else "exact_cubin"


def _image(variant: Variant, number: int, image: Image) -> dict[str, object]:
    symbol = _symbol(variant, number, image)
    return {
        "arch": image.arch,
        "capability": capability(image.arch),
        "kind": _kind(image),
        "symbol": symbol,
        "bytes": len(_code(image)),
        "sha256": image.artifact.sha256,
        "judged": image.judged,
        "file": f"code/{symbol}.inc",
    }


def _images(ns: str, task: Task, variant: Variant, number: int, spec: Specialisation) -> dict[str, str]:
    images = [_image(variant, number, image) for image in spec.images]
    folder = f"csrc/{task.name}"
    files = {f"{folder}/{made['file']}": words(_code(image)) for made, image in zip(images, spec.images, strict=True)}
    text = render("images.cpp.j2", ns=ns, op=task.name, id12=variant.id12, label=label(spec), images=images)
    return {**files, f"{folder}/images_{task.name}_{variant.id12}_{number}.cpp": text}


def _candidate(ns: str, task: Task, variant: Variant) -> str:
    plan = variant.plan
    kernels = list(dict.fromkeys(launch.kernel for launch in plan.launches))
    specialisations = [
        {
            "unique": f"module_{number}",
            "module": _module(task, variant, number),
            "label": label(spec),
            "region": region(spec),
            "condition": condition(spec),
            "images": [_image(variant, number, image) for image in spec.images],
        }
        for number, spec in enumerate(variant.specialisations)
    ]
    return render(
        "candidate_cuda.cpp.j2",
        ns=ns,
        task=task,
        v=variant,
        title=title(variant),
        kernels=kernels,
        specialisations=specialisations,
        needs_90=bool(plan.tensormaps) or any(launch.cluster for launch in plan.launches),
        fits=conjunction(_fits(launch) for launch in plan.launches if launch.smem),
        suits=conjunction(c.to_cpp("p.") for c in plan.constraints),
        workspace=workspace(variant),
        tensormaps=[_tensormap(task, entry) for entry in plan.tensormaps],
        parameters=parameters(task, plan.tensormaps),
        launches=[_launch(launch, kernels.index(launch.kernel)) for launch in plan.launches],
    )


def parameters(task: Task, tensormaps: tuple[TensorMap, ...] = ()) -> list[str]:
    """The addresses of the kernel's arguments in contract order."""
    tensors = [f"&t.{tensor.name}" for tensor in task.tensors]
    values = [f"&p.{name}" for name in (*task.axes, *(s.name for s in task.scalars))]
    return [*tensors, *values, "&workspace", *(f"&map_{entry.name}" for entry in tensormaps)]


def _fits(launch: Launch) -> str:
    smem = launch.smem.to_cpp("p.") if launch.smem else "0"
    skipped = f"!({launch.when.to_cpp('p.')}) || " if launch.when else ""
    return f"({skipped}{smem} <= p.smem_optin)"


def _launch(launch: Launch, index: int) -> dict[str, object]:
    return {
        "kernel": launch.kernel,
        "index": index,
        "grid": _spell(launch.grid),
        "block": _spell(launch.block),
        "smem": launch.smem.to_cpp("p.") if launch.smem else "0",
        "cluster": _spell(launch.cluster) if launch.cluster else ["0", "0", "0"],
        "cooperative": "true" if launch.cooperative else "false",
        "when": launch.when.to_cpp("p.") if launch.when else "",
    }


def _spell(expressions: tuple[Expr, ...]) -> list[str]:
    return [expression.to_cpp("p.") for expression in expressions]


def _tensormap(task: Task, entry: TensorMap) -> dict[str, object]:
    tensor = next(t for t in task.tensors if t.name == entry.tensor)
    return {
        "name": entry.name,
        "tensor": entry.tensor,
        "elements": " * ".join(parse_expr(size).to_cpp("p.") for size in tensor.shape),
        "type": _map_type(tensor),
        "itemsize": "p.itemsize" if tensor.dtype == SCALAR_T else ITEMSIZE[tensor.dtype],
        "view": _spell(entry.view),
        "box": _spell(entry.box),
        "swizzle": _SWIZZLES[entry.swizzle],
    }


def _map_type(tensor: TensorSpec) -> str:
    if tensor.dtype != SCALAR_T:
        return str(_MAP_TYPES[tensor.dtype])
    half, bfloat = _MAP_TYPES["float16"], _MAP_TYPES["bfloat16"]
    return f"p.dtype == Dtype::float16 ? {half} : p.dtype == Dtype::bfloat16 ? {bfloat} : {_MAP_TYPES['float32']}"
