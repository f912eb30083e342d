"""The command line: puts the commands together and turns errors into exit codes.

Heavy modules are imported by the commands that need them, so that --help and `tasks` answer at once.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from agent.commands import candidates, machine, search
from agent.commands.options import EXIT_CODES, err
from sandbox.errors import BadInput, WarpsmithError

app = typer.Typer(
    name="warpsmith",
    help="Searches for fast kernels, judges them honestly, and ships the winners.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tasks = typer.Typer(help="List the tasks, or show one.", invoke_without_command=True)
archive = typer.Typer(help="Move an archive between machines.", no_args_is_help=True)

app.command(epilog=EXIT_CODES)(search.run)
app.command(epilog=EXIT_CODES)(search.resume)
app.command()(candidates.leaderboard)
app.command()(candidates.show)
app.command()(candidates.diff)
app.add_typer(tasks, name="tasks")
tasks.callback()(machine.list_tasks)
tasks.command("show")(machine.show_task)
app.command(epilog=EXIT_CODES)(machine.build)
app.command(epilog=EXIT_CODES)(machine.doctor)
app.add_typer(archive, name="archive")
archive.command("export")(candidates.export_archive)
archive.command("import")(candidates.import_archive)


def main() -> NoReturn:
    """Run the command line and exit with a documented code."""
    try:
        app(prog_name="warpsmith")
    except WarpsmithError as exc:
        err.print(f"error: {exc}", style="bold red", soft_wrap=True)
        sys.exit(2 if isinstance(exc, BadInput) else 3)
    sys.exit(0)
