"""An archive that begins with exports of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from archive import Archive
from sandbox.contract import Candidate
from sandbox.errors import BadInput


def candidate(source: str) -> Candidate:
    return Candidate(task="t", target="cpu", source=source, operator="seed", proposer="seed")


def test_only_an_empty_archive_takes_in_what_it_is_to_begin_with(tmp_path: Path) -> None:
    with Archive.open(tmp_path / "theirs.db") as theirs:
        theirs.add(candidate("// theirs"))
        theirs.export(tmp_path / "theirs.jsonl")
    with Archive.open(tmp_path / "new.db", [tmp_path / "theirs.jsonl"]) as new:
        assert new.candidate(candidate("// theirs").id)
    with Archive.open(tmp_path / "old.db") as old:
        old.add(candidate("// own"))
    with Archive.open(tmp_path / "old.db", [tmp_path / "theirs.jsonl"]) as old, pytest.raises(BadInput):
        old.candidate(candidate("// theirs").id)


def test_damaged_export_leaves_the_archive_empty_and_is_told(tmp_path: Path) -> None:
    (tmp_path / "damaged.jsonl").write_text("{}\n")
    with pytest.raises(BadInput, match=r"damaged\.jsonl"):
        Archive.open(tmp_path / "new.db", [tmp_path / "damaged.jsonl"])
    with Archive.open(tmp_path / "new.db") as new:
        assert new.judgements() == []
