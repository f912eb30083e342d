"""Templates, and the pieces of C++ that both targets write alike."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from agent.export.coverage import Specialisation, Variant

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


def condition(spec: Specialisation) -> str:
    """The C++ test for the dtype and statics of a problem `p`."""
    statics = [f"p.{name} == {value}" for name, value in spec.statics.items()]
    return conjunction([f"p.dtype == Dtype::{spec.dtype}", *statics])


def conjunction(tests: Iterable[str]) -> str:
    return " && ".join(tests) or "true"


def workspace(variant: Variant) -> str:
    return variant.plan.workspace.to_cpp("p.") if variant.plan.workspace else "0"
