"""What failed on a lineage is not tried there again; elsewhere, or as another change, it may be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engineer.ideas import closed, failed, of_lineage, outcome, refused, same, similarity
from agent.engineer.records import Idea, Plan
from sandbox.contract import Incorrect, TimedOut

EDGES = {"child": ("seed",), "grandchild": ("child",), "cousin": ("other",)}


def plan(change="load K tiles of 64 rows with cp.async", memory="async_copy", tensor_cores=False):
    return Plan(
        bottleneck="memory",
        change=change,
        why="because",
        expected_speedup=1.2,
        memory=memory,
        tensor_cores=tensor_cores,
    )


def idea(outcome, candidate="failure", parent="child", **fields):
    return Idea(plan=plan(**fields), candidate=candidate, parent=parent, outcome=outcome)


# ---------------------------------------------------------------- outcomes


@pytest.mark.parametrize(
    ("score", "parent", "words", "is_failure"),
    [
        (0.2, 0.1, "1.11x over its parent", False),
        (0.1, 0.2, "slower: 0.90x", True),
        (0.1, 0.1001, "1.00x over its parent", False),
        (0.7, None, "passed, 2.01x eager", False),
        (None, 0.1, "BuildFailed", True),
    ],
)
def test_outcome_in_words_and_back(kernel, judgement, score, parent, words, is_failure) -> None:
    found = outcome(judgement(kernel(), score), parent)
    assert found == words
    assert failed(idea(found)) == is_failure


@given(score=st.floats(-3, 3), parent=st.floats(-3, 3))
def test_outcome_is_read_as_it_was_meant(kernel, judgement, score, parent) -> None:
    found = idea(outcome(judgement(kernel(), score), parent))
    if abs(score - parent) > 0.006:
        assert failed(found) == (score < parent)


def test_outcome_tells_nothing_of_a_held_out_workload(kernel, judgement) -> None:
    found = judgement(kernel(), None)
    wrong = Incorrect(workload="N77", distribution="spread", rule="row error", evidence="N77 is wrong")
    assert outcome(found.model_copy(update={"verdict": wrong}), 0.0) == "Incorrect: row error"
    late = TimedOut(stage="check of N77", seconds=3.0)
    assert outcome(found.model_copy(update={"verdict": late}), 0.0) == "TimedOut"


# ---------------------------------------------------------------- lineages


def test_idea_belongs_to_all_that_descend_from_where_it_was_tried() -> None:
    tried = idea("Incorrect: row error", parent="seed")
    assert of_lineage([tried], "grandchild", EDGES) == of_lineage([tried], "seed", EDGES) == [tried]
    assert of_lineage([tried], "cousin", EDGES) == []


def test_idea_that_made_an_ancestor_belongs_to_the_lineage() -> None:
    made = idea("passed, 2.00x eager", candidate="child", parent=None)
    assert of_lineage([made], "grandchild", EDGES) == [made]
    assert of_lineage([made], "seed", EDGES) == []


@pytest.mark.parametrize(
    ("outcome", "count"), [("slower: 0.8x", 1), ("Incorrect: row error", 1), ("1.12x over its parent", 0)]
)
def test_what_failed_or_made_it_slower_is_closed(outcome, count) -> None:
    assert len(closed([idea(outcome)], "grandchild", EDGES)) == count


def test_later_success_opens_an_idea_again() -> None:
    first, repaired = idea("Incorrect: row error"), idea("1.12x over its parent", candidate="repaired")
    assert closed([first, repaired], "child", EDGES) == []
    assert closed([repaired, first], "child", EDGES) == [first]


# ---------------------------------------------------------------- refusals


def test_repetition_in_nearly_the_same_words_is_refused() -> None:
    tried = idea("slower: 0.8x")
    again = plan(change="Load the K tile of 64 rows, using cp.async.")
    assert refused(again, [tried], "grandchild", EDGES) == tried
    assert refused(again, [tried], "cousin", EDGES) is None


def test_other_plans_are_not_refused() -> None:
    tried = [idea("slower: 0.8x"), idea("1.1x over its parent", change="unroll the inner loop", memory="direct")]
    assert refused(plan(change="load K tiles of 128 rows in two stages with cp.async"), tried, "child", EDGES) is None
    assert refused(plan(change="unroll the inner loop", memory="direct"), tried, "child", EDGES) is None
    assert refused(plan(), [], "child", EDGES) is None


def test_nearest_of_several_is_named() -> None:
    words = "load K V Q O tiles of 64 rows with cp.async in two stages and one barrier"
    far, near = idea("slower: 0.8x", change=words + " slowly"), idea("slower: 0.9x", change=words)
    assert refused(plan(change=words), [far, near], "child", EDGES) == near


def test_same_words_for_another_memory_and_tensor_cores_are_another_plan() -> None:
    short = "tile the loop"
    assert not same(plan(change=short, memory="shared"), plan(change=short, memory="tma"))
    assert not same(plan(change=short, tensor_cores=True), plan(change=short))


CHANGES = st.text(alphabet="abc 12,.", min_size=1, max_size=40)


@given(CHANGES, CHANGES)
def test_similarity_is_symmetric_and_one_with_itself(a, b) -> None:
    one, other = plan(change=a), plan(change=b)
    assert similarity(one, one) == 1
    assert similarity(one, other) == similarity(other, one)
    assert 0 <= similarity(one, other) <= 1
