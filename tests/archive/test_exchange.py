"""Archives meet through files: nothing is lost, nothing is doubled, and nothing damaged gets in."""

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archive import Archive, ImportReport, Tally
from sandbox.errors import BadInput

Lines = list[dict[str, Any]]


def _exported(archive: Archive, path: Path) -> bytes:
    archive.export(path)
    return path.read_bytes()


def _parsed(content: bytes) -> Lines:
    return [json.loads(line) for line in content.splitlines()]


def _sealed(lines: Lines) -> bytes:
    """A file of these lines whose trailer is right again."""
    texts = [json.dumps(line).encode() + b"\n" for line in lines[:-1]]
    counts: dict[str, int] = {}
    for line in lines[1:-1]:
        counts[line["kind"]] = counts.get(line["kind"], 0) + 1
    end = {"kind": "end", "counts": counts, "sha256": hashlib.sha256(b"".join(texts)).hexdigest()}
    return b"".join([*texts, json.dumps(end).encode() + b"\n"])


def _first(lines: Lines, kind: str) -> dict[str, Any]:
    return next(line for line in lines if line.get("kind") == kind)


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz"])
def test_export_import_export_is_the_same_to_the_byte(
    filled: Archive, other: Archive, tmp_path: Path, name: str
) -> None:
    first = _exported(filled, tmp_path / name)
    report = other.import_(tmp_path / name)
    assert _exported(other, tmp_path / f"again-{name}") == first
    assert report == ImportReport(
        candidates=Tally(new=8), judgements=Tally(new=7), runs=Tally(new=2), evaluations=Tally(new=7)
    )
    assert other.judgements() == filled.judgements()
    assert [other.history(run.id) for run in other.runs()] == [filled.history(run.id) for run in filled.runs()]


def test_export_counts_its_records_and_leaves_no_draft(filled: Archive, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    assert filled.export(tmp_path / "all.jsonl") == 8 + 7 + 2 + 7
    assert set(tmp_path.iterdir()) - before == {tmp_path / "all.jsonl"}


def test_gzipped_export_holds_the_same_lines(filled: Archive, tmp_path: Path) -> None:
    plain = _exported(filled, tmp_path / "all.jsonl")
    assert gzip.decompress(_exported(filled, tmp_path / "all.jsonl.gz")) == plain


def test_importing_again_brings_nothing(filled: Archive, tmp_path: Path) -> None:
    before = _exported(filled, tmp_path / "all.jsonl")
    report = filled.import_(tmp_path / "all.jsonl")
    assert report == ImportReport(
        candidates=Tally(known=8), judgements=Tally(known=7), runs=Tally(known=2), evaluations=Tally(known=7)
    )
    assert _exported(filled, tmp_path / "all.jsonl") == before


def test_empty_archive_can_be_exchanged(archive: Archive, other: Archive, tmp_path: Path) -> None:
    assert archive.export(tmp_path / "none.jsonl") == 0
    assert other.import_(tmp_path / "none.jsonl").candidates == Tally()


@pytest.mark.parametrize("path", ["", "notes.txt/all.jsonl"])
def test_export_that_cannot_be_written_says_so(filled: Archive, tmp_path: Path, path: str) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BadInput, match="cannot export to"):
        filled.export(tmp_path / path)


# ---------------------------------------------------------------- merging


def _merged(a: Archive, b: Archive, folder: Path) -> tuple[bytes, bytes]:
    """Both archives after each took in the other."""
    a.export(folder / "a.jsonl")
    b.export(folder / "b.jsonl")
    a.import_(folder / "b.jsonl")
    b.import_(folder / "a.jsonl")
    return _exported(a, folder / "a2.jsonl"), _exported(b, folder / "b2.jsonl")


def test_merging_either_way_gives_the_same(archive: Archive, other: Archive, make: Any, tmp_path: Path) -> None:
    shared, mine, theirs = make.candidate("// shared"), make.candidate("// mine"), make.candidate("// theirs")
    for side, own in ((archive, mine), (other, theirs)):
        side.add(own)
        side.add(shared.model_copy(update={"note": own.source, "parents": (own.id,)}))
        run = side.start_run(make.run())
        side.record(make.judgement(shared, seconds=1.0 if side is archive else 2.0), run)
        side.record(make.judgement(own), run)
    ours, others = _merged(archive, other, tmp_path)
    assert ours == others
    assert len(archive.judgements()) == 4
    assert archive.candidate(shared.id).note == "// mine"


def test_later_archived_origin_gives_way_with_its_parents(
    archive: Archive, other: Archive, make: Any, tmp_path: Path
) -> None:
    """Same as merging either way, from the side whose origin is replaced."""
    root, shared = make.candidate("// root"), make.candidate("// shared")
    archive.add(shared)
    other.add(root)
    other.add(shared.model_copy(update={"parents": (root.id,)}))
    archive.export(tmp_path / "first.jsonl")
    other.import_(tmp_path / "first.jsonl")
    assert other.lineage(shared.id) == [shared]


def test_later_state_of_a_run_wins(filled: Archive, other: Archive, tmp_path: Path) -> None:
    filled.export(tmp_path / "early.jsonl")
    other.import_(tmp_path / "early.jsonl")
    run = other.update_run("20260101", status="failed", note="later")
    ours, others = _merged(filled, other, tmp_path)
    assert ours == others
    assert filled.run(run.id) == run


def test_run_continued_on_two_machines_keeps_both_ends(
    filled: Archive, other: Archive, make: Any, tmp_path: Path
) -> None:
    filled.export(tmp_path / "early.jsonl")
    other.import_(tmp_path / "early.jsonl")
    run, seed = "20260101-000000-aaaaaa", make.candidate()
    for number, side in enumerate((filled, other, filled, other)):
        side.record(make.judgement(seed, seconds=number), run)
    before = filled.history(run)[:-2]
    ours, others = _merged(filled, other, tmp_path)
    assert ours == others
    assert [judgement.seconds for _, judgement in filled.history(run)] == [*(j.seconds for _, j in before), 0, 1, 2, 3]
    assert _merged(filled, other, tmp_path) == (ours, others)


def test_judgement_of_a_later_program_keeps_its_id(filled: Archive, other: Archive, tmp_path: Path) -> None:
    """A field that has a default may be absent in an older file; the hash is of what was written."""
    lines = _parsed(_exported(filled, tmp_path / "all.jsonl"))
    judgement = _first(lines, "judgement")
    old = judgement["id"]
    del judgement["record"]["versions"]
    text = json.dumps(judgement["record"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    judgement["id"] = hashlib.sha256(text.encode()).hexdigest()
    for line in lines:
        line.update({"judgement": judgement["id"]} if line.get("judgement") == old else {})
    (tmp_path / "old.jsonl").write_bytes(_sealed(lines))
    other.import_(tmp_path / "old.jsonl")
    assert judgement["id"] in _exported(other, tmp_path / "again.jsonl").decode()


# ---------------------------------------------------------------- damage


def _newer_format(lines: Lines) -> None:
    lines[0]["warpsmith_archive"] = 4


def _unknown_kind(lines: Lines) -> None:
    lines[1]["kind"] = "dream"


def _unknown_field(lines: Lines) -> None:
    lines[1]["record"]["mood"] = "good"


def _changed_source(lines: Lines) -> None:
    lines[1]["record"]["source"] += " "


def _changed_figure(lines: Lines) -> None:
    _first(lines, "judgement")["record"]["seconds"] = 0.001


def _bad_time(lines: Lines) -> None:
    _first(lines, "run")["updated_at"] = "yesterday"


def _missing_parent(lines: Lines) -> None:
    del lines[1]


def _missing_run(lines: Lines) -> None:
    lines.remove(_first(lines, "run"))


def _missing_judgement(lines: Lines) -> None:
    lines.remove(_first(lines, "judgement"))


def _repeated(lines: Lines) -> None:
    lines.insert(2, lines[1])


def _no_header(lines: Lines) -> None:
    del lines[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_newer_format, r"line 1 says format 4; this Warpsmith reads up to 3"),
        (_unknown_kind, r"line 2: .*'dream'.*'candidate', 'judgement', 'run', 'evaluation'"),
        (_unknown_field, r"line 2: candidate\.record\.mood: Extra inputs"),
        (_changed_source, r"line 2: candidate: .*id [0-9a-f]{64} is not the hash of the content"),
        (_changed_figure, r"line 10: judgement: .*not the hash"),
        (_bad_time, r"line 17: run\.updated_at: .*yesterday"),
        (_missing_parent, r"line 2: parent [0-9a-f]{64} is neither in the file nor in the archive"),
        (_missing_run, r"line 18: run 20260101-000000-aaaaaa is neither"),
        (_missing_judgement, r"line \d+: judgement [0-9a-f]{64} is neither"),
        (_repeated, r"line 3 repeats candidate [0-9a-f]{64}, which is at .*line 2"),
        (_no_header, r"line 1 is .*wanted the header"),
    ],
)
def test_wrong_record_is_refused_by_line_and_nothing_gets_in(
    filled: Archive, other: Archive, tmp_path: Path, damage: Callable[[Lines], None], message: str
) -> None:
    lines = _parsed(_exported(filled, tmp_path / "all.jsonl"))
    damage(lines)
    (tmp_path / "bad.jsonl").write_bytes(_sealed(lines))
    with pytest.raises(BadInput, match=message):
        other.import_(tmp_path / "bad.jsonl")
    assert other.export(tmp_path / "empty.jsonl") == 0


def test_every_cut_is_noticed(filled: Archive, other: Archive, tmp_path: Path) -> None:
    whole = _exported(filled, tmp_path / "all.jsonl")
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in (0, 1, *ends[:-1], *(end - 1 for end in ends), *(end + 20 for end in ends[:-1])):
        (tmp_path / "cut.jsonl").write_bytes(whole[:cut])
        with pytest.raises(BadInput, match=r"cut\.jsonl (line \d+|ends)"):
            other.import_(tmp_path / "cut.jsonl")
    assert other.export(tmp_path / "empty.jsonl") == 0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_changed_byte_is_noticed(filled: Archive, other: Archive, tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(_exported(filled, tmp_path / "all.jsonl"))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    (tmp_path / "bad.jsonl").write_bytes(whole)
    with pytest.raises(BadInput, match=r"bad\.jsonl"):
        other.import_(tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1 is cut short"),
        (b"\n", "line 1 is not JSON"),
        (b"[" * 100_000 + b"\n", "line 1 is not JSON"),
        (b"[]\n", "wanted a JSON object"),
        (b"\xff\xfe\n", "line 1 is not JSON"),
        (b"SQLite format 3\x00\n", "line 1 is not JSON"),
        (b'{"warpsmith_archive": "1"}\n', "wanted the header"),
        (b'{"warpsmith_archive": 1}\n', "without its trailer"),
    ],
)
def test_what_is_no_export_is_refused(archive: Archive, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        archive.import_(tmp_path / "bad.jsonl")


def test_text_after_the_trailer_is_refused(filled: Archive, tmp_path: Path) -> None:
    content = _exported(filled, tmp_path / "all.jsonl")
    (tmp_path / "twice.jsonl").write_bytes(content * 2)
    with pytest.raises(BadInput, match="nothing after the trailer"):
        filled.import_(tmp_path / "twice.jsonl")


@pytest.mark.parametrize("damage", [lambda b: b[:200], lambda b: b[:300] + b"\x00" * 20 + b[320:], lambda b: b"plain"])
def test_damaged_gzip_is_refused(filled: Archive, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    content = _exported(filled, tmp_path / "all.jsonl.gz")
    (tmp_path / "bad.jsonl.gz").write_bytes(damage(content))
    with pytest.raises(BadInput, match=r"bad\.jsonl\.gz"):
        filled.import_(tmp_path / "bad.jsonl.gz")


@pytest.mark.parametrize("name", ["absent.jsonl", ""])
def test_file_that_cannot_be_read_is_named(archive: Archive, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match=f"cannot read {tmp_path / name}"):
        archive.import_(tmp_path / name)
