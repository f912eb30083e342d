"""Winners in, the source tree of one PyTorch extension out.

What was judged is what ships: on cuda the very cubins, on cpu the same sources with the same flags; the host side is
written from the plans. Not covered: which candidate wins a workload (archive), and wheels (the tree's own setup.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agent.export import signature, tree
from agent.export.coverage import Winner, check_winners, cover, served
from agent.export.verify import ExtensionCheck, ExtensionReport, verify
from sandbox.contract import Device, Record, Task
from sandbox.toolchain import Toolchain

__all__ = ["Composed", "ExtensionCheck", "ExtensionReport", "Winner", "compose", "verify"]


class Composed(Record):
    """A source tree that is complete."""

    root: Path
    package: str
    candidates: tuple[str, ...]
    """Ids of the candidates in it."""
    served: tuple[str, ...]
    """Names of the workloads, search and held-out, that something in it was compiled for."""


def compose(task: Task, winners: Mapping[str, Winner], toolchain: Toolchain, device: Device, out: Path) -> Composed:
    """Write the extension of the winners, by workload name, to a folder of its own under `out`.

    Raises BadInput where a winner does not belong to the task, did not pass or does not compile, and PlanError where
    its header is wrong.
    """
    check_winners(task, winners)
    signature.axis_sources(task)
    variants = cover(task, winners, toolchain, device)
    package = tree.package_name(task, variants)
    root = out.resolve() / package
    tree.write(tree.files(task, package, variants, dict(winners), device), root)
    ids = tuple(variant.candidate.id for variant in variants)
    return Composed(root=root, package=package, candidates=ids, served=tuple(served(task, variants)))
