"""Exchanges say which attempt they belong to."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the number of the attempt, which is not known of older exchanges."""
    op.add_column("exchanges", sa.Column("attempt", sa.BigInteger))
