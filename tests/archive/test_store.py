"""What is put into the archive comes out as it was, once, and under the ids people type."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from archive import Archive, new_run_id
from archive.models import JudgementRow, TimingRow
from sandbox.contract import Cheated
from sandbox.errors import BadInput


def _count(archive: Archive, table: Any) -> int:
    with archive.database.reading() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_every_kind_of_verdict_comes_back_as_it_was_judged(archive: Archive, make: Any) -> None:
    candidate = make.candidate()
    archive.add(candidate)
    run = archive.start_run(make.run())
    judgements = [make.judgement(candidate, verdict, versions={"torch": "2.13"}) for verdict in make.verdicts()]
    for judgement in judgements:
        archive.record(judgement, run)
    assert archive.history(run) == [(candidate, judgement) for judgement in judgements]


def test_candidate_comes_back_with_parents_in_order(archive: Archive, make: Any) -> None:
    parents = [make.candidate(f"// {name}") for name in "cab"]
    child = make.candidate(
        "// child\n\t«π» '\"; DROP TABLE", parents=tuple(p.id for p in parents), tunables={"TILE": 64, "A": -1}
    )
    for candidate in (*parents, child):
        assert archive.add(candidate) == candidate.id
    assert archive.candidate(child.id) == child


def test_adding_twice_keeps_the_first_origin(archive: Archive, make: Any) -> None:
    archive.add(make.candidate(note="first"))
    archive.add(make.candidate(note="second", operator="propose"))
    assert archive.candidate(make.candidate().id).note == "first"


def test_recording_twice_leaves_one_judgement_and_one_place(archive: Archive, make: Any) -> None:
    candidate = make.candidate()
    archive.add(candidate)
    run = archive.start_run(make.run())
    for _ in range(2):
        archive.record(make.judgement(candidate), run)
    assert len(archive.history(run)) == len(archive.judgements()) == 1
    assert _count(archive, TimingRow) == 3 * 4


def test_known_judgement_gets_a_place_in_another_run(archive: Archive, make: Any) -> None:
    candidate = make.candidate()
    archive.add(candidate)
    first, second = archive.start_run(make.run()), archive.start_run(make.run())
    archive.record(make.judgement(candidate), first)
    archive.record(make.judgement(candidate), second)
    assert archive.history(first) == archive.history(second)
    assert _count(archive, JudgementRow) == 1


def test_two_judgements_under_one_key_are_both_kept(archive: Archive, make: Any) -> None:
    candidate = make.candidate()
    archive.add(candidate)
    archive.record(make.judgement(candidate, seconds=1.0))
    archive.record(make.judgement(candidate, seconds=2.0))
    assert len(archive.judgements()) == 2


def test_judged_gives_the_newest_whatever_the_time_zone(archive: Archive, make: Any) -> None:
    candidate = make.candidate()
    archive.add(candidate)
    newest = make.judgement(candidate, judged_at="2026-01-01T23:30:00-02:00")
    for judged_at in ("2026-01-02T01:00:00Z", "2026-01-02T00:59:59.5+00:00"):
        archive.record(make.judgement(candidate, judged_at=judged_at))
    archive.record(newest)
    assert archive.judged(candidate.id, "v1", "cpu", "box") == newest


@pytest.mark.parametrize(
    "key", [{"task_version": "v2"}, {"target": "cuda"}, {"device": "other"}, {"judge_version": 99}, {"confirmed": True}]
)
def test_judged_asks_for_exactly_its_key(archive: Archive, make: Any, key: dict[str, Any]) -> None:
    candidate = make.candidate()
    archive.add(candidate)
    archive.record(make.judgement(candidate))
    exact = {"candidate_id": candidate.id, "task_version": "v1", "target": "cpu", "device": "box"}
    assert archive.judged(**exact) is not None
    assert archive.judged(**(exact | key)) is None


def test_confirmed_judgement_is_found_behind_a_newer_one(archive: Archive, make: Any) -> None:
    candidate = make.candidate()
    archive.add(candidate)
    confirmed = make.judgement(candidate, make.passed(confirmed=True))
    archive.record(confirmed)
    archive.record(make.judgement(candidate, judged_at="2026-02-02T00:00:00Z"))
    assert archive.judged(candidate.id, "v1", "cpu", "box", confirmed=True) == confirmed


def test_what_came_by_import_was_not_measured_here(archive: Archive, make: Any, tmp_path: Path) -> None:
    candidate = make.candidate()
    archive.add(candidate)
    archive.record(make.judgement(candidate))
    archive.export(tmp_path / "there.jsonl")
    key = {"candidate_id": candidate.id, "task_version": "v1", "target": "cpu", "device": "box"}
    with Archive.open(tmp_path / "here.db") as here:
        here.import_(tmp_path / "there.jsonl")
        assert here.judged(**key) is not None
        assert here.judged(**key, here=True) is None
        own = make.judgement(candidate, judged_at="2025-01-01T00:00:00Z")
        here.record(own)
        assert here.judged(**key, here=True) == own


def test_judgements_are_filtered_and_stand_under_the_task_they_were_judged_for(archive: Archive, make: Any) -> None:
    candidate = make.candidate()
    archive.add(candidate)
    elsewhere = make.judgement(candidate, task="twin", device="gpu", target="cuda")
    archive.record(make.judgement(candidate))
    archive.record(elsewhere)
    assert archive.judgements(task="twin") == [(candidate.model_copy(update={"task": "twin"}), elsewhere)]
    assert archive.judgements(device="gpu") == archive.judgements(target="cuda") == archive.judgements(task="twin")
    assert archive.judgements(task="none") == []


def test_lineage_puts_parents_before_children(archive: Archive, make: Any) -> None:
    root = make.candidate("// root")
    left, right = (make.candidate(f"// {side}", parents=(root.id,)) for side in ("left", "right"))
    child = make.candidate("// child", parents=(right.id, left.id, root.id))
    for candidate in (root, left, right, child):
        archive.add(candidate)
    line = archive.lineage(child.id)
    assert line[0] == root
    assert line[-1] == child
    assert {c.id for c in line[1:3]} == {left.id, right.id}
    assert archive.lineage(root.id) == [root]


def test_unknown_parent_is_refused_and_nothing_is_added(archive: Archive, make: Any) -> None:
    orphan = make.candidate(parents=("f" * 64,))
    with pytest.raises(BadInput, match=r"no candidate 'ffff"):
        archive.add(orphan)
    with pytest.raises(BadInput, match="no candidate"):
        archive.candidate(orphan.id)


def test_judgement_of_unknown_candidate_or_run_is_refused_whole(archive: Archive, make: Any) -> None:
    with pytest.raises(BadInput, match="no candidate"):
        archive.record(make.judgement(make.candidate()))
    archive.add(make.candidate())
    with pytest.raises(BadInput, match="no run 'nowhere'"):
        archive.record(make.judgement(make.candidate()), "nowhere")
    assert archive.judgements() == []


def test_prefix_finds_what_it_fits_alone(archive: Archive, make: Any) -> None:
    candidate, run = make.candidate(), make.run()
    archive.add(candidate)
    archive.start_run(run)
    assert archive.candidate(candidate.id[:6]) == candidate
    assert archive.run(run.id[:8]) == run


def test_ambiguous_prefix_lists_what_it_fits(archive: Archive, make: Any) -> None:
    for number in range(17):
        archive.add(make.candidate(f"// {number}", note=f"idea {number}"))
    ids = sorted(make.candidate(f"// {number}").id for number in range(17))
    shared = next(a[0] for a, b in pairwise(ids) if a[0] == b[0])
    with pytest.raises(BadInput, match=rf"candidate '{shared}' fits \d+: .*idea \d+") as caught:
        archive.candidate(shared)
    assert all(name[:12] in str(caught.value) for name in ids if name[0] == shared)


@pytest.mark.parametrize("asked", ["", "zzz", "%", "_", "0" * 64])
def test_unknown_id_says_what_was_asked_and_what_is_there(archive: Archive, make: Any, asked: str) -> None:
    archive.add(make.candidate())
    with pytest.raises(BadInput, match=f"no candidate '{asked}'.*{make.candidate().id[:12]}"):
        archive.candidate(asked)
    with pytest.raises(BadInput, match=f"no run '{asked}'; it has no run yet"):
        archive.run(asked)


def test_run_is_updated_stopped_and_resumed(archive: Archive, make: Any) -> None:
    run = make.run(config={"budget": {"evals": 4}, "seeds": [1, None, 0.1]})
    archive.start_run(run)
    assert archive.run(run.id) == run
    drained = archive.update_run(run.id, status="drained", seconds_spent=1.5, winners={"N1000": "a" * 64}, note="^C")
    assert drained.ended_at is not None
    assert archive.run(run.id) == drained
    resumed = archive.update_run(run.id, status="running")
    assert resumed == drained.model_copy(update={"status": "running", "ended_at": None})


def test_starting_a_run_twice_is_harmless_unless_it_is_another(archive: Archive, make: Any) -> None:
    run = make.run(config={"sizes": (1, 2)})
    assert archive.start_run(run) == archive.start_run(run) == run.id
    with pytest.raises(BadInput, match="already in archive"):
        archive.start_run(run.model_copy(update={"rng_seed": 8}))
    assert [known.id for known in archive.runs()] == [run.id]


def test_runs_come_newest_first(archive: Archive, make: Any) -> None:
    started = [make.run(started_at=f"2026-01-0{day}T00:00:00.000000+00:00") for day in (2, 3, 1)]
    for run in started:
        archive.start_run(run)
    assert [run.started_at[9] for run in archive.runs()] == ["3", "2", "1"]


def test_run_ids_are_unique() -> None:
    assert len({new_run_id() for _ in range(100)}) == 100


def test_record_is_one_transaction(archive: Archive, make: Any) -> None:
    """A timing that breaks a constraint takes its judgement and its place in the run with it."""
    candidate = make.candidate()
    archive.add(candidate)
    run = archive.start_run(make.run())
    good = make.passed()
    broken = good.timings[0].model_copy(update={"baselines": {"candidate": make.measurement(1.0)}})
    with pytest.raises(Exception, match="UNIQUE constraint"):
        archive.record(make.judgement(candidate, good.model_copy(update={"timings": (broken,)})), run)
    assert archive.judgements() == []
    archive.record(make.judgement(candidate, Cheated(rule="r", evidence="e")), run)
    assert len(archive.history(run)) == 1
