"""What Warpsmith's own searches found, as exports that the user's archive begins with.

Only the archive in the user's data folder does: one that is named with --archive or in a configuration begins empty.
"""

from __future__ import annotations

from pathlib import Path

import archive
from agent.config import default_archive
from archive import Archive

FOLDER = Path(archive.__file__).parent / "published"


def files() -> list[Path]:
    """Exports that come with Warpsmith."""
    return sorted(FOLDER.glob("*.jsonl*"))


def open_archive(where: str) -> Archive:
    """Open an archive by path or URL."""
    return Archive.open(where, files() if where == default_archive() else ())
