"""What the commands share: options, consoles, the archive they open, JSON.

Results go to stdout, progress and errors to stderr; with --json stdout holds one JSON value.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from agent import config as configuration

if TYPE_CHECKING:
    from archive import Archive

EXIT_CODES = (
    "Exit codes: 0 done · 1 nothing passed, or something did not build · 2 bad input · "
    "3 this machine failed us, the run can be resumed · 130 interrupted, the run can be resumed."
)

# A pipe or a file has no width of its own; tables should not be squeezed into 80 columns there.
PIPE_WIDTH = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 200

out = Console(highlight=False, markup=False, emoji=False, width=PIPE_WIDTH)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout.")]
ArchivePath = Annotated[str | None, typer.Option("--archive", help="Path or SQLAlchemy URL of the archive.")]
Toml = Annotated[Path | None, typer.Option("--config", help="TOML file; warpsmith.toml by default.")]
TaskName = Annotated[str | None, typer.Option("--task", "-t", help="Name of a task, or path of its folder or file.")]
NO_TASK = configuration.NO_TASK


def location(archive: str | None) -> str:
    """The archive that is meant: the flag's, else the configured one."""
    return configuration.load({"archive": archive}).archive


def open_archive(where: str) -> Archive:
    """Open an archive; the database library is imported here and no earlier."""
    from agent import published

    return published.open_archive(where)


def print_json(value: Any) -> None:
    """The one JSON value of a command with --json."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")
