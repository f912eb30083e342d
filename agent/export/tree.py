"""The source tree of an extension: every file by path, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from agent.export import cpu, cuda, signature
from agent.export.coverage import Variant, Winner
from agent.export.provenance import figures, provenance
from agent.export.rendering import TEMPLATES, label, render, title
from sandbox.contract import ITEMSIZE, SCALAR_T, Device, Task, TensorSpec, Workload
from sandbox.errors import Infrastructure


def package_name(task: Task, variants: tuple[Variant, ...]) -> str:
    """`warpsmith_attention_1a2b3c4d`: a name for this very content, so that two versions can live in one process."""
    images = [i.artifact.sha256 for v in variants for s in v.specialisations for i in s.images]
    parts = [task.version, task.target, sorted((v.candidate.id, v.wins) for v in variants), images, _generator()]
    return f"warpsmith_{task.name}_{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]}"


def files(
    task: Task, package: str, variants: tuple[Variant, ...], winners: dict[str, Winner], device: Device
) -> dict[str, str]:
    """Every file of the tree, by path."""
    half = cuda if task.target == "cuda" else cpu
    texts: dict[str, str] = half.write(task, package, variants)
    names = [t.name for t in signature.arguments(task)] + [s.name for s in task.scalars]
    common: dict[str, Any] = {
        "package": package,
        "task": task,
        "version": f"0.1.0+{package[-8:]}",
        "cuda": task.target == "cuda",
        "names": names,
        "arguments": signature.arguments(task),
        "sources": signature.axis_sources(task),
        "schema": signature.schema(task),
    }
    texts |= {
        "csrc/problem.h": render("problem.h.j2", **common),
        "csrc/dispatch.cpp": _dispatch(task, variants, winners, common),
        "csrc/binding.cpp": _binding(task, common),
        f"{package}/__init__.py": _python(task, common),
        "setup.py": render("setup.py.j2", **common),
        "pyproject.toml": render("pyproject.toml.j2", **common),
        "README.md": _readme(task, variants, winners, device, common),
        "provenance.json": json.dumps(provenance(task, package, variants, winners, device), indent=2) + "\n",
        **{f"kernels/{v.id12}.{'cu' if task.target == 'cuda' else 'cpp'}": v.candidate.source for v in variants},
    }
    return texts | {"csrc/build.json": _recipe(sorted(texts), half.CFLAGS, half.LDFLAGS)}


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


def _dispatch(task: Task, variants: tuple[Variant, ...], winners: dict[str, Winner], common: dict[str, Any]) -> str:
    workloads = {w.name: w for w in task.workloads}
    flags = [s.name for s in task.scalars if s.type == "int"]
    entries = [
        {
            "workload": workloads[name],
            "id12": winner.candidate.id[:12],
            "itemsize": ITEMSIZE[workloads[name].dtype],
            "members": _members(task, workloads[name]),
        }
        for name, winner in winners.items()
    ]
    offers = dict.fromkeys(label(spec) for v in variants for spec in v.specialisations)
    return render(
        "dispatch.cpp.j2",
        **common,
        variants=variants,
        entries=entries,
        flags=flags,
        keys=[*task.axes, *flags],
        offer="; ".join(offers),
    )


def _members(task: Task, workload: Workload) -> list[str]:
    """The members of a Problem after dtype and itemsize; floats do not steer the dispatch."""
    scalars = [
        f"{float(workload.scalars[s.name])}f" if s.type == "float" else str(workload.scalars[s.name])
        for s in task.scalars
    ]
    return [*(str(workload.axes[axis]) for axis in task.axes), *scalars]


def _binding(task: Task, common: dict[str, Any]) -> str:
    arguments = [f"Tensor arg_{t.name}" for t in signature.arguments(task)]
    scalars = [f"{'double' if s.type == 'float' else 'int64_t'} arg_{s.name}" for s in task.scalars]
    made = [f"made_{t.name}" for t in task.outputs]
    pointers = (
        [f"{name}.data_ptr()" for name in made]
        + [f"arg_{t.name}.data_ptr()" for t in task.inouts]
        + [f"read_{t.name}.data_ptr()" for t in task.inputs]
    )
    written = [*made, *(f"arg_{t.name}" for t in task.inouts)]
    return render(
        "binding.cpp.j2",
        **common,
        first=f"arg_{signature.arguments(task)[0].name}",
        dtype_source=signature.dtype_source(task),
        cpp_arguments=", ".join([f"const Tensor& arg_{t.name}" for t in signature.arguments(task)] + scalars),
        cpp_parameters=", ".join(arguments + scalars),
        cpp_result={0: "void", 1: "Tensor"}.get(len(made), f"std::tuple<{', '.join(['Tensor'] * len(made))}>"),
        cpp_return={0: "", 1: "".join(made)}.get(len(made), f"{{{', '.join(made)}}}"),
        cpp_shape=signature.cpp_shape,
        torch_dtype=_torch_dtype,
        pointers=pointers,
        written=[f"{name}.numel() == 0" for name in written],
    )


def _torch_dtype(tensor: TensorSpec) -> str:
    return SCALAR_T if tensor.dtype == SCALAR_T else f"ScalarType::{signature.TORCH_DTYPES[tensor.dtype]}"


def _python(task: Task, common: dict[str, Any]) -> str:
    source = signature.dtype_source(task)

    def fake_dtype(tensor: TensorSpec) -> str:
        return f"{source}.dtype" if tensor.dtype == SCALAR_T else f"torch.{tensor.dtype}"

    return render(
        "package.py.j2",
        **common,
        python_parameters=signature.python_parameters(task),
        python_result=signature.python_result(task),
        fake_dtype=fake_dtype,
    )


def _readme(
    task: Task, variants: tuple[Variant, ...], winners: dict[str, Winner], device: Device, common: dict[str, Any]
) -> str:
    titles = {v.candidate.id: title(v) for v in variants}
    rows = [
        {
            "workload": name,
            "id12": w.candidate.id[:12],
            "title": titles[w.candidate.id].replace("|", "\\|"),
            **figures(name, w),
        }
        for name, w in winners.items()
    ]
    judged = any(image.judged for v in variants for spec in v.specialisations for image in spec.images)
    return render("README.md.j2", **common, device=device, rows=rows, judged=judged)


def _recipe(paths: list[str], cflags: list[str], ldflags: list[str]) -> str:
    recipe = {
        "sources": [path for path in paths if path.startswith("csrc/") and path.endswith(".cpp")],
        "cflags": [*cflags, "-DTORCH_TARGET_VERSION=0x020a000000000000"],
        "ldflags": ldflags,
    }
    return json.dumps(recipe, indent=2) + "\n"


def _replace(fresh: Path, root: Path) -> None:
    old = fresh.with_name(f"{fresh.name}.old")
    if root.exists():
        root.replace(old)
    fresh.replace(root)
    shutil.rmtree(old, ignore_errors=True)


def _generator() -> str:
    """Hash of the templates: the same winners under a newer generator are another version."""
    texts = b"".join(path.read_bytes() for path in sorted(TEMPLATES.glob("*.j2")))
    return hashlib.sha256(texts).hexdigest()
