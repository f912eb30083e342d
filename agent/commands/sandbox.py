"""sandbox build, status and clean: the images that candidates run in, and what was left of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.commands.options import Json, err, out, print_json
from sandbox.errors import BadInput, EngineUnreachable

if TYPE_CHECKING:
    from sandbox.engine import Engine


def build(
    from_host: Annotated[
        bool, typer.Option("--from-host", help="Of this machine's own software, mounted read-only; needs no registry.")
    ] = False,
    cuda: Annotated[str | None, typer.Option(help="Version of the nvidia/cuda image to build on.")] = None,
    torch: Annotated[
        str, typer.Option(help="Version of torch to install, for candidates that are torch sources.")
    ] = "",
) -> None:
    """Make the image of the sandbox."""
    from sandbox import image

    if from_host and (cuda or torch):
        raise BadInput("--from-host takes what this machine has; --cuda and --torch are for an image built without it")
    with _engine() as engine:
        if from_host:
            image.from_host(engine)
        else:
            for line in image.build(engine, cuda or image.CUDA_VERSION, torch):
                err.print(line, soft_wrap=True)
    out.print(image.name("host" if from_host else "cuda"))


def status(as_json: Json = False) -> None:
    """The engine, its image, the way to a GPU, and where candidates would run."""
    from sandbox import launch

    found = _look()
    launcher, why = launch.choose("auto")
    launcher.close()
    found |= {"sandbox": launcher.name, "why": why}
    if as_json:
        print_json(found)
    else:
        for name, value in found.items():
            out.print(f"{name:<10}  {value if value is not None else 'none'}", soft_wrap=True)


def clean(as_json: Json = False) -> None:
    """Remove containers and folders of host programs that were killed. Those of running ones stay."""
    from sandbox.docker import sweep

    with _engine() as engine:
        removed = sweep(engine)
    if as_json:
        print_json(removed)
    else:
        out.print("\n".join(removed) or "nothing was left behind", soft_wrap=True)


def _look() -> dict[str, Any]:
    from sandbox import gpu_route, image

    try:
        with _engine() as engine:
            kind = image.available(engine)
            return {
                "engine": engine.version(),
                "image": image.name(kind) if kind else None,
                "gpu": gpu_route.choose(engine.facts(), host_image=kind != "cuda"),
            }
    except EngineUnreachable as exc:
        return {"engine": None, "reason": str(exc)}


@contextlib.contextmanager
def _engine() -> Iterator[Engine]:
    from sandbox.engine import Engine

    engine = Engine()
    try:
        yield engine
    finally:
        engine.close()
