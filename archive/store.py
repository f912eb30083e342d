"""The archive: every candidate, judgement, run, ask and exchange with a model, kept for good.

Adding anything twice is harmless, and nothing here deletes. One call is one transaction: after any kill the
archive holds all of it or nothing of it. Not covered: what is best (leaderboard), files for other archives (exchange).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session

from archive.database import Database
from archive.export import export
from archive.intake import read
from archive.lineage import Edges, ancestors
from archive.lookup import find, require
from archive.merge import merge
from archive.models import AskRow, CandidateRow, EvaluationRow, ExchangeRow, JudgementRow, ParentRow, RunRow, TimingRow
from archive.records import Ask, Exchange, ImportReport, Run, RunStatus, exact, time_after, utc_now
from archive.rows import (
    ask_values,
    candidate_values,
    exchange_values,
    insert_rows,
    judgement_values,
    parent_values,
    run_values,
    timing_values,
    to_ask,
    to_candidate,
    to_exchange,
    to_judgement,
    to_run,
)
from sandbox.contract import JUDGE_VERSION, Candidate, Judgement, Target
from sandbox.errors import BadInput

Judged = list[tuple[Candidate, Judgement]]


class Archive:
    """An open archive; a context manager. Safe to share between threads, and its file between processes."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    def open(cls, path_or_url: str | Path, begin_with: Sequence[Path] = ()) -> Self:
        """Open an archive, creating or migrating it where needed; ArchiveUnusable where that cannot be done.

        One that holds no candidate yet takes in the exports that it is to begin with.
        """
        opened = cls(Database(path_or_url))
        try:
            if begin_with and not opened._count(CandidateRow):
                for file in begin_with:
                    opened.import_(file)
        except BaseException:
            opened.close()
            raise
        return opened

    def close(self) -> None:
        """Close the database's connections."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def location(self) -> str:
        """Path or URL, without a password."""
        return self.database.location

    # ------------------------------------------------------------ candidates

    def add(self, candidate: Candidate) -> str:
        """Remember a candidate and return its id. One that is known stays as it was first recorded.

        BadInput where a parent is not in the archive.
        """
        with self.database.writing() as session:
            _add(session, candidate)
        return candidate.id

    def candidate(self, id_or_prefix: str) -> Candidate:
        """The candidate of an id or of a prefix that fits one alone; BadInput otherwise."""
        with self.database.reading() as session:
            return to_candidate(find(session, CandidateRow, id_or_prefix))

    def lineage(self, candidate_id: str) -> list[Candidate]:
        """A candidate after all its ancestors, parents always before their children."""
        with self.database.reading() as session:
            row = find(session, CandidateRow, candidate_id)
            line = ancestors(row.id, _edges(session))
            rows = {found.id: found for found in session.scalars(select(CandidateRow).where(CandidateRow.id.in_(line)))}
            return [to_candidate(rows[name]) for name in line]

    def edges(self) -> Edges:
        """The parents of every candidate that has any."""
        with self.database.reading() as session:
            return _edges(session)

    # ------------------------------------------------------------ judgements

    def record(self, judgement: Judgement, run_id: str | None = None) -> None:
        """Remember a judgement, its timings and its place in a run, all at once.

        A judgement that is known gets no second row, nor a second place in the same run.
        BadInput where the candidate or the run is not in the archive.
        """
        values = judgement_values(judgement)
        with self.database.writing() as session:
            require(session, CandidateRow, (judgement.candidate,))
            if session.get(JudgementRow, values["id"]) is None:
                insert_rows(session, JudgementRow, [values])
                insert_rows(session, TimingRow, timing_values(values["id"], judgement))
            if run_id is not None:
                require(session, RunRow, (run_id,))
                _place(session, run_id, values["id"], judgement.candidate)

    def judged(
        self,
        candidate_id: str,
        task_version: str,
        target: Target,
        device: str,
        judge_version: int = JUDGE_VERSION,
        confirmed: bool = False,
        here: bool = False,
    ) -> Judgement | None:
        """The newest judgement under exactly this key; with `confirmed`, the newest that is a confirmed Passed.

        With `here`, none that came by import: another machine measured those, whatever its GPU is called.
        """
        query = select(JudgementRow).filter_by(
            candidate_id=candidate_id,
            task_version=task_version,
            target=target,
            device=device,
            judge_version=judge_version,
        )
        if confirmed:
            query = query.where(JudgementRow.confirmed)
        if here:
            query = query.where(JudgementRow.imported.is_(False))
        with self.database.reading() as session:
            row = session.scalar(query.order_by(JudgementRow.judged_at.desc(), JudgementRow.id.desc()).limit(1))
            return to_judgement(row) if row else None

    def judgements(self, task: str | None = None, target: Target | None = None, device: str | None = None) -> Judged:
        """Every judgement of a task, target and device, None meaning any; in order of time.

        A candidate stands under the task it was judged for.
        """
        given = _given({"task": task, "target": target, "device": device})
        wanted = [getattr(JudgementRow, name) == value for name, value in given.items()]
        query = _judged().where(*wanted).order_by(JudgementRow.judged_at, JudgementRow.id)
        with self.database.reading() as session:
            return _pairs(session, query)

    # ------------------------------------------------------------ runs

    def start_run(self, run: Run) -> str:
        """Remember a run and return its id; the same run twice is harmless. BadInput where another has its id."""
        with self.database.writing() as session:
            known = session.get(RunRow, run.id)
            if known is None:
                insert_rows(session, RunRow, [run_values(run, utc_now())])
            elif run_values(to_run(known), "") != run_values(run, ""):
                raise BadInput(f"run {run.id} is already in archive {self.location}; wanted a new id, or a resume")
        return run.id

    def update_run(
        self,
        run_id: str,
        *,
        status: RunStatus | None = None,
        seconds_spent: float | None = None,
        usd_spent: float | None = None,
        winners: dict[str, str] | None = None,
        note: str | None = None,
    ) -> Run:
        """Change what is given and return the run. A status other than `running` sets `ended_at`."""
        changes = _given(
            {"status": status, "seconds_spent": seconds_spent, "usd_spent": usd_spent, "winners": winners, "note": note}
        )
        with self.database.writing() as session:
            row = find(session, RunRow, run_id)
            changes["updated_at"] = time_after(row.updated_at)
            if status is not None:
                changes["ended_at"] = None if status == "running" else changes["updated_at"]
            run = Run.model_validate(to_run(row).model_dump() | {k: v for k, v in changes.items() if k != "updated_at"})
            session.execute(update(RunRow).where(RunRow.id == row.id).values(changes))
        return run

    def run(self, id_or_prefix: str) -> Run:
        """The run of an id or of a prefix that fits one alone; BadInput otherwise."""
        with self.database.reading() as session:
            return to_run(find(session, RunRow, id_or_prefix))

    def runs(self) -> list[Run]:
        """Every run, the newest first."""
        with self.database.reading() as session:
            rows = session.scalars(select(RunRow).order_by(RunRow.started_at.desc(), RunRow.id.desc()))
            return [to_run(row) for row in rows]

    def history(self, run_id: str) -> Judged:
        """The trajectory of a run: what it evaluated, in order."""
        with self.database.reading() as session:
            row = find(session, RunRow, run_id)
            joined = _judged().join(EvaluationRow, EvaluationRow.judgement_id == JudgementRow.id)
            query = joined.where(EvaluationRow.run_id == row.id)
            return _pairs(session, query.order_by(EvaluationRow.at, EvaluationRow.judgement_id))

    # ------------------------------------------------------------ models

    def record_exchange(self, exchange: Exchange) -> str:
        """Remember an exchange with a model, charge it to its run, and return its id; twice is harmless.

        BadInput where the run or the candidate is not in the archive.
        """
        values = exchange_values(exchange)
        with self.database.writing() as session:
            require(session, RunRow, (exchange.run,))
            require(session, CandidateRow, [exchange.candidate] if exchange.candidate else [])
            if session.get(ExchangeRow, values["id"]) is None:
                insert_rows(session, ExchangeRow, [values])
                _charge(session, exchange)
        return exchange.id

    def attribute_exchange(self, exchange_id: str, candidate_id: str) -> None:
        """Say which candidate came of an exchange. What was said first stays."""
        with self.database.writing() as session:
            require(session, CandidateRow, (candidate_id,))
            _attribute(session, exchange_id, candidate_id)

    def add_made(self, candidate: Candidate, exchange_ids: Sequence[str]) -> str:
        """`add` a candidate and say of which exchanges it came, all at once; return its id."""
        with self.database.writing() as session:
            _add(session, candidate)
            for exchange_id in exchange_ids:
                _attribute(session, exchange_id, candidate.id)
        return candidate.id

    def exchanges(self, run_id: str) -> list[Exchange]:
        """A run's exchanges with models, in order of time."""
        with self.database.reading() as session:
            run = find(session, RunRow, run_id)
            query = select(ExchangeRow).where(ExchangeRow.run_id == run.id)
            return [to_exchange(row) for row in session.scalars(query.order_by(ExchangeRow.at, ExchangeRow.id))]

    # ------------------------------------------------------------ asks

    def record_ask(self, ask: Ask) -> str:
        """Remember an ask and return its id; twice is harmless.

        BadInput where the run or a parent is not in the archive.
        """
        with self.database.writing() as session:
            require(session, RunRow, (ask.run,))
            require(session, CandidateRow, ask.parents)
            if session.get(AskRow, ask.id) is None:
                insert_rows(session, AskRow, [ask_values(ask)])
        return ask.id

    def ask(self, id_or_prefix: str) -> Ask:
        """The ask of an id or of a prefix that fits one alone; BadInput otherwise."""
        with self.database.reading() as session:
            return to_ask(find(session, AskRow, id_or_prefix))

    def asks(self, run_id: str) -> list[Ask]:
        """A run's asks, in order of time."""
        with self.database.reading() as session:
            run = find(session, RunRow, run_id)
            query = select(AskRow).where(AskRow.run_id == run.id)
            return [to_ask(row) for row in session.scalars(query.order_by(AskRow.at, AskRow.id))]

    # ------------------------------------------------------------ exchange

    def export(self, path: str | Path) -> int:
        """Write everything to a JSONL file (gzipped where the name ends in .gz) and return the number of records.

        The same archive gives the same bytes. The file appears whole or not at all.
        """
        with self.database.reading() as session:
            return export(session, Path(path))

    def import_(self, path: str | Path) -> ImportReport:
        """Merge an exported file: all of it, or, where anything in it is wrong, BadInput and nothing."""
        lines = read(Path(path))
        with self.database.writing() as session:
            return merge(session, lines)

    def _count(self, kind: type[CandidateRow]) -> int:
        with self.database.reading() as session:
            return session.scalar(select(func.count()).select_from(kind)) or 0


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _judged() -> Select[CandidateRow, JudgementRow]:
    return (
        select(CandidateRow, JudgementRow)
        .select_from(JudgementRow)
        .join(CandidateRow, CandidateRow.id == JudgementRow.candidate_id)
    )


def _pairs(session: Session, query: Select[CandidateRow, JudgementRow]) -> Judged:
    return [(to_candidate(candidate, row.task), to_judgement(row)) for candidate, row in session.execute(query)]


def _edges(session: Session) -> Edges:
    edges: dict[str, tuple[str, ...]] = {}
    for row in session.scalars(select(ParentRow).order_by(ParentRow.candidate_id, ParentRow.ordinal)):
        edges[row.candidate_id] = (*edges.get(row.candidate_id, ()), row.parent_id)
    return edges


def _add(session: Session, candidate: Candidate) -> None:
    if session.get(CandidateRow, candidate.id) is None:
        require(session, CandidateRow, candidate.parents)
        insert_rows(session, CandidateRow, [candidate_values(candidate, utc_now())])
        insert_rows(session, ParentRow, parent_values(candidate))


def _attribute(session: Session, exchange_id: str, candidate_id: str) -> None:
    row = session.get_one(ExchangeRow, exchange_id)
    row.candidate_id = row.candidate_id or candidate_id


def _place(session: Session, run_id: str, judgement_id: str, candidate_id: str) -> None:
    """Put a judgement at the end of a run's trajectory, unless it has a place there."""
    if session.get(EvaluationRow, (run_id, judgement_id)) is None:
        last = session.scalar(select(func.max(EvaluationRow.at)).where(EvaluationRow.run_id == run_id))
        place = {"run_id": run_id, "judgement_id": judgement_id, "candidate_id": candidate_id, "at": time_after(last)}
        insert_rows(session, EvaluationRow, [place])


def _charge(session: Session, exchange: Exchange) -> None:
    """Add what an exchange cost to its run; only one writer is at it at a time."""
    if exchange.usd:
        run = session.get_one(RunRow, exchange.run)
        run.usd_spent = float(exact(run.usd_spent) + exact(exchange.usd))
        run.updated_at = time_after(run.updated_at)
