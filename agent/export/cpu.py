"""The cpu half of an extension: every specialisation a translation unit of its own, its names kept apart.

Two kernels may define helpers of the same name. Each source is therefore included inside a namespace of its own, its
entry renamed by a macro; its headers are opened before, at file scope. Not covered: anything a `#pragma` other than
`#pragma GCC` must do at file scope.
"""

from __future__ import annotations

import re

from agent.export.coverage import Specialisation, Variant
from agent.export.rendering import condition, conjunction, label, render, title, workspace
from sandbox.contract import Task, TensorSpec
from sandbox.signature import C_TYPES, SCALAR_C_TYPES, SCALAR_T_IN_C, prototype
from sandbox.toolchain import COMPILE_FLAGS

CFLAGS = [flag for flag in COMPILE_FLAGS if not flag.startswith(("-fmax-errors", "-fdiagnostics"))]
"""What the judged libraries were compiled with, less what only shapes messages."""
LDFLAGS = ["-fopenmp", "-Wl,-Bsymbolic"]

_COMMENT_OR_STRING = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"", re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n\\]|\\\n|\\.)*", re.MULTILINE)
_DEFINE = re.compile(r"#\s*define\s+(\w+)")
_PRAGMA = re.compile(r"\s*#\s*pragma\s+(?!GCC\b)")
_EXTERN_C = re.compile(r"extern\s+\"C\"\s+[^;{}()]*?\b(\w+)\s*\(")


def write(task: Task, package: str, variants: tuple[Variant, ...]) -> dict[str, str]:
    """The files of the cpu target, by path."""
    files: dict[str, str] = {}
    for variant in variants:
        files[f"csrc/candidate_{variant.id12}.cpp"] = _candidate(task, package, variant)
        for number, spec in enumerate(variant.specialisations):
            files[f"csrc/kernel_{variant.id12}_{number}.cpp"] = _kernel(task, package, variant, number, spec)
    return files


def directives(source: str) -> list[str]:
    """The preprocessor lines of a source, comments left out, in order: what opening its headers depends on."""
    bare = _COMMENT_OR_STRING.sub(lambda m: m[0] if m[0].startswith('"') else " ", source)
    found = (match[0].strip() for match in _DIRECTIVE.finditer(bare))
    return [line for line in found if not _PRAGMA.match(line)]


def renames(source: str, entry: str, suffix: str) -> dict[str, str]:
    """A unique name for everything with C linkage, which no namespace keeps apart."""
    names = dict.fromkeys([entry, *_EXTERN_C.findall(_COMMENT_OR_STRING.sub(_keep_strings, source))])
    return {name: f"{name}_{suffix}" for name in names}


def _keep_strings(match: re.Match[str]) -> str:
    return match[0] if match[0].startswith('"') else " "


def _unique(variant: Variant, number: int) -> str:
    return f"k{variant.id12}_{number}"


def _candidate(task: Task, package: str, variant: Variant) -> str:
    specialisations = [
        {"unique": _unique(variant, number), "label": label(spec), "condition": condition(spec)}
        for number, spec in enumerate(variant.specialisations)
    ]
    return render(
        "candidate_cpu.cpp.j2",
        package=package,
        task=task,
        v=variant,
        title=title(variant),
        specialisations=specialisations,
        suits=conjunction([c.to_cpp("p.") for c in variant.plan.constraints]),
        workspace=workspace(variant),
    )


def _kernel(task: Task, package: str, variant: Variant, number: int, spec: Specialisation) -> str:
    unique = _unique(variant, number)
    entry = f"{task.name}_{unique}"
    scalar_t = SCALAR_T_IN_C[spec.dtype]
    lines = directives(variant.candidate.source)
    return render(
        "kernel_cpu.cpp.j2",
        package=package,
        title=title(variant),
        id12=variant.id12,
        dtype=spec.dtype,
        statics=spec.statics,
        unique=unique,
        entry=entry,
        prototype=re.sub(r"\bscalar_t\b", scalar_t, prototype(task, entry)),
        call=_call(task, scalar_t),
        macros=spec.macros,
        directives=lines,
        defined=dict.fromkeys(_DEFINE.findall("\n".join(lines))),
        renames=renames(variant.candidate.source, task.name, unique),
    )


def _call(task: Task, scalar_t: str) -> list[str]:
    """The arguments in contract order, pointers cast to the prototype's types."""

    def pointer(tensor: TensorSpec, const: str) -> str:
        return f"static_cast<{const}{C_TYPES.get(tensor.dtype, scalar_t)}*>(t.{tensor.name})"

    written = [pointer(t, "") for t in (*task.outputs, *task.inouts)]
    read = [pointer(t, "const ") for t in task.inputs]
    scalars = [f"static_cast<{SCALAR_C_TYPES[s.type]}>(p.{s.name})" for s in task.scalars]
    return [*written, *read, *(f"p.{axis}" for axis in task.axes), *scalars, "workspace"]
