"""Exchanges with language models."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table of exchanges."""
    op.create_table(
        "exchanges",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("request_hash", sa.String(64), nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("at", "model", "operator")),
        sa.Column("candidate_id", sa.String(64), sa.ForeignKey("candidates.id")),
        sa.Column("request", sa.Text, nullable=False),
        *(sa.Column(name, sa.Text) for name in ("reply", "failure")),
        *(sa.Column(f"{kind}_tokens", sa.BigInteger) for kind in ("input", "cached", "output", "reasoning")),
        sa.Column("usd", sa.Float(53)),
        sa.Column("seconds", sa.Float(53), nullable=False),
    )
    op.create_index("exchanges_in_order", "exchanges", ["run_id", "at"])
