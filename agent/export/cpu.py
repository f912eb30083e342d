"""The cpu half of an extension: every specialisation a translation unit of its own, its names kept apart.

Two kernels may define helpers of the same name. Each source is therefore included inside a namespace of its own, its
entry renamed by a macro; its headers are opened before, at file scope. Not covered: anything a `#pragma` other than
`#pragma GCC` must do at file scope.
"""

from __future__ import annotations

import re

from agent.export.coverage import Library, Op, Specialisation, Variant, levels
from agent.export.rendering import (
    candidate_file,
    condition,
    conjunction,
    dispatch_file,
    region,
    render,
    title,
    workspace,
)
from agent.export.signature import identifier
from sandbox.contract import Record, Task, TensorSpec
from sandbox.signature import C_TYPES, SCALAR_C_TYPES, SCALAR_T_IN_C, prototype
from sandbox.toolchain import COMPILE_FLAGS, LEVELS, NATIVE

CFLAGS = [flag for flag in COMPILE_FLAGS if not flag.startswith(("-fmax-errors", "-fdiagnostics"))]
"""What the judged libraries were compiled with, less what only shapes messages."""
LDFLAGS = ["-fopenmp", "-Wl,-Bsymbolic"]
_V2 = ("ssse3", "sse4.2", "popcnt")
_V3 = (*_V2, "avx2", "bmi", "bmi2", "fma")
FEATURES = {
    "x86-64-v2": _V2,
    "x86-64-v3": _V3,
    "x86-64-v4": (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    "baseline": (),
}
"""What tells that a CPU has a level, of what compilers older than the levels' names know."""

_COMMENT_OR_STRING = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"", re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n\\]|\\\n|\\.)*", re.MULTILINE)
_DEFINE = re.compile(r"#\s*define\s+(\w+)")
_PRAGMA = re.compile(r"\s*#\s*pragma\s+(?!GCC\b)")
_EXTERN_C = re.compile(r"extern\s+\"C\"\s+[^;{}()]*?\b(\w+)\s*\(")


class Kernel(Record):
    """A specialisation's place in the table of compiled kernels."""

    op: Op
    variant: Variant
    number: int
    """Among the variant's specialisations."""

    @property
    def spec(self) -> Specialisation:
        return self.variant.specialisations[self.number]

    @property
    def unique(self) -> str:
        return f"k{self.variant.id12}_{self.number}"

    @property
    def file(self) -> str:
        name = self.op.task.name
        return f"csrc/{name}/kernel_{name}_{self.variant.id12}_{self.number}.cpp"


def write(library: Library) -> dict[str, str]:
    """The files of the cpu target, by path."""
    table = kernels(library)
    files = {kernel.file: _kernel(library, kernel) for kernel in table}
    for op in library.ops:
        for variant in op.variants:
            text = _candidate(library, op, variant, table)
            files[candidate_file(op.task, variant)] = text
    files["csrc/kernels.cpp"] = _table(library, table)
    for level in levels(library.ops[0].parts[0].device):
        files[f"csrc/kernels_{identifier(level)}.cpp"] = _table(library, table, level)
    return files


def kernels(library: Library) -> list[Kernel]:
    """Every specialisation in the library, in the order of the table."""
    return [
        Kernel(op=op, variant=variant, number=number)
        for op in library.ops
        for variant in op.variants
        for number in range(len(variant.specialisations))
    ]


def builds(library: Library) -> dict[str, dict[str, list[str]]]:
    """What a wheel is compiled from: the host side, then the kernels of each level, with the flags of each."""
    plain = [flag for flag in CFLAGS if flag != NATIVE]
    table = kernels(library)
    found = {"_C": {"sources": _host(library), "cflags": plain, "ldflags": LDFLAGS}}
    for level in levels(library.ops[0].parts[0].device):
        march = [f"-march={level}"] if level in LEVELS else []
        files = [kernel.file for kernel in table if level not in kernel.spec.missing]
        sources = [f"csrc/kernels_{identifier(level)}.cpp", *files]
        found[f"_{identifier(level)}"] = {"sources": sources, "cflags": [*plain, *march], "ldflags": LDFLAGS}
    return found


def sources(library: Library) -> list[str]:
    """What the library of a source tree is compiled from, for the machine at hand."""
    return [*_host(library), "csrc/kernels.cpp", *(kernel.file for kernel in kernels(library))]


def _host(library: Library) -> list[str]:
    candidates = [candidate_file(op.task, variant) for op in library.ops for variant in op.variants]
    return ["csrc/binding.cpp", *(dispatch_file(op.task) for op in library.ops), *candidates]


def _table(library: Library, table: list[Kernel], level: str = "") -> str:
    rows = [{"op": k.op.task.name, "unique": k.unique, "compiles": level not in k.spec.missing} for k in table]
    return render("kernels.cpp.j2", ns=library.namespace, level=level, kernels=rows)


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


def _candidate(library: Library, op: Op, variant: Variant, table: list[Kernel]) -> str:
    specialisations = [
        {"number": place, "region": region(kernel.spec), "condition": condition(kernel.spec)}
        for place, kernel in enumerate(table)
        if (kernel.op, kernel.variant) == (op, variant)
    ]
    return render(
        "candidate_cpu.cpp.j2",
        ns=library.namespace,
        task=op.task,
        v=variant,
        title=title(variant),
        specialisations=specialisations,
        suits=conjunction([c.to_cpp("p.") for c in variant.plan.constraints]),
        workspace=workspace(variant),
    )


def _kernel(library: Library, kernel: Kernel) -> str:
    task, spec, source = kernel.op.task, kernel.spec, kernel.variant.candidate.source
    entry = f"{task.name}_{kernel.unique}"
    scalar_t = SCALAR_T_IN_C[spec.dtype]
    lines = directives(source)
    return render(
        "kernel_cpu.cpp.j2",
        ns=library.namespace,
        package=library.package,
        task=task,
        title=title(kernel.variant),
        id12=kernel.variant.id12,
        dtype=spec.dtype,
        statics=spec.statics,
        unique=kernel.unique,
        entry=entry,
        prototype=re.sub(r"\bscalar_t\b", scalar_t, prototype(task, entry)),
        call=_call(task, scalar_t),
        macros=spec.macros,
        directives=lines,
        defined=dict.fromkeys(_DEFINE.findall("\n".join(lines))),
        renames=renames(source, task.name, kernel.unique),
    )


def _call(task: Task, scalar_t: str) -> list[str]:
    """The arguments in contract order, pointers cast to the prototype's types."""

    def pointer(tensor: TensorSpec, const: str) -> str:
        return f"static_cast<{const}{C_TYPES.get(tensor.dtype, scalar_t)}*>(t.{tensor.name})"

    written = [pointer(t, "") for t in (*task.outputs, *task.inouts)]
    read = [pointer(t, "const ") for t in task.inputs]
    scalars = [f"static_cast<{SCALAR_C_TYPES[s.type]}>(p.{s.name})" for s in task.scalars]
    return [*written, *read, *(f"p.{axis}" for axis in task.axes), *scalars, "workspace"]
