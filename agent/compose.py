"""Winners in, the source tree of one PyTorch extension out.

What was judged is what ships: on cuda the very cubins, on cpu the same sources with the same flags; the host side is
written from the plans. Not covered: which candidate wins a workload (archive), and wheels (the tree's own setup.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.export import signature, tree
from agent.export.coverage import Part, Winner, check_parts, ops, served
from agent.export.verify import ExtensionCheck, ExtensionReport, verify
from sandbox.contract import Record
from sandbox.toolchain import Toolchain

__all__ = ["Composed", "ExtensionCheck", "ExtensionReport", "Part", "Winner", "compose", "verify"]


class Composed(Record):
    """A source tree that is complete."""

    root: Path
    package: str
    """Name for `import` and pip."""
    namespace: str
    """Of the operators: torch.ops.<namespace>.<task>. It is this content's own."""
    candidates: tuple[str, ...]
    """Ids of the candidates in it."""
    served: dict[str, tuple[str, ...]]
    """By task: names of the workloads, search and held-out, that something in it was compiled for."""


def compose(parts: Sequence[Part], toolchain: Toolchain, out: Path, name: str | None = None) -> Composed:
    """Write the extension of the winners of one or more tasks to a folder of its own under `out`.

    Without a `name` it is called after its tasks and its content. Raises BadInput where a winner does not belong to its
    task, did not pass or does not compile, and PlanError where its header is wrong.
    """
    check_parts(parts)
    for part in parts:
        signature.check(part.task)
    made = ops(parts, toolchain)
    library = tree.library(made, name)
    root = out.resolve() / library.package
    tree.write(tree.files(library), root)
    return Composed(
        root=root,
        package=library.package,
        namespace=library.namespace,
        candidates=tuple(dict.fromkeys(variant.candidate.id for op in made for variant in op.variants)),
        served={op.task.name: tuple(served(op.task, op.variants)) for op in made},
    )
