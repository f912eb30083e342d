"""Records to table rows and back. Not covered: transactions and queries (store)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from archive.models import AskRow, Base, CandidateRow, ExchangeRow, JudgementRow, RunRow
from archive.records import Ask, Exchange, Run, content_id, judgement_text, normal_time
from sandbox.contract import Candidate, Judgement, Measurement, Passed, Timing

Values = dict[str, Any]
"""Column values of one row."""


def candidate_values(candidate: Candidate, created_at: str) -> Values:
    """The row of a candidate, its parents aside. ValueError for a torch source: there is no column for the form."""
    if candidate.form != "kernel":
        raise ValueError(f"candidate {candidate.id} is of the form {candidate.form!r}; only kernels are archived")
    fields = candidate.model_dump(exclude={"parents", "form"})
    return {"id": candidate.id, "created_at": created_at, **fields}


def parent_values(candidate: Candidate) -> list[Values]:
    """The lineage edges of a candidate."""
    child = candidate.id
    return [
        {"candidate_id": child, "ordinal": ordinal, "parent_id": parent}
        for ordinal, parent in enumerate(candidate.parents)
    ]


def to_candidate(row: CandidateRow, task: str | None = None) -> Candidate:
    """The candidate of a row; under `task` where the same text was judged for a task it was not written for."""
    return Candidate.model_validate(
        {
            "task": task or row.task,
            "parents": tuple(edge.parent_id for edge in row.parents),
            **{name: getattr(row, name) for name in ("target", "source", "tunables", "operator", "proposer", "note")},
        }
    )


def judgement_values(judgement: Judgement, text: str | None = None, imported: bool = False) -> Values:
    """The row of a judgement. `text` is its canonical JSON where that is known already."""
    record = text or judgement_text(judgement)
    passed = judgement.verdict if isinstance(judgement.verdict, Passed) else None
    keys = ("task", "task_version", "target", "device", "judge_version", "seconds")
    return {
        "id": content_id(record),
        "candidate_id": judgement.candidate,
        "confirmed": passed is not None and passed.confirmed,
        "imported": imported,
        "status": judgement.verdict.status,
        "latency_ms": passed.latency_ms if passed else None,
        "judged_at": normal_time(judgement.judged_at),
        "record": record,
        **{key: getattr(judgement, key) for key in keys},
    }


def to_judgement(row: JudgementRow) -> Judgement:
    """The judgement of a row."""
    return Judgement.model_validate_json(row.record)


def to_judgement_record(row: JudgementRow) -> dict[str, Any]:
    """The judgement of a row as it was written, whichever program wrote it."""
    record: dict[str, Any] = json.loads(row.record)
    return record


def timing_values(judgement_id: str, judgement: Judgement) -> list[Values]:
    """Rows of every subject on every workload; none unless the verdict is Passed."""
    if not isinstance(judgement.verdict, Passed):
        return []
    return [
        {"judgement_id": judgement_id, "ordinal": ordinal, "workload": timing.workload, **subject}
        for ordinal, timing in enumerate(judgement.verdict.timings)
        for subject in _subjects(timing)
    ]


def insert_rows(session: Session, table: type[Base], rows: Sequence[Values]) -> None:
    """Insert rows of one table in one statement; none is fine."""
    if rows:
        # Past the ORM, which would send a statement of its own for every row that has a None elsewhere.
        session.connection().execute(insert(table), rows)


def _subjects(timing: Timing) -> list[Values]:
    own = _measured("candidate", timing.candidate, timing.roofline_share)
    return [own, *(_measured(name, measurement) for name, measurement in timing.baselines.items())]


def _measured(subject: str, measurement: Measurement, roofline_share: float | None = None) -> Values:
    figures = measurement.model_dump(include={"median_ms", "low_ms", "high_ms", "samples"})
    return {"subject": subject, "roofline_share": roofline_share, **figures}


def run_values(run: Run, updated_at: str) -> Values:
    """The row of a run."""
    return {"updated_at": updated_at, **run.model_dump(mode="json")}


def to_run(row: RunRow) -> Run:
    """The run of a row."""
    return Run.model_validate({name: getattr(row, name) for name in Run.model_fields})


def exchange_values(exchange: Exchange) -> Values:
    """The row of an exchange."""
    return {
        "id": exchange.id,
        "run_id": exchange.run,
        "request_hash": exchange.request_hash,
        "candidate_id": exchange.candidate,
        **exchange.model_dump(exclude={"run", "candidate"}),
    }


def to_exchange(row: ExchangeRow) -> Exchange:
    """The exchange of a row."""
    same = {name: getattr(row, name) for name in Exchange.model_fields if name not in ("run", "candidate")}
    return Exchange(run=row.run_id, candidate=row.candidate_id, **same)


def ask_values(ask: Ask) -> Values:
    """The row of an ask."""
    fields = ask.model_dump(include={"at", "operator", "request"})
    return {"id": ask.id, "run_id": ask.run, "parents": list(ask.parents), **fields}


def to_ask(row: AskRow) -> Ask:
    """The ask of a row."""
    return Ask(run=row.run_id, at=row.at, operator=row.operator, parents=tuple(row.parents), request=row.request)
