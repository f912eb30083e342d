"""tasks check: what a task, or a PyTorch file, comes to for a kernel, or exactly why nothing can be made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agent.commands.options import Json, out, print_json

if TYPE_CHECKING:
    from agent.checking import Checked, Size


def check_task(
    task: Annotated[str, typer.Argument(help="Name of a task, or path of its folder or file.")],
    target: Annotated[
        Literal["auto", "cuda", "cpu"], typer.Option(help="auto takes a GPU where one answers, else the CPU.")
    ] = "auto",
    as_json: Json = False,
) -> None:
    """What a kernel of this task must be: prototype, parameters, workloads, tolerance. Exit code 2 where it is none."""
    from agent.checking import check
    from sandbox import devices

    found = check(task, devices.detect("auto").target if target == "auto" else target)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        out.print("\n".join(_lines(found)), soft_wrap=True)


def _lines(found: Checked) -> Iterator[str]:
    yield f"{found.name} · {found.target}: {found.summary}"
    yield f"version {found.version}, {found.seeds or 'no'} seed kernel{'' if found.seeds == 1 else 's'}"
    yield ""
    yield found.prototype
    yield ""
    width = max(len(parameter.name) for parameter in found.parameters)
    for p in found.parameters:
        origin = f"  = {p.origin}" if p.origin else ""
        yield f"{p.role:<8} {p.name:<{width}}  {p.dtype}[{', '.join(p.shape)}]{origin}"
    yield from (f"scalar   {s.name:<{width}}  {s.type}" for s in found.scalars)
    yield ""
    yield f"scalar_t   {', '.join(found.dtypes)}"
    yield f"axes       {', '.join(found.axes) or 'none'}{f': {found.why_fixed}' if found.why_fixed else ''}"
    yield from _sizes("workloads", found.workloads)
    yield from _sizes("held out", found.held_out)
    yield f"bytes      {found.bytes_moved}"
    yield f"tolerance  {found.tolerance:g} times the error of PyTorch's own answer"
    if found.mode:
        yield f"mode       {found.mode}"


def _sizes(title: str, sizes: Sequence[Size]) -> Iterator[str]:
    if not sizes:
        yield f"{title:<10} none; every check has values of its own"
    for i, size in enumerate(sizes):
        weight = f"{size.floor_bytes:,} bytes must move, tensors take {size.held_bytes:,}"
        yield f"{title if i == 0 else '':<10} {size.name}: {weight}"
