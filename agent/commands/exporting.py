"""export: the best kernels of an archive as one package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from agent import render
from agent.commands.options import ArchivePath, Json, err, location, open_archive, out, print_json


def export(
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", help="Name or path of a task; all that have a kernel by default."),
    ] = None,
    target: Annotated[
        Literal["auto", "cuda", "cpu"], typer.Option(help="auto takes this machine's, else the one with kernels.")
    ] = "auto",
    device: Annotated[
        list[str] | None, typer.Option(help="Name of a GPU or CPU that judged, or its beginning; all GPUs by default.")
    ] = None,
    archive: ArchivePath = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Where project and wheel go.")] = Path("dist"),
    name: Annotated[str, typer.Option(help="What the package is imported as.")] = "warpsmith_kernels",
    source_only: Annotated[bool, typer.Option("--source-only", help="Write the project and build no wheel.")] = False,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="A further problem size to judge and serve: TASK:NAME=VALUE,… for every axis and scalar."),
    ] = None,
    shapes: Annotated[Path | None, typer.Option(help="TOML file of further problem sizes.")] = None,
    sandbox: Annotated[
        Literal["auto", "docker", "local"], typer.Option(help="Where kernels run on those that have no verdict yet.")
    ] = "auto",
    hub: Annotated[bool, typer.Option("--hub", help="Also in the layout of Hugging Face's kernels.")] = False,
    licence: Annotated[
        Path | None, typer.Option("--license", help="File with the licence that you give the package.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn the fastest kernels of an archive into one project and one wheel."""
    from agent import exporting, importing, session
    from agent import shapes as further

    exporting.check_name(name)
    text = importing.read_text(licence) if licence else ""
    wanted = further.read(shape or (), shapes)
    with open_archive(location(archive)) as opened:
        chosen = exporting.choose(opened, target, task or (), device or (), wanted, sandbox, _say)
    with session.toolchain() as toolchain:
        exported = exporting.export(chosen, toolchain, out_dir, name, wheel=not source_only, hub=hub, licence=text)
    if as_json:
        print_json(exported.model_dump(mode="json"))
    else:
        out.print(render.exported(exported))
    if exported.ok is False:
        raise typer.Exit(1)


def _say(text: str) -> None:
    err.print(text, style="dim", soft_wrap=True)
