"""mcp: Warpsmith as a server for coding agents."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

import typer

from agent import config as configuration
from agent.commands.options import ArchivePath, err, open_archive
from sandbox.errors import Infrastructure


def mcp(
    target: Annotated[
        Literal["auto", "cuda", "cpu"] | None, typer.Option(help="auto takes a GPU where one answers, else the CPU.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="What kernels are for, where that is not this machine: a name in the archive.")
    ] = None,
    sandbox: Annotated[Literal["auto", "docker", "local"] | None, typer.Option(help="Where candidates run.")] = None,
    archive: ArchivePath = None,
) -> None:
    """Serve coding agents by the Model Context Protocol, on standard input and output."""
    if find_spec("mcp") is None:
        raise Infrastructure("the server needs the package mcp: pip install 'warpsmith[mcp]'")
    from agent.asking.service import Service, Shop
    from agent.server import serve

    wanted = configuration.load({"target": target, "sandbox": sandbox, "archive": archive})
    with open_archive(wanted.archive) as opened:
        shop = Shop(opened, wanted, device, lambda text: err.print(text, style="dim", soft_wrap=True))
        with Service(shop) as service:
            serve(service)
