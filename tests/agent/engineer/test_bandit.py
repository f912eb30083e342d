"""The bandit tries every arm, then prefers arms that gain much for little, and never forgets to look again."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engineer.bandit import DECAY, Arm, Observation, choose, reward, worth

SMALL, LARGE, OTHER = (Arm(model=name, operator="edit") for name in ("small", "large", "other"))
ARMS = (SMALL, LARGE, OTHER)


def tried(arm, score=None, parent=0.0, cost=1.0):
    return Observation(arm=arm, score=score, parent=parent, cost=cost)


COSTS = st.just(0.0) | st.floats(1e-9, 10)
OBSERVATIONS = st.lists(
    st.builds(tried, st.sampled_from(ARMS), st.none() | st.floats(-3, 3), st.none() | st.floats(-3, 3), COSTS),
    max_size=30,
)


@pytest.mark.parametrize(
    ("score", "parent", "baseline", "wanted"),
    [
        (1.0, 0.4, 0.0, 0.6),
        (1.0, 0.4, 0.7, 0.3),
        (1.0, None, 0.25, 0.75),
        (0.3, 0.4, 0.0, 0.0),
        (0.3, -1.0, 0.5, 0.0),
        (None, 0.4, 0.0, 0.0),
        (None, None, -1.0, 0.0),
    ],
)
def test_reward_is_the_gain_over_parent_and_baseline(score, parent, baseline, wanted) -> None:
    assert reward(tried(SMALL, score, parent), baseline) == pytest.approx(wanted)


@given(OBSERVATIONS)
def test_untried_arms_come_first_in_order(observations) -> None:
    untried = [arm for arm in ARMS if all(entry.arm != arm for entry in observations)]
    found = choose(ARMS, observations)
    assert found in ARMS
    if untried:
        assert found == untried[0]


@given(OBSERVATIONS)
def test_choice_depends_on_nothing_but_its_arguments(observations) -> None:
    assert choose(ARMS, observations) == choose(ARMS, list(observations))


@given(OBSERVATIONS, st.floats(0.01, 100))
def test_unit_of_cost_does_not_matter(observations, unit) -> None:
    rescaled = [entry.model_copy(update={"cost": entry.cost * unit}) for entry in observations]
    assert worth(ARMS, rescaled) == pytest.approx(worth(ARMS, observations))


@given(OBSERVATIONS)
def test_worths_are_finite_and_above_zero(observations) -> None:
    assert all(0 < value < math.inf for value in worth(ARMS, observations).values())


def test_pending_tries_count_so_that_slots_spread() -> None:
    assert [choose(ARMS, [], pending=ARMS[:n]) for n in range(3)] == list(ARMS)
    once = [tried(arm) for arm in ARMS]
    assert choose(ARMS, once) == SMALL
    assert choose(ARMS, once, pending=[SMALL]) == LARGE


def test_formula() -> None:
    observations = [tried(SMALL, 1.0, cost=1.0), tried(LARGE, 0.5, cost=3.0)]
    found = worth((SMALL, LARGE), observations)
    bonus = math.sqrt(2 * math.log(2))
    # The largest weighted reward is SMALL's mean, 1; costs differ by 2, their mean is 2.
    dear = 3 - 0.1 * 2 * bonus + 0.02
    assert found[SMALL] == pytest.approx(0.5 * (1 + bonus) + 0.5)
    assert found[LARGE] == pytest.approx(0.5 * (0.5 + bonus) + 0.5 * 1.02 / dear)


def test_recent_rewards_weigh_more() -> None:
    early = [tried(SMALL, 1.0), tried(SMALL, 0.0), tried(LARGE, 1.0)]
    late = [tried(SMALL, 0.0), tried(SMALL, 1.0), tried(LARGE, 1.0)]
    difference = worth((SMALL, LARGE), late)[SMALL] - worth((SMALL, LARGE), early)[SMALL]
    assert difference == pytest.approx(0.5 * (1 - DECAY) / (1 + DECAY))


def test_arm_that_gains_is_taken_over_one_that_fails() -> None:
    observations = [tried(SMALL, 0.4), tried(LARGE), tried(OTHER)] * 6
    assert choose(ARMS, observations) == SMALL


def test_of_two_that_gain_the_same_the_cheaper_is_taken() -> None:
    observations = [tried(LARGE, 0.4, cost=5.0), tried(SMALL, 0.4, cost=0.5)] * 4
    assert choose((LARGE, SMALL), observations) == SMALL


def test_failures_cost_what_they_cost() -> None:
    same = [tried(LARGE, 0.4), tried(SMALL, 0.4)] * 3
    dear = [*same, tried(LARGE, cost=20.0), tried(SMALL, cost=0.1)]
    assert choose((LARGE, SMALL), dear) == SMALL


def test_dear_arm_that_gains_far_more_is_taken() -> None:
    observations = [tried(SMALL, 0.001, cost=1.0), tried(LARGE, 1.0, cost=2.0)] * 10
    assert choose((SMALL, LARGE), observations) == LARGE


def test_every_arm_is_tried_again_some_day() -> None:
    observations = [tried(SMALL, 0.5), tried(LARGE)]
    for _ in range(60):
        arm = choose((SMALL, LARGE), observations)
        observations.append(tried(arm, 0.5 if arm == SMALL else None))
    counts = [sum(entry.arm == arm for entry in observations) for arm in (SMALL, LARGE)]
    assert counts[0] > counts[1] > 1


def test_free_models_are_compared_by_gain_alone() -> None:
    observations = [tried(SMALL, 0.1, cost=0.0), tried(LARGE, 0.9, cost=0.0)] * 5
    assert choose((SMALL, LARGE), observations) == LARGE
