"""The source tree of an extension: every file by path, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.export import cpu, cuda, signature, workloads
from agent.export.coverage import Library, Op, capability, levels
from agent.export.provenance import figures, provenance
from agent.export.rendering import TEMPLATES, dispatch_file, region, render, title
from agent.export.signature import PACKAGE
from sandbox.contract import ITEMSIZE, SCALAR_T, Task, TensorSpec, Workload
from sandbox.errors import Infrastructure

TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"


def library(ops: tuple[Op, ...], name: str | None) -> Library:
    """Without a name of its own it is `warpsmith_attention_1a2b3c4d`, so that two versions can live side by side."""
    key = fingerprint(ops)
    if name is None:
        package = f"warpsmith_{'_'.join(op.task.name for op in ops)}_{key}"
        return Library(package=package, namespace=package, ops=ops)
    return Library(package=name, namespace=f"{name}_{key}", ops=ops)


def fingerprint(ops: tuple[Op, ...]) -> str:
    """Eight hex digits for this very content."""
    parts = [
        [
            op.task.version,
            op.task.target,
            sorted((v.candidate.id, v.wins) for v in op.variants),
            [
                spec.model_dump(mode="json", include={"bounds", "flags"})
                for v in op.variants
                for spec in v.specialisations
            ],
            [i.artifact.sha256 for v in op.variants for s in v.specialisations for i in s.images],
            [[part.device.arch, shape.model_dump(mode="json")] for part in op.parts for shape in part.kept],
        ]
        for op in ops
    ]
    return hashlib.sha256(json.dumps([parts, _generator()]).encode()).hexdigest()[:8]


def files(library: Library) -> dict[str, str]:
    """Every file of the tree, by path."""
    half = cuda if library.target == "cuda" else cpu
    common = _common(library)
    package = library.package
    texts: dict[str, str] = half.write(library)
    texts |= {
        "csrc/common.h": render("common.h.j2", **common),
        "csrc/binding.cpp": render("binding.cpp.j2", **common),
        "setup.py": render("setup.py.j2", **common),
        "pyproject.toml": render("pyproject.toml.j2", **common),
        "README.md": _readme(library, common),
        f"{package}/__init__.py": render("package.py.j2", **common),
        f"{package}/LICENSE": render("LICENSE.j2", **common),
        f"{package}/operators.py": render("operators.py.j2", **common),
        f"{package}/references/__init__.py": '"""The operators in PyTorch."""\n',
        f"{package}/provenance.json": json.dumps(provenance(library), indent=2) + "\n",
        f"{package}/workloads.json": workloads.text(library.ops),
        **{f"{package}/{path.name}": path.read_text() for path in _static()},
    }
    if library.target == "cuda":
        texts[f"{package}/kernels.json"] = json.dumps(cuda.recipe(library), indent=1) + "\n"
    for op in library.ops:
        texts |= _of_task(package, op, common)
    return texts | {"csrc/build.json": json.dumps(_recipe(library, sorted(texts)), indent=2) + "\n"}


def write(texts: dict[str, str], root: Path) -> None:
    """Write the tree beside `root` first; an older tree there is replaced once the new one is complete."""
    root.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        for name, text in texts.items():
            path = fresh / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        fresh.chmod(0o755)
        _replace(fresh, root)
    except OSError as exc:
        raise Infrastructure(f"cannot write {root}: {exc}") from exc
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


# ---------------------------------------------------------------- files


def _common(library: Library) -> dict[str, Any]:
    """What the templates are filled with."""
    on_cuda = library.target == "cuda"
    return {
        "package": library.package,
        "ns": library.namespace,
        "target": library.target,
        "cuda": on_cuda,
        "levels": () if on_cuda else levels(library.ops[0].parts[0].device),
        "features": cpu.FEATURES,
        "version": f"0.1.0+{library.namespace[-8:]}",
        "names": [op.task.name for op in library.ops],
        "ops": [_op(op) for op in library.ops],
        "title": "; ".join(op.task.summary for op in library.ops),
        "docstring": _docstring,
        "static": [name for name in ("layers", "patching") if (PACKAGE / f"{name}.py").exists()],
    }


def _docstring(text: str) -> str:
    """The text as it may stand between three double quotes."""
    return text.replace("\\", "\\\\").replace('"', "'")


def _static() -> list[Path]:
    return sorted(path for path in PACKAGE.glob("*.py") if path.name != "__init__.py")


def _of_task(package: str, op: Op, common: dict[str, Any]) -> dict[str, str]:
    task = op.task
    suffix = "cu" if task.target == "cuda" else "cpp"
    return {
        f"csrc/{task.name}/problem.h": render("problem.h.j2", task=task, **common),
        dispatch_file(task): _dispatch(op, common),
        f"{package}/references/{task.name}.py": (task.folder / "reference.py").read_text(),
        **{f"{package}/kernels/{v.id12}.{suffix}": v.candidate.source for v in op.variants},
    }


def _dispatch(op: Op, common: dict[str, Any]) -> str:
    task = op.task
    flags = [s.name for s in task.scalars if s.type == "int"]
    entries = [{"id12": entry.candidate[:12], **_place(task, entry.workload, entry.arch)} for entry in op.entries]
    kept = [_place(task, shape, part.device.arch) for part in op.parts for shape in part.kept]
    offers = dict.fromkeys(region(spec) for v in op.variants for spec in v.specialisations)
    return render(
        "dispatch.cpp.j2",
        **common,
        task=task,
        variants=op.variants,
        entries=entries,
        kept=kept,
        flags=flags,
        offer="; ".join(offers),
    )


def _place(task: Task, workload: Workload, arch: str) -> dict[str, Any]:
    """A workload on the kind of device it was judged on, as the dispatch knows it."""
    return {
        "workload": workload,
        "arch": arch,
        "capability": capability(arch) if task.target == "cuda" else 0,
        "itemsize": ITEMSIZE[workload.dtype],
        "members": _members(task, workload),
    }


def _members(task: Task, workload: Workload) -> list[str]:
    """The members of a Problem after dtype and itemsize; floats do not steer the dispatch."""
    scalars = [
        f"{float(workload.scalars[s.name])}f" if s.type == "float" else str(workload.scalars[s.name])
        for s in task.scalars
    ]
    return [*(str(workload.axes[axis]) for axis in task.axes), *scalars]


def _op(op: Op) -> dict[str, Any]:
    """A task's face to PyTorch, in C++ and Python."""
    task = op.task
    arguments = signature.arguments(task)
    scalars = [f"{'double' if s.type == 'float' else 'int64_t'} arg_{s.name}" for s in task.scalars]
    names = [t.name for t in arguments] + [s.name for s in task.scalars]
    made = [f"made_{t.name}" for t in task.outputs]
    pointers = (
        [f"{name}.data_ptr()" for name in made]
        + [f"arg_{t.name}.data_ptr()" for t in task.inouts]
        + [f"read_{t.name}.data_ptr()" for t in task.inputs]
    )
    shapes = [f"nothing(shape_{t.name})" for t in task.outputs]
    return {
        "task": task,
        "arguments": arguments,
        "names": names,
        "first": arguments[0].name,
        "sources": signature.axis_sources(task),
        "dtype_source": signature.dtype_source(task),
        "schema": signature.schema(task),
        "schemas": signature.schemas(task),
        "dtypes": sorted({spec.dtype for variant in op.variants for spec in variant.specialisations}),
        "cpp_arguments": ", ".join([f"const Tensor& arg_{t.name}" for t in arguments] + scalars),
        "cpp_parameters": ", ".join([f"Tensor arg_{t.name}" for t in arguments] + scalars),
        "cpp_names": ", ".join(f"arg_{name}" for name in names),
        "cpp_result": {0: "void", 1: "Tensor"}.get(len(made), f"std::tuple<{', '.join(['Tensor'] * len(made))}>"),
        "cpp_return": {0: "", 1: "".join(made)}.get(len(made), f"{{{', '.join(made)}}}"),
        "cpp_shape": signature.cpp_shape,
        "torch_dtype": _torch_dtype,
        "pointers": pointers,
        "empty": shapes + [f"arg_{t.name}.numel() == 0" for t in task.inouts],
        "python_parameters": signature.python_parameters(task),
        "python_result": signature.python_result(task),
        "fake_dtype": _fake_dtype(signature.dtype_source(task)),
    }


def _torch_dtype(tensor: TensorSpec) -> str:
    return SCALAR_T if tensor.dtype == SCALAR_T else f"ScalarType::{signature.TORCH_DTYPES[tensor.dtype]}"


def _fake_dtype(source: str) -> Callable[[TensorSpec], str]:
    return lambda tensor: f"{source}.dtype" if tensor.dtype == SCALAR_T else f"torch.{tensor.dtype}"


def _readme(library: Library, common: dict[str, Any]) -> str:
    images = [image for op in library.ops for v in op.variants for s in v.specialisations for image in s.images]
    tables = [{"op": op, "rows": _rows(op)} for op in library.ops]
    archs = sorted({image.arch for image in images if image.judged})
    return render("README.md.j2", **common, tables=tables, judged=archs)


def _rows(op: Op) -> list[dict[str, str]]:
    titles = {v.candidate.id: title(v) for v in op.variants}
    return [
        {
            "workload": name,
            "device": part.device.name,
            "id12": winner.candidate.id[:12],
            "title": titles[winner.candidate.id].replace("|", "\\|"),
            **figures(name, winner),
        }
        for part in op.parts
        for name, winner in part.winners.items()
    ]


def _recipe(library: Library, paths: list[str]) -> dict[str, Any]:
    """How to compile: `tree` for the machine at hand, `wheel` for others."""
    if library.target == "cuda":
        sources = [path for path in paths if path.startswith("csrc/") and path.endswith(".cpp")]
        flags = {"sources": sources, "cflags": cuda.CFLAGS, "ldflags": cuda.LDFLAGS}
        recipe: dict[str, Any] = {"tree": flags, "wheel": {"_C": flags}}
    else:
        flags = {"sources": cpu.sources(library), "cflags": cpu.CFLAGS, "ldflags": cpu.LDFLAGS}
        recipe = {"tree": flags, "wheel": cpu.builds(library)}
    return {"name": library.namespace, "target": TORCH_TARGET, **recipe}


def _replace(fresh: Path, root: Path) -> None:
    old = fresh.with_name(f"{fresh.name}.old")
    if root.exists():
        root.replace(old)
    fresh.replace(root)
    shutil.rmtree(old, ignore_errors=True)


def _generator() -> str:
    """Hash of the templates: the same winners under a newer generator are another version."""
    paths = [*sorted(TEMPLATES.glob("*.j2")), *_static()]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
