"""Opens the database behind an archive: checks that it is one, creates or migrates its tables, hands out sessions.

Writers take turns: SQLite by BEGIN IMMEDIATE, PostgreSQL by an advisory lock, so whoever writes sees everything
written before and may check, then insert. Not covered: what is stored (models, store).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

from archive.models import REVISIONS, SCHEMA, VERSION_TABLE
from archive.records import canonical
from sandbox.errors import ArchiveUnusable, BadInput

BUSY_SECONDS = 30.0
"""How long a writer waits for another process's transaction."""
WRITE_LOCK = 0x77617270
"""PostgreSQL advisory lock held by whoever writes."""
SQLITE_MAGIC = b"SQLite format 3\x00"


class Database:
    """A database with the current tables. Thread-safe; `location` is fit to be printed."""

    def __init__(self, path_or_url: str | Path) -> None:
        url = _url(path_or_url)
        self.location = url.render_as_string()
        if url.get_backend_name() == "sqlite":
            self.location = str(url.database)
            _check_file(Path(self.location))
        self._engine = _engine(url)
        self._writer = self._engine.execution_options(writes=True)
        try:
            self._bring_up_to_date()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one state of the archive throughout."""
        with self._translating(), Session(self._engine) as session, session.begin():
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session that is alone in writing; everything in it is committed at the end, or nothing."""
        with self._translating(), Session(self._writer) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as exc:
            # Only what the machine did to us: a violated constraint or wrong SQL is a bug and stays one.
            if isinstance(exc, OperationalError | InterfaceError) or type(exc) is DatabaseError:
                raise ArchiveUnusable(f"archive {self.location}: {exc.orig}") from exc
            raise
        except sqlite3.Error as exc:
            # From a connection's first pragmas, which SQLAlchemy does not wrap.
            raise ArchiveUnusable(f"archive {self.location}: {exc}") from exc

    def _bring_up_to_date(self) -> None:
        with self._translating():
            with self._engine.connect() as connection:
                found = self._revision(connection)
            if self._engine.dialect.name == "sqlite":
                _use_wal(self._engine)
            if found != SCHEMA:
                self._migrate()

    def _revision(self, connection: Connection) -> str | None:
        """The schema revision found, None for an empty database."""
        tables = inspect(connection).get_table_names()
        if VERSION_TABLE not in tables:
            if tables:
                raise ArchiveUnusable(
                    f"{self.location} is a database of another program: it has the tables {', '.join(sorted(tables))} "
                    f"but no {VERSION_TABLE}; give the archive a database of its own"
                )
            return None
        found: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))
        if found is not None and found not in REVISIONS:
            raise ArchiveUnusable(
                f"archive {self.location} has schema revision {found!r}; this Warpsmith knows revisions up to "
                f"{SCHEMA!r}. A newer Warpsmith wrote it: upgrade Warpsmith, or name another archive. "
                "Nothing was changed"
            )
        return found

    def _migrate(self) -> None:
        # Imported late: an archive that is up to date opens without alembic.
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        with self._writer.begin() as connection:
            # Another process may have migrated while this one waited for its turn.
            if self._revision(connection) != SCHEMA:
                config.attributes["connection"] = connection
                command.upgrade(config, SCHEMA)


def _url(path_or_url: str | Path) -> URL:
    if isinstance(path_or_url, Path) or "://" not in path_or_url:
        return URL.create("sqlite", database=str(path_or_url))
    try:
        url = make_url(path_or_url)
        backend = url.get_backend_name()
    except ArgumentError as exc:
        raise BadInput("the archive's URL cannot be read; wanted a path, sqlite:///PATH or postgresql://…") from exc
    if backend not in ("sqlite", "postgresql"):
        raise BadInput(f"no archive in {backend}; wanted a path, sqlite:///PATH or postgresql://…")
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise BadInput("an archive in memory would forget everything; wanted a path or sqlite:///PATH")
    return url


def _check_file(path: Path) -> None:
    """Refuse what is no SQLite database before SQLite touches it; make the folder where there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise ArchiveUnusable(f"archive {path} is a directory; wanted a file, such as {path / 'archive.sqlite'}")
        head = _head(path)
    except OSError as exc:
        raise ArchiveUnusable(f"archive {path} cannot be opened or created: {exc.strerror}") from exc
    if head and head != SQLITE_MAGIC:
        raise ArchiveUnusable(f"archive {path} is not a SQLite database: it begins with {head!r}; nothing was changed")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ArchiveUnusable(f"archive {path} cannot be written: no permission")


def _head(path: Path) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        return file.read(len(SQLITE_MAGIC))


def _engine(url: URL) -> Engine:
    sqlite = url.get_backend_name() == "sqlite"
    options: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS}} if sqlite else {"pool_pre_ping": True}
    try:
        engine = create_engine(url, json_serializer=canonical, **options)
    except ModuleNotFoundError as exc:
        raise ArchiveUnusable(f"archive {url.render_as_string()} needs the Python package {exc.name}") from exc
    if sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite if sqlite else _begin_postgresql)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    # Transactions are begun by _begin_sqlite alone; sqlite3's own rules would leave DDL outside of them.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")
    # FULL: a committed judgement outlives power loss too, for one fsync per commit.
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get("writes"):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")
    else:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")


def _use_wal(engine: Engine) -> None:
    """Readers and the writer do not wait for each other; kept in the file, so this is a no-op but once."""
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()
