"""Islands keep lineages together, the best migrate, parents are good, little tried, and the same for the same rng."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engineer.niches import cell
from agent.engineer.parents import Choice, children, choose, homes, islands, mate, weights
from agent.engineer.retrieval import LEAST_KINSHIP, Related
from agent.engineer.scores import scored

SCORES = st.lists(st.floats(-5, 5), min_size=1, max_size=12)


def ids(members):
    return [[entry.candidate.id for entry in island] for island in members]


@st.composite
def lineages(draw):
    """For each candidate its score, or None, and the place of its parent, or None."""
    size = draw(st.integers(0, 14))
    parents = [draw(st.none() | st.integers(0, at - 1)) if at else None for at in range(size)]
    return [(draw(st.none() | st.floats(-2, 2)), parent) for parent in parents]


def history_of(judged, lineage):
    history = []
    for at, (score, parent) in enumerate(lineage):
        history.append(judged(f"c{at}", score, () if parent is None else (history[parent][0].id,)))
    return history


# ---------------------------------------------------------------- weights


@given(SCORES, st.data())
def test_weights_are_finite_and_one_is_above_zero(scores, data) -> None:
    born = data.draw(st.lists(st.integers(0, 50), min_size=len(scores), max_size=len(scores)))
    found = weights(scores, born)
    assert all(0 <= weight <= 1 for weight in found)
    assert max(found) > 0


@given(SCORES)
def test_better_parents_weigh_no_less(scores) -> None:
    found = dict(sorted(zip(scores, weights(scores, [0] * len(scores)), strict=True)))
    assert list(found.values()) == sorted(found.values())


@given(SCORES, st.integers(1, 9))
def test_children_divide_a_weight(scores, born) -> None:
    none = weights(scores, [0] * len(scores))
    assert weights(scores, [born] * len(scores)) == pytest.approx([weight / (1 + born) for weight in none])


def test_formula_of_the_paper() -> None:
    # Median 1, MAD 1.
    assert weights([0.0, 1.0, 2.0], [0, 1, 3]) == pytest.approx(
        [1 / (1 + math.exp(10)), 0.5 / 2, 1 / (1 + math.exp(-10)) / 4]
    )


def test_equal_scores_weigh_the_same_and_differences_within_noise_nearly_so() -> None:
    assert weights([1.0, 1.0, 1.0], [0, 0, 0]) == [0.5] * 3
    low, middle, high = weights([1.0, 1.0, 1.0002], [0, 0, 0])
    assert low == middle == 0.5
    assert 0.5 < high < 0.6


def test_one_parent_and_none() -> None:
    assert weights([3.0], [7]) == [0.5 / 8]
    assert weights([], []) == []


# ---------------------------------------------------------------- islands


def test_seeds_are_dealt_out_in_turn_and_children_follow_their_first_parent(judged) -> None:
    a, b, c = judged("a", 0.0), judged("b", 0.0), judged("c", None)
    cross = judged("d", 1.0, (b[0].id, a[0].id))
    grandchild = judged("e", 1.0, (cross[0].id,))
    assert homes([a, b, c, cross, grandchild], 2) == {
        a[0].id: 0,
        b[0].id: 1,
        c[0].id: 0,
        cross[0].id: 1,
        grandchild[0].id: 1,
    }


def test_candidate_of_an_unknown_parent_goes_by_its_hash(judged) -> None:
    stranger, sibling = judged("a", 0.0, ("elsewhere",)), judged("b", 0.0, ("elsewhere",))
    found = homes([stranger, sibling], 5)
    assert len(set(found.values())) == 1
    assert found == homes([stranger, sibling], 5)


@given(lineage=lineages(), count=st.integers(1, 4), cut=st.integers(0, 14))
def test_islands_do_not_change_as_history_grows(judged, lineage, count, cut) -> None:
    history = history_of(judged, lineage)
    early, late = homes(history[:cut], count), homes(history, count)
    assert early.items() <= late.items()


@given(lineage=lineages(), count=st.integers(1, 4), every=st.integers(1, 20))
def test_whoever_passed_lives_on_its_island(judged, lineage, count, every) -> None:
    history = history_of(judged, lineage)
    home, members = homes(history, count), ids(islands(history, count, every))
    assert all(entry.candidate.id in members[home[entry.candidate.id]] for entry in scored(history))
    strangers = sum(home[name] != at for at, island in enumerate(members) for name in island)
    assert strangers <= count * (len(scored(history)) // every)
    assert all(len(set(island)) == len(island) for island in members)


def test_best_of_each_island_is_copied_to_the_next(judged) -> None:
    a, b, c = (judged(name, score) for name, score in (("a", 1.0), ("b", 2.0), ("c", 3.0)))
    better = judged("d", 4.0, (a[0].id,))
    names = {pair[0].id: name for pair, name in ((a, "a"), (b, "b"), (c, "c"), (better, "d"))}
    members = ids(islands([a, b, c, better], 3, migrate_every=4))
    assert ["".join(sorted(names[one] for one in island)) for island in members] == ["acd", "bd", "bc"]


def test_no_migration_before_its_time_nor_with_one_island(judged) -> None:
    history = [judged("a", 1.0), judged("b", 2.0), judged("c", None), judged("d", None)]
    assert [len(island) for island in islands(history, 2, migrate_every=3)] == [1, 1]
    assert [len(island) for island in islands(history, 1, migrate_every=1)] == [2]


def test_child_lives_where_it_was_bred(judged) -> None:
    a, b = judged("a", 1.0), judged("b", 2.0)
    child = judged("c", 3.0, (a[0].id,))
    assert homes([a, b, child], 2)[child[0].id] == 0
    assert homes([a, b, child], 2, {child[0].id: 1})[child[0].id] == 1


# ---------------------------------------------------------------- choices


def test_children_are_counted_once_each_failures_included(judged) -> None:
    a = judged("a", 1.0)
    b = judged("b", None, (a[0].id, a[0].id))
    c = judged("c", 1.0, (a[0].id, b[0].id))
    assert children([a, b, c, c]) == {a[0].id: 2, b[0].id: 1}


@given(lineage=lineages(), seed=st.integers(0, 99))
def test_choice_is_an_elite_of_its_island_and_the_same_for_the_same_rng(judged, make_task, gpu, lineage, seed) -> None:
    history = history_of(judged, lineage)
    members, born = islands(history), children(history)
    first, again = (choose(members, born, make_task(), gpu, random.Random(seed)) for _ in range(2))
    assert first == again
    assert (first is None) == (not scored(history))
    if first is not None:
        # All kernels here are of one cell, so an island has one elite.
        assert first.parent.score == max(entry.score for entry in members[first.island])


def test_best_of_all_is_drawn_half_of_the_time_and_more(judged, make_task, gpu) -> None:
    history = [judged(f"c{at}", at / 10) for at in range(6)]
    members = islands(history)
    best = scored(history)[-1]
    drawn = [choose(members, {best.candidate.id: 50}, make_task(), gpu, random.Random(seed)) for seed in range(400)]
    assert 0.4 < sum(choice.parent == best for choice in drawn) / len(drawn) < 0.8
    assert all(choice.parent in members[choice.island] for choice in drawn)


def test_nothing_passed_means_no_parent(judged, make_task, gpu) -> None:
    assert choose(islands([judged("a", None)]), {}, make_task(), gpu, random.Random(0)) is None
    assert choose([], {}, make_task(), gpu, random.Random(0)) is None


def test_only_parent_is_chosen(judged, make_task, gpu) -> None:
    history = [judged("a", -1.0)]
    assert choose(islands(history), {}, make_task(), gpu, random.Random(0)) == Choice(scored(history)[0], 0)


def test_mate_is_of_another_cell(kernel, judgement, make_task, gpu) -> None:
    bodies = ("int a;", "int b;", "float4 v;", 'asm("cp.async.cg");')
    history = [(c, judgement(c, score)) for c, score in zip(map(kernel, bodies), (0, 1, 0.5, 0.7), strict=True)]
    members, parent, task = islands(history), scored(history)[1], make_task()
    mates = Counter(mate(members, parent, {}, task, gpu, random.Random(seed))[0].id for seed in range(50))
    assert set(mates) == {history[2][0].id, history[3][0].id}
    assert all(cell(entry, task, gpu) != cell(parent, task, gpu) for entry in scored(history[2:]))


def test_kernel_of_a_task_much_like_this_one_may_be_the_mate(kernel, judged, make_task, gpu) -> None:
    near, nearest, far = (kernel(f"int {name};", task=name) for name in ("near", "nearest", "far"))
    related = [
        Related(make_task(found.task), found, judged("any", 1.0)[1], likeness)
        for found, likeness in ((near, LEAST_KINSHIP), (nearest, 1.0), (far, LEAST_KINSHIP / 2))
    ]
    members = islands([judged("a", 1.0)])
    parent = members[0][0]

    def mates(born: dict[str, int]) -> Counter[str]:
        drawn = [mate(members, parent, born, make_task(), gpu, random.Random(seed), related) for seed in range(200)]
        return Counter(candidate.task for candidate, _ in drawn)

    assert set(mates({})) == {"near", "nearest"}
    assert mates({})["nearest"] > 2 * mates({})["near"]
    assert mates({nearest.id: 9})["near"] > 2 * mates({nearest.id: 9})["nearest"]


def test_no_other_cell_means_no_mate(judged, make_task, gpu) -> None:
    history = [judged("a", 1.0), judged("b", 2.0)]
    assert mate(islands(history), scored(history)[0], {}, make_task(), gpu, random.Random(0)) is None
