"""Which judgements came by import: measured elsewhere."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Take what is there for measured here."""
    op.add_column("judgements", sa.Column("imported", sa.Boolean, nullable=False, server_default=sa.false()))
