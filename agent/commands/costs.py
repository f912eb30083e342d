"""costs: what a run paid to language models."""

from __future__ import annotations

from typing import Annotated

import typer

from agent import render
from agent.commands.options import ArchivePath, Json, location, open_archive, out, print_json


def costs(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, or the beginning of one.")],
    archive: ArchivePath = None,
    as_json: Json = False,
) -> None:
    """What a run's language models took: tokens, seconds and USD, by model and operator and by candidate."""
    from agent.costs import summary

    with open_archive(location(archive)) as opened:
        found = summary(opened.run(run_id).id, opened.exchanges(run_id))
    if as_json:
        print_json(found.model_dump(mode="json"))
    elif found.total.exchanges:
        out.print(render.costs(found))
    else:
        out.print(f"run {found.run} asked no language model")
