"""One module per schema revision; the newest is archive.models.SCHEMA."""
