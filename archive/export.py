"""Writes an archive to a file that other archives can import; the same archive gives the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from archive.exchange import (
    AskLine,
    CandidateLine,
    EndLine,
    EvaluationLine,
    ExchangeLine,
    Header,
    JudgementLine,
    Line,
    RunLine,
    written,
)
from archive.models import AskRow, CandidateRow, EvaluationRow, ExchangeRow, JudgementRow, RunRow
from archive.rows import to_ask, to_candidate, to_exchange, to_judgement_record, to_run
from sandbox.contract import Record
from sandbox.errors import BadInput


def export(session: Session, path: Path) -> int:
    """Write every record to `path`, gzipped where it ends in .gz; the number of records.

    The file appears whole or not at all. BadInput where it cannot be written.
    """
    if path.is_dir():
        raise BadInput(f"cannot export to {path}: it is a directory; wanted a file such as {path / 'archive.jsonl'}")
    try:
        with _replacing(path) as file:
            return _write(file, _lines(session))
    except OSError as exc:
        raise BadInput(f"cannot export to {path}: {exc.strerror or exc}; wanted a file that can be written") from exc


def _write(file: IO[bytes], lines: Iterator[Line]) -> int:
    digest = hashlib.sha256()
    counts: Counter[str] = Counter()

    def put(line: Record) -> None:
        text = written(line)
        digest.update(text)
        file.write(text)

    put(Header())
    for line in lines:
        put(line)
        counts[line.kind] += 1
    put(EndLine(counts=dict(counts), sha256=digest.hexdigest()))
    return counts.total()


def _lines(session: Session) -> Iterator[Line]:
    for row in session.scalars(select(CandidateRow).order_by(CandidateRow.created_at, CandidateRow.id)):
        yield CandidateLine(id=row.id, created_at=row.created_at, record=to_candidate(row))
    for judged in session.scalars(select(JudgementRow).order_by(JudgementRow.judged_at, JudgementRow.id)):
        yield JudgementLine(id=judged.id, record=to_judgement_record(judged))
    for run in session.scalars(select(RunRow).order_by(RunRow.id)):
        yield RunLine(updated_at=run.updated_at, record=to_run(run))
    order = (EvaluationRow.run_id, EvaluationRow.at, EvaluationRow.judgement_id)
    for place in session.scalars(select(EvaluationRow).order_by(*order)):
        yield EvaluationLine(run=place.run_id, judgement=place.judgement_id, at=place.at)
    ids = session.scalars(select(ExchangeRow.id).order_by(ExchangeRow.run_id, ExchangeRow.at, ExchangeRow.id)).all()
    for exchange_id in ids:
        # One at a time: a run's replies may be many times what memory should hold.
        exchange = session.get_one(ExchangeRow, exchange_id)
        yield ExchangeLine(id=exchange.id, record=to_exchange(exchange))
        session.expunge(exchange)
    for ask in session.scalars(select(AskRow).order_by(AskRow.run_id, AskRow.at, AskRow.id)):
        yield AskLine(id=ask.id, record=to_ask(ask))


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file beside `path` that takes its place once it is complete and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("xb") as file:
            with _packed(file, path) as content:
                yield content
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _packed(file: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    if path.suffix != ".gz":
        yield file
        return
    # Neither name nor time goes into the gzip header: equal archives give equal files.
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
        yield cast(IO[bytes], packed)
