"""Alembic migrations, run from archive.database; there is no alembic.ini."""
