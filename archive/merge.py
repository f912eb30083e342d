"""Merges exported lines into an archive so that the order of merging never matters.

Candidates, judgements and places in a run are a union. Where two archives know one thing differently, the earlier
origin of a candidate wins, the later state of a run, the earlier place in a run; ties go by content. Exchanges are a
union too; one that has a candidate wins over one that has none. So are asks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from archive.exchange import AskLine, CandidateLine, EvaluationLine, ExchangeLine, JudgementLine, RunLine
from archive.intake import Placed
from archive.models import AskRow, CandidateRow, EvaluationRow, ExchangeRow, JudgementRow, ParentRow, RunRow, TimingRow
from archive.records import ImportReport, Tally, canonical
from archive.rows import (
    Values,
    ask_values,
    candidate_values,
    exchange_values,
    insert_rows,
    judgement_values,
    parent_values,
    run_values,
    timing_values,
    to_candidate,
    to_run,
)
from sandbox.contract import Candidate
from sandbox.errors import BadInput

LineT = TypeVar("LineT", CandidateLine, JudgementLine, RunLine, EvaluationLine, ExchangeLine, AskLine)
Lines = Sequence[tuple[str, LineT]]
"""Lines of one kind, each after its place."""


def merge(session: Session, lines: list[Placed]) -> ImportReport:
    """Bring every line into the archive; BadInput, for the caller to roll back, where one refers to nothing."""
    return ImportReport(
        candidates=_merge_candidates(session, _of(lines, CandidateLine)),
        judgements=_merge_judgements(session, _of(lines, JudgementLine)),
        runs=_merge_runs(session, _of(lines, RunLine)),
        evaluations=_merge_evaluations(session, _of(lines, EvaluationLine)),
        exchanges=_merge_exchanges(session, _of(lines, ExchangeLine)),
        asks=_merge_asks(session, _of(lines, AskLine)),
    )


def _of(lines: list[Placed], kind: type[LineT]) -> Lines[LineT]:
    return [(place, line) for place, line in lines if isinstance(line, kind)]


def _require(place: str, what: str, wanted: Iterable[str], known: Collection[str]) -> None:
    for missing in (each for each in wanted if each not in known):
        raise BadInput(f"{place}: {what} {missing} is neither in the file nor in the archive")


def _tally(lines: Sequence[Any], new: Sequence[Any]) -> Tally:
    return Tally(new=len(new), known=len(lines) - len(new))


def _merge_candidates(session: Session, lines: Lines[CandidateLine]) -> Tally:
    known = {row.id: row for row in session.scalars(select(CandidateRow))}
    new = [(place, line) for place, line in lines if line.id not in known]
    older = [(place, line) for place, line in lines if line.id in known and _is_older(line, known[line.id])]
    insert_rows(session, CandidateRow, [candidate_values(line.record, line.created_at) for _, line in new])
    for _, line in older:
        session.execute(update(CandidateRow), [candidate_values(line.record, line.created_at)])
        session.execute(delete(ParentRow).where(ParentRow.candidate_id == line.id))
    # Lineage after all candidates: a child may stand before its parents.
    there = known.keys() | {line.id for _, line in new}
    for place, line in (*new, *older):
        _require(place, "parent", line.record.parents, there)
    insert_rows(session, ParentRow, [edge for _, line in (*new, *older) for edge in parent_values(line.record)])
    return _tally(lines, new)


def _is_older(line: CandidateLine, known: CandidateRow) -> bool:
    return _origin(line.created_at, line.record) < _origin(known.created_at, to_candidate(known))


def _origin(created_at: str, candidate: Candidate) -> tuple[str, str]:
    return created_at, canonical(candidate.model_dump(mode="json"))


def _merge_judgements(session: Session, lines: Lines[JudgementLine]) -> Tally:
    candidates = set(session.scalars(select(CandidateRow.id)))
    known = set(session.scalars(select(JudgementRow.id)))
    new = [(place, line) for place, line in lines if line.id not in known]
    for place, line in new:
        _require(place, "candidate", (line.judgement.candidate,), candidates)
    insert_rows(session, JudgementRow, [judgement_values(line.judgement, line.text, imported=True) for _, line in new])
    insert_rows(session, TimingRow, [timing for _, line in new for timing in timing_values(line.id, line.judgement)])
    return _tally(lines, new)


def _merge_runs(session: Session, lines: Lines[RunLine]) -> Tally:
    known = {row.id: run_values(to_run(row), row.updated_at) for row in session.scalars(select(RunRow))}
    given = {line.record.id: run_values(line.record, line.updated_at) for _, line in lines}
    new = [values for name, values in given.items() if name not in known]
    insert_rows(session, RunRow, new)
    for name in given.keys() & known.keys():
        if _state(given[name]) > _state(known[name]):
            session.execute(update(RunRow), [given[name]])
    return _tally(lines, new)


def _state(run: Values) -> tuple[str, str]:
    return run["updated_at"], canonical(run)


def _merge_evaluations(session: Session, lines: Lines[EvaluationLine]) -> Tally:
    runs = set(session.scalars(select(RunRow.id)))
    candidates = {
        row.id: row.candidate_id for row in session.execute(select(JudgementRow.id, JudgementRow.candidate_id))
    }
    known = {(row.run_id, row.judgement_id): row for row in session.scalars(select(EvaluationRow))}
    new = [(place, line) for place, line in lines if (line.run, line.judgement) not in known]
    for place, line in new:
        _require(place, "run", (line.run,), runs)
        _require(place, "judgement", (line.judgement,), candidates)
    insert_rows(session, EvaluationRow, [_evaluation(line, candidates[line.judgement]) for _, line in new])
    for _, line in lines:
        row = known.get((line.run, line.judgement))
        if row is not None and line.at < row.at:
            row.at = line.at
    return _tally(lines, new)


def _evaluation(line: EvaluationLine, candidate_id: str) -> Values:
    return {"run_id": line.run, "judgement_id": line.judgement, "candidate_id": candidate_id, "at": line.at}


def _merge_exchanges(session: Session, lines: Lines[ExchangeLine]) -> Tally:
    runs = set(session.scalars(select(RunRow.id)))
    candidates = set(session.scalars(select(CandidateRow.id)))
    found = session.execute(select(ExchangeRow.id, ExchangeRow.candidate_id))
    known = {row.id: row.candidate_id for row in found}
    for place, line in lines:
        _require(place, "run", (line.record.run,), runs)
        _require(place, "candidate", filter(None, (line.record.candidate,)), candidates)
    new = [(place, line) for place, line in lines if line.id not in known]
    insert_rows(session, ExchangeRow, [exchange_values(line.record) for _, line in new])
    for _, line in lines:
        there, given = known.get(line.id), line.record.candidate
        if line.id in known and given is not None and (there is None or given < there):
            session.execute(update(ExchangeRow).where(ExchangeRow.id == line.id).values(candidate_id=given))
    return _tally(lines, new)


def _merge_asks(session: Session, lines: Lines[AskLine]) -> Tally:
    runs = set(session.scalars(select(RunRow.id)))
    candidates = set(session.scalars(select(CandidateRow.id)))
    known = set(session.scalars(select(AskRow.id)))
    for place, line in lines:
        _require(place, "run", (line.record.run,), runs)
        _require(place, "parent", line.record.parents, candidates)
    new = [(place, line) for place, line in lines if line.id not in known]
    insert_rows(session, AskRow, [ask_values(line.record) for _, line in new])
    return _tally(lines, new)
