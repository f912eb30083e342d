"""Asks in the archive: kept once, found by the beginning of an id, exported and merged."""

import json
from pathlib import Path
from typing import Any

import pytest

from archive import Archive, Ask, Tally
from sandbox.errors import BadInput

RUN = "20260101-000000-aaaaaa"


def ask(archive: Archive, **fields: Any) -> Ask:
    parent = archive.judgements()[0][0].id
    given = {"run": RUN, "at": "2026-01-01T00:00:00+00:00", "operator": "rewrite", "parents": (parent,)}
    return Ask.model_validate(given | {"request": '[{"role":"user","content":"«π»"}]'} | fields)


def test_asks_come_back_in_order_of_time_and_by_the_beginning_of_an_id(filled: Archive) -> None:
    later, earlier = ask(filled, at="2026-01-03T00:00:00"), ask(filled, at="2026-01-02T00:00:00", parents=())
    for each in (later, earlier, later):
        assert filled.record_ask(each) == each.id
    assert filled.asks(RUN[:9]) == [earlier, later]
    assert filled.ask(later.id[:12]) == later


def test_unknown_ask_is_refused_with_those_there_are(filled: Archive) -> None:
    with pytest.raises(BadInput, match=r"no ask 'feed'; it has no ask yet"):
        filled.ask("feed")
    known = filled.record_ask(ask(filled))
    with pytest.raises(BadInput, match=rf"the newest are: {known[:12]} \(rewrite, 2026-01-01T00:00\)"):
        filled.ask("feed")


@pytest.mark.parametrize(
    ("fields", "message"), [({"run": "nothing"}, "no run 'nothing'"), ({"parents": ("feed",)}, "no candidate 'feed'")]
)
def test_ask_about_what_is_not_there_is_refused(filled: Archive, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        filled.record_ask(ask(filled, **fields))


def test_asks_travel_with_their_run_and_a_second_import_changes_nothing(
    filled: Archive, other: Archive, tmp_path: Path
) -> None:
    kept = ask(filled)
    filled.record_ask(kept)
    filled.export(tmp_path / "all.jsonl")
    assert other.import_(tmp_path / "all.jsonl").asks == Tally(new=1)
    assert other.import_(tmp_path / "all.jsonl").asks == Tally(known=1)
    assert other.asks(RUN) == [kept]
    other.export(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "all.jsonl").read_bytes()


def test_changed_ask_is_refused_by_its_hash(filled: Archive, other: Archive, tmp_path: Path) -> None:
    filled.record_ask(ask(filled))
    filled.export(tmp_path / "all.jsonl")
    lines = (tmp_path / "all.jsonl").read_text().rstrip("\n").split("\n")
    at = next(i for i, line in enumerate(lines) if json.loads(line).get("kind") == "ask")
    lines[at] = lines[at].replace("rewrite", "simplify")
    (tmp_path / "changed.jsonl").write_text("\n".join([*lines, ""]))
    with pytest.raises(BadInput, match=rf"line {at + 1}: .*is not the hash of the content"):
        other.import_(tmp_path / "changed.jsonl")
    assert other.runs() == []
