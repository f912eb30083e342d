"""Opening: what an archive is created from, migrated from, and refused for."""

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import archive.migrations
from archive import Archive
from archive.models import REVISIONS, SCHEMA, VERSION_TABLE, Base
from sandbox.errors import ArchiveUnusable, BadInput

ROOT = Path(__file__).parents[2]


def _sqlite(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_migrations_lead_to_the_models() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(archive.migrations.__file__).parent))
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(revisions)) == REVISIONS


def test_fresh_archive_has_exactly_the_models_tables(archive: Archive) -> None:
    with archive.database.reading() as session:
        context = MigrationContext.configure(
            session.connection(), opts={"version_table": VERSION_TABLE, "compare_type": True}
        )
        assert compare_metadata(context, Base.metadata) == []


def test_archive_is_created_with_its_folder_and_found_again(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "new 100%" / "folder" / "archive.sqlite"
    with Archive.open(path) as archive:
        archive.add(make.candidate())
    with Archive.open(f"sqlite:///{path}") as archive:
        assert archive.candidate(make.candidate().id) == make.candidate()
        assert archive.location == str(path)


def test_empty_file_becomes_an_archive(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with Archive.open(tmp_path / "empty") as archive:
        assert archive.runs() == []


def test_connections_write_ahead_wait_and_keep_foreign_keys(archive: Archive) -> None:
    with archive.database.reading() as session:
        connection = session.connection()
        pragmas = ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        assert [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas] == ["wal", 1, 2, 30_000]


def test_archive_that_is_up_to_date_opens_without_alembic(filled: Archive) -> None:
    program = (
        f"import sys; from archive import Archive; Archive.open({filled.location!r}); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_archive_that_is_up_to_date_opens_in_milliseconds(filled: Archive) -> None:
    durations = []
    for _ in range(5):
        start = time.perf_counter()
        Archive.open(filled.location).close()
        durations.append(time.perf_counter() - start)
    assert min(durations) < 0.05


def test_newer_schema_is_refused_and_left_alone(filled: Archive, tmp_path: Path) -> None:
    path = Path(filled.location)
    filled.close()
    _sqlite(path, f"UPDATE {VERSION_TABLE} SET version_num = '9999'", "ALTER TABLE runs ADD COLUMN mood TEXT")
    before = path.read_bytes()
    with pytest.raises(ArchiveUnusable, match=rf"'9999'; this Warpsmith knows revisions up to '{SCHEMA}'.*upgrade"):
        Archive.open(path)
    assert path.read_bytes() == before


def test_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "places.sqlite"
    _sqlite(path, "CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    with pytest.raises(ArchiveUnusable, match="another program: it has the tables bookmarks"):
        Archive.open(path)
    assert path.read_bytes() == before


def _directory(folder: Path) -> Path:
    return folder


def _text_file(folder: Path) -> Path:
    (folder / "notes.txt").write_text("Buy milk.\n")
    return folder / "notes.txt"


def _long_file(folder: Path) -> Path:
    (folder / "a.bin").write_bytes(bytes(range(1, 256)) * 40)
    return folder / "a.bin"


def _under_a_file(folder: Path) -> Path:
    return _text_file(folder) / "archive.sqlite"


def _where_nobody_writes(folder: Path) -> Path:
    return Path("/proc/warpsmith/archive.sqlite")


def _header_alone(folder: Path) -> Path:
    (folder / "b.bin").write_bytes(b"SQLite format 3\x00" + bytes(range(256)) * 40)
    return folder / "b.bin"


def _cut_archive(folder: Path) -> Path:
    Archive.open(folder / "whole").close()
    (folder / "cut").write_bytes((folder / "whole").read_bytes()[:5000])
    return folder / "cut"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_directory, "is a directory"),
        (_text_file, "not a SQLite database: it begins with b'Buy milk"),
        (_long_file, "not a SQLite database"),
        (_under_a_file, "cannot be opened or created"),
        (_where_nobody_writes, "cannot be opened or created"),
        (_cut_archive, "malformed"),
        (_header_alone, "not a database"),
    ],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, broken: Callable[[Path], Path], message: str) -> None:
    path = broken(tmp_path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ArchiveUnusable, match=message) as caught:
        Archive.open(path)
    assert str(path) in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite://", "sqlite:///:memory:", "://", "nonsense://x"])
def test_url_of_no_archive_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match="wanted a path"):
        Archive.open(url)


def test_unreachable_postgresql_is_unusable_and_keeps_its_password() -> None:
    with pytest.raises(ArchiveUnusable) as caught:
        Archive.open("postgresql://me:hunter2@localhost:1/archive")
    assert "hunter2" not in str(caught.value)


def test_stuck_writer_is_named_after_the_wait(filled: Archive, make: Any) -> None:
    holder = sqlite3.connect(filled.location)
    holder.execute("BEGIN IMMEDIATE")
    with filled.database.reading() as session:
        session.connection().exec_driver_sql("PRAGMA busy_timeout=50")
    with pytest.raises(ArchiveUnusable, match=r"archive\.sqlite: database is locked"):
        filled.add(make.candidate("// late"))
    holder.close()
    filled.add(make.candidate("// late"))
