"""A recorded run is read and judged again without a model, and what differs is said."""

from collections.abc import Callable

import pytest

from agent import replay, session
from agent.engineer.engineer import SETTLED, SWEEP
from agent.models.endpoint import Reply
from archive import Archive, Exchange, Run
from archive.records import canonical
from sandbox.contract import BuildFailed
from sandbox.errors import BadInput
from tests.agent.engineer.test_engineer import TUNABLE, Shop, TirelessModel, kernel, plan
from tests.agent.engineer.test_engineer import open_shop as open_shop
from tests.agent.test_graph import CPU, ScriptedJudge

EDIT = """
<<<<<<< SEARCH
extern "C" void toy(float* out, const float* a, const float* b, int64_t N, void* workspace) {
=======
extern "C" void toy(float* out, const float* a, const float* b, int64_t N, void* workspace) {
    if (N < 0) return;
>>>>>>> REPLACE
"""


@pytest.fixture
def shop(open_shop: Callable[..., Shop]) -> Shop:
    """A seed, a kernel after a reply in vain, an edit, others, and two variants of the first kernel."""
    made = open_shop()
    made.judge.speed = lambda candidate: (5.0, 5.0) if "WIDE" in candidate.source else (6.0, 6.0)
    engineer = made.engineer(TirelessModel([plan("widen"), "no kernel", TUNABLE, plan("turn round"), EDIT]))
    for _ in range(2 + SETTLED + SWEEP):
        made.next(engineer)
    made.archive.update_run(made.run, status="finished", winners={"w": made.seeds[0].id})
    return made


def again(shop: Shop) -> str:
    names = {"task": shop.task.name, "task_version": shop.task.version}
    return shop.archive.start_run(Run(id="r2", target="cpu", device=CPU.name, rng_seed=1, **names))


def test_every_reply_gives_the_candidate_it_gave(shop: Shop) -> None:
    read = list(replay.read_again(shop.archive, shop.run, shop.task))
    written = [c.id for c, _ in shop.archive.history(shop.run) if c.proposer == "scripted"]
    assert [each.candidate for each in read] == written
    assert len(read) == 1 + SETTLED
    assert all(each.same for each in read)


def test_reply_that_does_not_give_its_candidate_is_found(shop: Shop) -> None:
    """As in an archive that somebody has dressed up."""
    forged = shop.archive.add(shop.seeds[0].model_copy(update={"source": f"{shop.seeds[0].source}// faster\n"}))
    for text in (kernel(5), "nothing"):
        reply = Reply(text=text, finish="stop", usage={}, seconds=1, model="m").model_dump(mode="json")  # type: ignore[arg-type]
        given = {"request": "{}", "reply": canonical(reply), "candidate": forged, "attempt": 9, "seconds": 1}
        shop.archive.record_exchange(Exchange(run=shop.run, model="m", operator="rewrite", **given))
        last = list(replay.read_again(shop.archive, shop.run, shop.task))[-1]
        assert (last.same, last.candidate) == (False, forged)
    assert (last.found, last.reason) == (None, "no fenced code block in the reply")


def test_fused_kernel_is_read_again_without_the_tunables_of_its_parts(shop: Shop) -> None:
    part = shop.seeds[0].model_copy(update={"source": tuned_source(), "tunables": {"WIDE": 64}, "task": "part"})
    fused = part.model_copy(
        update={
            "source": f"{tuned_source()}// fused\n",
            "tunables": {"WIDE": 1},
            "task": "toy",
            "parents": (shop.archive.add(part),),
            "operator": "compose",
        }
    )
    made = shop.archive.add(fused)
    reply = Reply(text=f"```cpp\n{fused.source}```", finish="stop", usage={}, seconds=1, model="m").model_dump(
        mode="json"
    )  # type: ignore[arg-type]
    given = {"request": "{}", "reply": canonical(reply), "candidate": made, "attempt": 9, "seconds": 1}
    shop.archive.record_exchange(Exchange(run=shop.run, model="m", operator="fuse", **given))
    last = list(replay.read_again(shop.archive, shop.run, shop.task))[-1]
    assert (last.candidate, last.found, last.reason) == (made, made, "")


def tuned_source() -> str:
    return TUNABLE.removeprefix("```cpp\n").removesuffix("```")


def test_verdicts_are_made_again_and_stand_beside_the_record(shop: Shop) -> None:
    run, history = shop.archive.run(shop.run), [c.id for c, _ in shop.archive.history(shop.run)]
    judge = ScriptedJudge(lambda candidate: BuildFailed(log="no") if candidate.tunables else (3.0, 3.0))
    compared = replay.judge_again(shop.archive, run, again(shop), shop.task, judge, shop.events.append)
    assert judge.judged == history
    assert judge.confirmed == [shop.seeds[0].id]
    assert [candidate.id for candidate, _ in shop.archive.history("r2")] == [*history, shop.seeds[0].id]
    same = [each.same for each in compared]
    assert same == [not each.candidate.tunables for each in compared]
    assert 0 < sum(same) < len(same)
    assert [c.id for c, _ in shop.archive.history(shop.run)] == history


def test_replay_without_judging_needs_nothing_but_the_archive(shop: Shop, tmp_path) -> None:
    shop.archive.export(tmp_path / "all.jsonl")
    with Archive.open(tmp_path / "theirs.db") as theirs:
        theirs.import_(tmp_path / "all.jsonl")
        found = session.replay(theirs, theirs.run(shop.run), str(shop.task.folder), False, shop.events.append)
        assert (found.same, found.again, found.compared, len(found.read)) == (True, None, (), 1 + SETTLED)
        assert [run.id for run in theirs.runs()] == [shop.run]


def test_task_that_changed_since_is_bad_input(shop: Shop) -> None:
    (shop.task.folder / "reference.py").write_text("def reference(a, b):\n    return b + a\n")
    with pytest.raises(BadInput, match=r"which is now .*: give the task of that time with --task PATH"):
        session.replay(shop.archive, shop.archive.run(shop.run), str(shop.task.folder), False, shop.events.append)


def test_replay_is_no_run_to_resume(shop: Shop) -> None:
    given = {"task": "toy", "task_version": "v", "target": "cpu", "device": "d", "rng_seed": 1}
    run = Run(note=f"{replay.NOTE}r1", **given)
    with pytest.raises(BadInput, match="is a replay of r1"):
        session.resume(shop.archive, run, lambda announced: None, shop.events.append, lambda: None)
