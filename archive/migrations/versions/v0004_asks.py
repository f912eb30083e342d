"""Asks: prompts for engineers who answer in their own time."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create the table of asks."""
    op.create_table(
        "asks",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id"), nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("at", "operator")),
        sa.Column("parents", sa.JSON, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
    )
    op.create_index("asks_in_order", "asks", ["run_id", "at"])
