"""Candidates, lineage, judgements, timings, runs and their trajectories."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the first tables."""
    _create_candidates()
    _create_judgements()
    _create_timings()
    _create_runs()


def _create_candidates() -> None:
    op.create_table(
        "candidates",
        sa.Column("id", sa.String(64), primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("task", "target", "source")),
        sa.Column("tunables", sa.JSON, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("operator", "proposer", "note", "created_at")),
    )
    op.create_table(
        "parents",
        sa.Column("candidate_id", sa.String(64), sa.ForeignKey("candidates.id"), primary_key=True),
        sa.Column("ordinal", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("parent_id", sa.String(64), sa.ForeignKey("candidates.id"), nullable=False),
    )
    op.create_index("ix_parents_parent_id", "parents", ["parent_id"])


def _create_judgements() -> None:
    op.create_table(
        "judgements",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("candidate_id", sa.String(64), sa.ForeignKey("candidates.id"), nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("task", "task_version", "target", "device")),
        sa.Column("judge_version", sa.Integer, nullable=False),
        sa.Column("confirmed", sa.Boolean, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("latency_ms", sa.Float(53)),
        sa.Column("seconds", sa.Float(53), nullable=False),
        sa.Column("judged_at", sa.Text, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_index(
        "judgements_by_key", "judgements", ["candidate_id", "task_version", "target", "device", "judge_version"]
    )
    op.create_index("judgements_by_board", "judgements", ["task", "target", "device"])


def _create_timings() -> None:
    op.create_table(
        "timings",
        sa.Column("judgement_id", sa.String(64), sa.ForeignKey("judgements.id"), primary_key=True),
        sa.Column("ordinal", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("workload", sa.Text, nullable=False),
        *(sa.Column(name, sa.Float(53), nullable=False) for name in ("median_ms", "low_ms", "high_ms")),
        sa.Column("samples", sa.BigInteger, nullable=False),
        sa.Column("roofline_share", sa.Float(53)),
    )


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.Text, primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("task", "task_version", "target", "device")),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("rng_seed", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("status", "started_at", "updated_at")),
        sa.Column("ended_at", sa.Text),
        *(sa.Column(name, sa.Float(53), nullable=False) for name in ("seconds_spent", "usd_spent")),
        sa.Column("winners", sa.JSON, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    op.create_table(
        "evaluations",
        sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("judgement_id", sa.String(64), sa.ForeignKey("judgements.id"), primary_key=True),
        sa.Column("candidate_id", sa.String(64), sa.ForeignKey("candidates.id"), nullable=False),
        sa.Column("at", sa.Text, nullable=False),
    )
    op.create_index("evaluations_in_order", "evaluations", ["run_id", "at"])
