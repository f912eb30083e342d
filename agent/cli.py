"""The command line: puts the commands together and turns errors into exit codes.

Heavy modules are imported by the commands that need them, so that --help and `tasks` answer at once.
"""

from __future__ import annotations

import sys
from typing import NoReturn, cast

import typer

from agent.commands import (
    asking,
    candidates,
    checking,
    costs,
    exporting,
    judging,
    machine,
    replaying,
    sandbox,
    search,
    serving,
)
from agent.commands import bench as benching
from agent.commands.options import EXIT_CODES, err
from sandbox.errors import BadInput, WarpsmithError

# The base of BadParameter: typer exports no name for it, and which library defines it depends on typer's version.
UsageError: type[typer.BadParameter] = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])

app = typer.Typer(
    name="warpsmith",
    help="Searches for fast kernels, judges them honestly, and ships the winners.",
    epilog=EXIT_CODES,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tasks = typer.Typer(help="List the tasks, show one, or check what a file comes to.", invoke_without_command=True)
archive = typer.Typer(help="Move an archive between machines.")
bench = typer.Typer(help="Measure this machine.", no_args_is_help=True)
containers = typer.Typer(help="Where candidates run: make its image, look at it, clean up.", no_args_is_help=True)

app.command(epilog=EXIT_CODES)(search.run)
app.command(epilog=EXIT_CODES)(search.resume)
app.command(epilog=EXIT_CODES)(replaying.replay)
app.command(epilog=EXIT_CODES)(asking.ask)
app.command(epilog=EXIT_CODES)(asking.tell)
app.command()(serving.mcp)
app.command()(candidates.leaderboard)
app.command()(candidates.show)
app.command()(candidates.diff)
app.command(epilog=EXIT_CODES)(exporting.export)
app.command()(costs.costs)
app.add_typer(tasks, name="tasks")
tasks.callback()(machine.list_tasks)
tasks.command("show")(machine.show_task)
tasks.command("check", epilog=EXIT_CODES)(checking.check_task)
app.command(epilog=EXIT_CODES)(judging.judge)
app.command(epilog=EXIT_CODES)(machine.build)
app.command(epilog=EXIT_CODES)(machine.doctor)
app.add_typer(bench, name="bench")
bench.command("judge")(benching.judge)
app.add_typer(containers, name="sandbox")
containers.command("build", epilog=EXIT_CODES)(sandbox.build)
containers.command("status")(sandbox.status)
containers.command("clean")(sandbox.clean)
app.add_typer(archive, name="archive")
archive.command("export")(candidates.export_archive)
archive.command("import")(candidates.import_archive)
archive.command("verify")(candidates.verify_archive)


def main() -> NoReturn:
    """Run the command line and exit with a documented code."""
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], prog_name="warpsmith", standalone_mode=False) or 0)
    except UsageError as exc:
        _fail(_one_line(exc), 2)
    except BadInput as exc:
        _fail(str(exc), 2)
    except WarpsmithError as exc:
        _fail(str(exc), 3)
    except typer.Abort:
        _fail("interrupted", 130)


def _fail(message: str, code: int) -> NoReturn:
    err.print(f"error: {message}", style="bold red", soft_wrap=True)
    sys.exit(code)


def _one_line(exc: typer.BadParameter) -> str:
    """What is wrong with the command line, and where its help is."""
    message = " ".join(exc.format_message().split()).removesuffix(".").replace("Value error, ", "")
    return f"{message}; see `{exc.ctx.command_path} --help`" if exc.ctx else message
