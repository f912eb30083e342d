"""Exchanges with models in the archive: kept once, charged once, migrated, exported and merged."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from archive import Archive, Exchange, Tally
from archive.records import content_id
from sandbox.errors import BadInput

RUN = "20260101-000000-aaaaaa"


def exchange(request: str = '{"messages":[]}', **fields: Any) -> Exchange:
    given = {"run": RUN, "at": "2026-01-01T00:00:00+00:00", "model": "m", "operator": "rewrite", "seconds": 2.5}
    given |= {"reply": '{"text":"«π» \\u0000"}', "usd": 0.25, "input_tokens": 7} | fields
    return Exchange(request=request, **given)


def _seed(archive: Archive) -> str:
    return archive.lineage(archive.judgements()[0][0].id)[0].id


def test_exchanges_come_back_in_order_of_time(filled: Archive) -> None:
    times = ["2026-01-03T00:00:00", "2026-01-02T00:00:00", "2026-01-02T00:00:00.5"]
    kept = [exchange(at=at, candidate=None if number else _seed(filled)) for number, at in enumerate(times)]
    for each in kept:
        assert filled.record_exchange(each) == each.id
    assert filled.exchanges(RUN[:9]) == [kept[1], kept[2], kept[0]]
    assert filled.exchanges("20260102") == []


def test_recording_twice_keeps_and_charges_once(filled: Archive) -> None:
    for _ in range(2):
        filled.record_exchange(exchange())
    assert len(filled.exchanges(RUN)) == 1
    assert filled.run(RUN).usd_spent == 0.25


def test_charge_makes_a_later_state_of_the_run(filled: Archive, other: Archive, tmp_path: Path) -> None:
    filled.export(tmp_path / "early.jsonl")
    other.import_(tmp_path / "early.jsonl")
    filled.record_exchange(exchange())
    filled.export(tmp_path / "late.jsonl")
    other.import_(tmp_path / "late.jsonl")
    assert other.run(RUN) == filled.run(RUN)
    assert other.run(RUN).usd_spent == 0.25


@pytest.mark.parametrize(
    ("fields", "message"), [({"run": "nothing"}, "no run 'nothing'"), ({"candidate": "feed"}, "no candidate 'feed'")]
)
def test_exchange_of_what_is_not_there_is_refused(filled: Archive, fields: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        filled.record_exchange(exchange(**fields))


@pytest.mark.parametrize(
    "fields",
    [{"reply": None}, {"failure": "{}"}, {"usd": -1}, {"usd": float("nan")}, {"input_tokens": -1}, {"at": "noon"}],
)
def test_exchange_that_makes_no_sense_is_none(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        exchange(**fields)


@pytest.mark.parametrize("undo", ["DROP TABLE exchanges", "ALTER TABLE exchanges DROP COLUMN attempt"])
def test_archive_of_before_is_migrated_with_all_it_holds(filled: Archive, tmp_path: Path, undo: str) -> None:
    version = "0001" if undo.startswith("DROP") else "0002"
    if version == "0002":
        filled.record_exchange(exchange())
    filled.export(tmp_path / "before.jsonl")
    path = Path(filled.location)
    filled.close()
    connection = sqlite3.connect(path)
    later = "DROP TABLE asks; ALTER TABLE judgements DROP COLUMN imported"
    connection.executescript(f"{later}; {undo}; UPDATE archive_version SET version_num = '{version}'")
    connection.close()
    with Archive.open(path) as migrated:
        migrated.export(tmp_path / "after.jsonl")
        assert (tmp_path / "after.jsonl").read_bytes() == (tmp_path / "before.jsonl").read_bytes()
        migrated.record_exchange(exchange("{}", attempt=7))
        assert exchange("{}", attempt=7) in migrated.exchanges(RUN)


def test_export_of_before_can_be_imported(filled: Archive, other: Archive, tmp_path: Path) -> None:
    """Its header is of the older format; everything else is as it was."""
    filled.export(tmp_path / "all.jsonl")
    _, *lines, end = (tmp_path / "all.jsonl").read_text().rstrip("\n").split("\n")
    older = "\n".join(['{"schema":"0001","warpsmith_archive":1}', *lines, ""])
    trailer = json.loads(end) | {"sha256": content_id(older)}
    (tmp_path / "old.jsonl").write_text(older + json.dumps(trailer) + "\n")
    report = other.import_(tmp_path / "old.jsonl")
    assert (report.candidates.new, report.exchanges) == (8, Tally())


def test_candidate_and_what_it_came_of_go_on_record_together(filled: Archive, make: Any) -> None:
    asked = [filled.record_exchange(exchange(text)) for text in ("1", "2")]
    with pytest.raises(BadInput, match="has no candidate"):
        filled.add_made(make.candidate("// orphan", parents=("f" * 64,)), asked)
    made = filled.add_made(make.candidate("// made"), asked)
    assert {each.candidate for each in filled.exchanges(RUN)} == {made}


def test_exchanges_travel_and_merge_either_way(filled: Archive, other: Archive, tmp_path: Path) -> None:
    seed, child = _seed(filled), filled.judgements()[0][0].id
    filled.export(tmp_path / "early.jsonl")
    other.import_(tmp_path / "early.jsonl")
    both, named, twice = exchange("1"), exchange("2"), exchange("3")
    for side, candidate in ((filled, seed), (other, child)):
        side.record_exchange(both)
        side.record_exchange(exchange(f'"of {candidate}"', failure="{}", reply=None))
        side.record_exchange(named)
        side.attribute_exchange(side.record_exchange(twice), candidate)
    other.attribute_exchange(named.id, child)
    filled.export(tmp_path / "a.jsonl")
    other.export(tmp_path / "b.jsonl")
    assert filled.import_(tmp_path / "b.jsonl").exchanges == Tally(new=1, known=3)
    assert other.import_(tmp_path / "a.jsonl").exchanges == Tally(new=1, known=3)
    filled.export(tmp_path / "a2.jsonl")
    other.export(tmp_path / "b2.jsonl")
    assert (tmp_path / "a2.jsonl").read_bytes() == (tmp_path / "b2.jsonl").read_bytes()
    found = {each.id: each.candidate for each in filled.exchanges(RUN)}
    assert (len(found), found[both.id], found[named.id], found[twice.id]) == (5, None, child, min(seed, child))


def _changed_reply(line: dict[str, Any]) -> None:
    line["record"]["reply"] = "{}"


def _unknown_candidate(line: dict[str, Any]) -> None:
    line["record"]["candidate"] = "f" * 64


def _bad_time(line: dict[str, Any]) -> None:
    line["record"]["at"] = "noon"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_changed_reply, "not the hash of the content"),
        (_unknown_candidate, "candidate f{64} is neither in the file nor in the archive"),
        (_bad_time, r"exchange\.record\.at: .*noon"),
    ],
)
def test_damaged_exchange_is_refused(
    filled: Archive, other: Archive, tmp_path: Path, damage: Any, message: str
) -> None:
    filled.record_exchange(exchange())
    filled.export(tmp_path / "all.jsonl")
    *lines, last, end = (tmp_path / "all.jsonl").read_text().rstrip("\n").split("\n")
    line = json.loads(last)
    damage(line)
    text = "\n".join([*lines, json.dumps(line), ""])
    trailer = json.loads(end) | {"sha256": content_id(text)}
    (tmp_path / "bad.jsonl").write_text(text + json.dumps(trailer) + "\n")
    with pytest.raises(BadInput, match=message):
        other.import_(tmp_path / "bad.jsonl")
    assert other.runs() == []
