"""Templates, and the pieces of C++ that both targets write alike."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from agent.export.coverage import Specialisation, Variant
from sandbox.contract import Task

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: object) -> str:
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    # The texts are C++, Python and Markdown; HTML escaping would break them.
    return Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True)


def title(variant: Variant) -> str:
    """The first sentence of the kernel's header."""
    first = variant.candidate.source.lstrip().partition("\n")[0]
    return first.removeprefix("//").strip().partition(". ")[0].rstrip(".\\")


def label(spec: Specialisation) -> str:
    """`float16, D = 64, causal = 1`."""
    return ", ".join([spec.dtype, *(f"{name} = {value}" for name, value in spec.statics.items())])


def region(spec: Specialisation) -> str:
    """`float16, D = 64, causal 0 or 1, S 77 to 4096`: what it was compiled for and where it was proven."""
    flags = [f"{name} {' or '.join(map(str, values))}" for name, values in spec.flags.items()]
    bounds = [
        f"{name} {low}" if low == high else f"{name} {low} to {high}" for name, (low, high) in spec.bounds.items()
    ]
    return ", ".join([label(spec), *flags, *bounds])


def condition(spec: Specialisation) -> str:
    """The C++ test whether a problem `p` has the dtype and statics and lies in the region."""
    statics = [f"p.{name} == {value}" for name, value in spec.statics.items()]
    flags = [f"({' || '.join(f'p.{name} == {value}' for value in values)})" for name, values in spec.flags.items()]
    bounds = [f"p.{name} >= {low} && p.{name} <= {high}" for name, (low, high) in spec.bounds.items()]
    return conjunction([f"p.dtype == Dtype::{spec.dtype}", *statics, *flags, *bounds])


def conjunction(tests: Iterable[str]) -> str:
    return " && ".join(tests) or "true"


def workspace(variant: Variant) -> str:
    return variant.plan.workspace.to_cpp("p.") if variant.plan.workspace else "0"


# Object files are named after their sources alone, so the names of those differ beyond their folders.
def dispatch_file(task: Task) -> str:
    return f"csrc/{task.name}/dispatch_{task.name}.cpp"


def candidate_file(task: Task, variant: Variant) -> str:
    return f"csrc/{task.name}/candidate_{task.name}_{variant.id12}.cpp"
