"""replay: a recorded run again, without a key."""

from __future__ import annotations

from typing import Annotated

import typer

from agent import render
from agent.commands.options import ArchivePath, Json, TaskName, err, location, open_archive, out, print_json


def replay(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, or the beginning of one.")],
    task: TaskName = None,
    no_judge: Annotated[bool, typer.Option("--no-judge", help="Only read the recorded replies again.")] = False,
    archive: ArchivePath = None,
    as_json: Json = False,
) -> None:
    """Read a run's recorded replies again and judge its candidates again here, beside what is on record.

    Asks no model and needs no key. Exit code 1 where another candidate came of a reply, or another kind of verdict.
    """
    from agent import session
    from agent.progress import Lines

    with open_archive(location(archive)) as opened:
        found = session.replay(opened, opened.run(run_id), task, not no_judge, Lines(err).report)
    if as_json:
        print_json({"same": found.same, **found.model_dump(mode="json")})
    else:
        out.print(render.replayed(found))
    if not found.same:
        raise typer.Exit(1)
