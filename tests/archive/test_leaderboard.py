"""Who stands where on a board, and who does not stand there at all."""

from typing import Any

import pytest

from archive import Archive, Row, rows
from sandbox.contract import Cheated, Incorrect, Interval, TimedOut

INCORRECT = Incorrect(workload="N9", distribution="ones", rule="row error", evidence="row 0")


def _judge(archive: Archive, make: Any, source: str, verdict: Any = None, **fields: Any) -> str:
    candidate = make.candidate(source)
    archive.add(candidate)
    archive.record(make.judgement(candidate, verdict, **fields))
    return candidate.id


def _sources(archive: Archive, found: list[Row]) -> list[str]:
    return [archive.candidate(row.candidate).source for row in found]


def test_rows_stand_by_speedup_over_eager(archive: Archive, make: Any) -> None:
    for source, eager in (("slow", 0.8), ("best", 3.0), ("good", 2.0)):
        _judge(archive, make, source, make.passed(eager))
    unmeasured = make.passed().model_copy(update={"speedup": {"compile": Interval(ratio=9, low=9, high=9)}})
    _judge(archive, make, "no eager", unmeasured)
    assert _sources(archive, rows(archive)) == ["best", "good", "slow", "no eager"]


def test_equal_speedups_stand_by_latency(archive: Archive, make: Any) -> None:
    for source, latency_ms in (("later", 2.0), ("sooner", 1.0)):
        _judge(archive, make, source, make.passed(latency_ms=latency_ms))
    assert _sources(archive, rows(archive)) == ["sooner", "later"]


def test_boards_do_not_mix(archive: Archive, make: Any) -> None:
    for device in ("box b", "box a"):
        for eager in (2.0, 4.0):
            _judge(archive, make, f"{device} {eager}", make.passed(eager), device=device)
    assert _sources(archive, rows(archive)) == ["box a 4.0", "box a 2.0", "box b 4.0", "box b 2.0"]
    assert _sources(archive, rows(archive, device="box b")) == ["box b 4.0", "box b 2.0"]
    assert rows(archive, task="other") == rows(archive, target="cuda") == []


def test_only_passed_candidates_stand_there(filled: Archive) -> None:
    assert [row.status for row in rows(filled)] == ["Passed", "Passed"]


def test_confirmed_judgement_counts_before_newer_ones(archive: Archive, make: Any) -> None:
    _judge(archive, make, "k", make.passed(2.0, confirmed=True))
    _judge(archive, make, "k", make.passed(5.0), judged_at="2026-03-01T00:00:00Z")
    (row,) = rows(archive)
    assert row.confirmed
    assert row.speedup["eager"] == Interval(ratio=2.0, low=1.8, high=2.2)


def test_newest_judgement_counts_among_unconfirmed_ones(archive: Archive, make: Any) -> None:
    _judge(archive, make, "k", make.passed(2.0), judged_at="2026-01-01T23:00:00-05:00")
    _judge(archive, make, "k", make.passed(5.0), judged_at="2026-01-02T01:00:00Z")
    (row,) = rows(archive)
    assert row.speedup["eager"] == Interval(ratio=2.0, low=1.8, high=2.2)


@pytest.mark.parametrize("verdict", [INCORRECT, Cheated(rule="r", evidence="e")])
@pytest.mark.parametrize("when", ["2025-01-01T00:00:00Z", "2027-01-01T00:00:00Z"])
def test_candidate_once_disproved_stands_nowhere(archive: Archive, make: Any, verdict: Any, when: str) -> None:
    _judge(archive, make, "k", make.passed(confirmed=True))
    _judge(archive, make, "k", verdict, judged_at=when)
    assert rows(archive) == []


def test_newest_judgement_must_pass_unless_one_was_confirmed(archive: Archive, make: Any) -> None:
    for source, confirmed in (("unconfirmed", False), ("confirmed", True)):
        _judge(archive, make, source, make.passed(confirmed=confirmed))
        _judge(archive, make, source, TimedOut(stage="time", seconds=1), judged_at="2027-01-01T00:00:00Z")
    assert _sources(archive, rows(archive)) == ["confirmed"]


def test_newer_judge_overrules_the_older(archive: Archive, make: Any) -> None:
    _judge(archive, make, "cheat", make.passed(9.0), judge_version=1)
    _judge(archive, make, "cheat", Cheated(rule="r", evidence="e"), judge_version=2)
    _judge(archive, make, "wronged", INCORRECT, judge_version=1)
    _judge(archive, make, "wronged", make.passed(), judge_version=2)
    _judge(archive, make, "never judged again", make.passed(7.0), judge_version=1)
    assert _sources(archive, rows(archive)) == ["wronged"]


def test_outdated_task_versions_are_left_out_unless_asked_for(archive: Archive, make: Any) -> None:
    _judge(archive, make, "old", task_version="v1")
    _judge(archive, make, "new", task_version="v2", judged_at="2026-02-01T00:00:00Z")
    _judge(archive, make, "twin", task="twin", task_version="v1")
    assert _sources(archive, rows(archive)) == ["new", "twin"]
    assert _sources(archive, rows(archive, "toy", versions=["v1"])) == ["old"]
    assert _sources(archive, rows(archive, "toy", versions=["v1", "v2"])) == ["old", "new"]


def test_row_tells_where_a_candidate_comes_from_and_what_it_reached(archive: Archive, make: Any) -> None:
    seed = make.candidate("// seed")
    child = make.candidate(
        "// child", parents=(seed.id,), operator="tune", proposer="tuner", tunables={"TILE": 8}, note="n"
    )
    archive.add(seed)
    archive.add(child)
    archive.record(make.judgement(child))
    (row,) = rows(archive)
    assert (row.depth, row.operator, row.proposer, row.note) == (1, "tune", "tuner", "n")
    assert (row.tunables, row.parents) == ({"TILE": 8}, (seed.id,))
    assert row.speedup.keys() == {"eager", "compile", "library"}
    assert row.speedup["compile"] is None
    assert row.roofline_share == pytest.approx((0.4 * 0.9) ** 0.5)
    workload = row.workloads[0]
    assert (workload.workload, workload.latency_ms) == ("N1000", 0.5)
    assert workload.speedup == pytest.approx(
        {"eager": 2.0, "library:flash": 1.25, "library:math": 4.0, "library": 1.25}
    )
