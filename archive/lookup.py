"""Finds rows by what a person types: whole ids, or prefixes that fit one row alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from archive.models import AskRow, CandidateRow, RunRow
from sandbox.errors import BadInput

RowT = TypeVar("RowT", CandidateRow, RunRow, AskRow)
SHOWN = 8
"""How many ids a message lists."""


def find(session: Session, table: type[RowT], wanted: str) -> RowT:
    """The row of an id or of a prefix that fits one row alone; BadInput otherwise."""
    exact = session.get(table, wanted)
    if exact is not None:
        return exact
    fits = session.scalars(select(table).where(table.id.startswith(wanted, autoescape=True)).order_by(table.id)).all()
    if not wanted or not fits:
        raise BadInput(_unknown(session, table, wanted))
    if len(fits) > 1:
        raise BadInput(f"{_noun(table)} {wanted!r} fits {len(fits)}: {_listed(fits)}; wanted more of the id")
    return fits[0]


def require(session: Session, table: type[RowT], ids: Sequence[str]) -> None:
    """BadInput naming the first of the ids that is not in the archive."""
    for wanted in ids:
        if session.get(table, wanted) is None:
            raise BadInput(_unknown(session, table, wanted))


def _unknown(session: Session, table: type[RowT], wanted: str) -> str:
    newest = {"candidate": CandidateRow.created_at, "run": RunRow.started_at, "ask": AskRow.at}[_noun(table)]
    rows = session.scalars(select(table).order_by(newest.desc()).limit(SHOWN)).all()
    known = f"the newest are: {_listed(rows)}" if rows else f"it has no {_noun(table)} yet"
    return f"the archive has no {_noun(table)} {wanted!r}; {known}"


def _noun(table: type[RowT]) -> str:
    return table.__tablename__.removesuffix("s")


def _listed(rows: Sequence[RowT]) -> str:
    shown = "; ".join(_described(row) for row in rows[:SHOWN])
    return shown + (f"; and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")


def _described(row: CandidateRow | RunRow | AskRow) -> str:
    if isinstance(row, RunRow):
        return f"{row.id} ({row.task} {row.target}, {row.status})"
    if isinstance(row, AskRow):
        return f"{row.id[:12]} ({row.operator}, {row.at[:16]})"
    return f"{row.id[:12]} ({', '.join(filter(None, (row.task, row.operator, row.note[:40])))})"
