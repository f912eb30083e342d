"""A search ends near the roofline, when it stands still, or when the next per cent costs too much; with numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engineer.stopping import Rules, expected_gain, record_curve, should_stop, stagnant

PATIENT = Rules(patience=100.0, least_gain_per_usd=0.0)
"""Only the roofline ends it."""


def trajectory(judged, scores):
    return [judged(f"c{i}", score) for i, score in enumerate(scores)]


@given(scores=st.lists(st.none() | st.floats(-3, 3), max_size=10))
def test_record_curve_never_falls(judged, scores) -> None:
    curve = record_curve(trajectory(judged, scores))
    assert len(curve) == len(scores)
    assert curve == sorted(curve)
    if curve:
        assert curve[-1] == pytest.approx(max((s for s in scores if s is not None), default=-math.inf))


@given(scores=st.lists(st.none(), max_size=40))
def test_search_in_which_nothing_passed_goes_on(judged, scores) -> None:
    assert should_stop(trajectory(judged, scores), [0.1 * i for i in range(len(scores))], 20) is None


# ---------------------------------------------------------------- roofline


def test_roofline_is_reached_when_every_workload_is_near_it(judged) -> None:
    first, second = judged("a", 1.0, shares=(0.95, 0.3)), judged("b", 1.0, shares=(0.2, 0.912))
    assert should_stop([first], [0.0], 100, PATIENT) is None
    wanted = "91.2 % of the roofline on N4096 float32 and no less elsewhere, wanted 90 %"
    assert should_stop([first, second], [0.0, 0.0], 100, PATIENT) == wanted
    assert should_stop([first, second], [0.0, 0.0], 100, PATIENT.model_copy(update={"roofline_share": 0.92})) is None


def test_roofline_that_a_kernel_is_beyond_ends_nothing(judged) -> None:
    assert should_stop([judged("a", 1.0, shares=(1.3, 0.95))], [0.0], 100, PATIENT) is None


def test_unknown_share_of_one_workload_is_not_reached(judged) -> None:
    for shares in ((None, None), (0.99, None)):
        assert should_stop([judged("a", 1.0, shares=shares)], [0.0], 100, PATIENT) is None


def test_roofline_of_a_cpu_ends_nothing(judged) -> None:
    assert should_stop([judged("a", 1.0, shares=(1.83, 0.99), target="cpu")], [0.0], 100, PATIENT) is None


# ---------------------------------------------------------------- stagnation


def test_search_that_stands_still_stops_when_patience_ends(judged) -> None:
    scores = [0.0, 0.5, *[0.3] * 16]
    rules = Rules(least_gain_per_usd=0.0)
    assert should_stop(trajectory(judged, scores[:17]), [0.0] * 17, 20, rules) is None
    wanted = "16 evaluations without a gain of 1 %, 16 allowed; best 1.65x eager"
    assert should_stop(trajectory(judged, scores), [0.0] * 18, 20, rules) == wanted
    assert should_stop(trajectory(judged, scores), [0.0] * 18, 40, rules) is None


def test_failures_are_evaluations_without_a_gain(judged) -> None:
    assert "17 evaluations" in (should_stop(trajectory(judged, [0.0, *[None] * 17]), [0.0] * 18, 20) or "")


def test_small_steps_add_up_to_a_gain() -> None:
    creeping = [0.004 * i for i in range(60)]
    assert stagnant(creeping, 20, Rules()) is None
    assert stagnant([0.0001 * i for i in range(60)], 20, Rules()) is not None


@given(st.integers(1, 400))
def test_patience_grows_with_the_budget(budget) -> None:
    allowed = max(16, math.ceil(budget / 2))
    assert stagnant([0.0] * allowed, budget, Rules()) is None
    assert stagnant([0.0] * (allowed + 1), budget, Rules()) is not None


# ---------------------------------------------------------------- money


def test_gain_of_the_next_dollar_on_a_logarithmic_curve() -> None:
    usd = [0.5 * i for i in range(1, 21)]
    curve = [0.1 * math.log(spent) for spent in usd]
    assert expected_gain(curve, usd) == pytest.approx(math.exp(0.1 * math.log(11 / 10)) - 1)


def test_search_stops_when_the_next_per_cent_is_too_dear(judged) -> None:
    usd = [1.0 * i for i in range(1, 13)]
    scores = [0.02 * math.log(spent) for spent in usd]
    found = should_stop(trajectory(judged, scores), usd, 100)
    assert found == "the next USD is expected to gain 0.16 %, wanted 1 %; best 1.05x eager after 12.00 USD"
    assert should_stop(trajectory(judged, scores), usd, 100, Rules(least_gain_per_usd=0.001)) is None


def test_steep_curve_goes_on(judged) -> None:
    usd = [0.1 * i for i in range(1, 13)]
    assert should_stop(trajectory(judged, [0.5 * math.log(spent) for spent in usd]), usd, 100) is None


def test_free_or_short_search_says_nothing_of_money() -> None:
    assert expected_gain([0.1] * 20, [0.0] * 20) is None
    assert expected_gain([0.1] * 20, [2.0] * 20) is None
    assert expected_gain([0.1, 0.2, 0.3], [1.0, 2.0, 3.0]) is None
    assert expected_gain([], []) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=30))
def test_expected_gain_is_never_below_zero(steps) -> None:
    curve, usd, record, spent = [], [], 0.0, 0.0
    for gain, price in steps:
        record, spent = record + gain, spent + price
        curve.append(record)
        usd.append(spent)
    gain = expected_gain(curve, usd)
    assert gain is None or gain >= 0


def test_spending_must_be_known_for_every_judgement(judged) -> None:
    with pytest.raises(ValueError, match="zip"):
        should_stop(trajectory(judged, [0.1, 0.2]), [1.0], 100)
