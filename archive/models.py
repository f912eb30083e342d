"""The archive's tables. A change here needs a migration in archive/migrations/versions and a new SCHEMA.

Times are UTC text (records.utc_now), which sorts alike in every database. Not covered: what the rows mean
together (store), and how a database gets these tables (database).
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Boolean, Float, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

REVISIONS = ("0001", "0002", "0003", "0004", "0005")
"""Every schema revision this program can open or migrate from, oldest first."""
SCHEMA = REVISIONS[-1]
"""The revision this program writes; the same as the head of archive/migrations."""
VERSION_TABLE = "archive_version"


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        int: BigInteger,
        float: Float(53),
        bool: Boolean,
        dict[str, Any]: JSON,
        dict[str, int]: JSON,
        dict[str, str]: JSON,
        list[str]: JSON,
    }


class CandidateRow(Base):
    """A kernel source with its tunables. Where it came from is what was recorded first."""

    __tablename__ = "candidates"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    task: Mapped[str]
    target: Mapped[str]
    source: Mapped[str]
    tunables: Mapped[dict[str, int]]
    operator: Mapped[str]
    proposer: Mapped[str]
    note: Mapped[str]
    created_at: Mapped[str]
    parents: Mapped[list[ParentRow]] = relationship(
        foreign_keys="ParentRow.candidate_id", order_by="ParentRow.ordinal", lazy="selectin", viewonly=True
    )


class ParentRow(Base):
    """An edge of the lineage; `ordinal` keeps a candidate's parents in order."""

    __tablename__ = "parents"

    candidate_id: Mapped[str] = mapped_column(String(64), ForeignKey("candidates.id"), primary_key=True)
    ordinal: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    parent_id: Mapped[str] = mapped_column(String(64), ForeignKey("candidates.id"), index=True)


class JudgementRow(Base):
    """One judgement, under the hash of its content. `record` is the whole of it; the other columns are for queries."""

    __tablename__ = "judgements"
    __table_args__ = (
        Index("judgements_by_key", "candidate_id", "task_version", "target", "device", "judge_version"),
        Index("judgements_by_board", "task", "target", "device"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    candidate_id: Mapped[str] = mapped_column(String(64), ForeignKey("candidates.id"))
    task: Mapped[str]
    task_version: Mapped[str]
    target: Mapped[str]
    device: Mapped[str]
    judge_version: Mapped[int] = mapped_column(Integer)
    confirmed: Mapped[bool]
    imported: Mapped[bool]
    """Measured elsewhere."""
    status: Mapped[str]
    latency_ms: Mapped[float | None]
    seconds: Mapped[float]
    judged_at: Mapped[str]
    record: Mapped[str]
    """Canonical JSON of the Judgement."""


class TimingRow(Base):
    """One subject's latency on one workload of a passed judgement; derived from its record."""

    __tablename__ = "timings"

    judgement_id: Mapped[str] = mapped_column(String(64), ForeignKey("judgements.id"), primary_key=True)
    ordinal: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    """Position of the workload among the judgement's timings."""
    subject: Mapped[str] = mapped_column(Text, primary_key=True)
    """`candidate`, or the baseline's name."""
    workload: Mapped[str]
    median_ms: Mapped[float]
    low_ms: Mapped[float]
    high_ms: Mapped[float]
    samples: Mapped[int]
    roofline_share: Mapped[float | None]


class RunRow(Base):
    """One search. `updated_at` decides which of two archives knows the run's later state."""

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    task: Mapped[str]
    task_version: Mapped[str]
    target: Mapped[str]
    device: Mapped[str]
    config: Mapped[dict[str, Any]]
    rng_seed: Mapped[int]
    status: Mapped[str]
    started_at: Mapped[str]
    updated_at: Mapped[str]
    ended_at: Mapped[str | None]
    seconds_spent: Mapped[float]
    usd_spent: Mapped[float]
    winners: Mapped[dict[str, str]]
    note: Mapped[str]


class EvaluationRow(Base):
    """A judgement's place in a run. `at` only ever grows within a run, so it is the order of the trajectory."""

    __tablename__ = "evaluations"
    __table_args__ = (Index("evaluations_in_order", "run_id", "at"),)

    run_id: Mapped[str] = mapped_column(Text, ForeignKey("runs.id"), primary_key=True)
    judgement_id: Mapped[str] = mapped_column(String(64), ForeignKey("judgements.id"), primary_key=True)
    candidate_id: Mapped[str] = mapped_column(String(64), ForeignKey("candidates.id"))
    at: Mapped[str]


class ExchangeRow(Base):
    """One request to a language model and what came back, under the hash of both; `candidate_id` is what came of it."""

    __tablename__ = "exchanges"
    __table_args__ = (Index("exchanges_in_order", "run_id", "at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    run_id: Mapped[str] = mapped_column(Text, ForeignKey("runs.id"))
    request_hash: Mapped[str] = mapped_column(String(64))
    at: Mapped[str]
    model: Mapped[str]
    operator: Mapped[str]
    attempt: Mapped[int | None]
    candidate_id: Mapped[str | None] = mapped_column(String(64), ForeignKey("candidates.id"))
    request: Mapped[str]
    """Canonical JSON, as are `reply` and `failure`."""
    reply: Mapped[str | None]
    failure: Mapped[str | None]
    input_tokens: Mapped[int | None]
    cached_tokens: Mapped[int | None]
    output_tokens: Mapped[int | None]
    reasoning_tokens: Mapped[int | None]
    usd: Mapped[float | None]
    seconds: Mapped[float]


class AskRow(Base):
    """A prompt for an engineer who answers in their own time; `parents` are ids of candidates, in order."""

    __tablename__ = "asks"
    __table_args__ = (Index("asks_in_order", "run_id", "at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    run_id: Mapped[str] = mapped_column(Text, ForeignKey("runs.id"))
    at: Mapped[str]
    operator: Mapped[str]
    parents: Mapped[list[str]]
    request: Mapped[str]
    """Canonical JSON."""
