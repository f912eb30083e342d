"""One number for a judged candidate: higher is faster, and only what passed has one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engineer.scores import best, score, scored
from sandbox.contract import Passed


def test_as_fast_as_eager_is_zero_and_twice_as_fast_ln_2(kernel, judgement) -> None:
    assert score(judgement(kernel(), 0.0)) == 0.0
    assert score(judgement(kernel(), math.log(2))) == pytest.approx(math.log(2))


def test_what_failed_or_was_not_timed_has_no_score(kernel, judgement) -> None:
    assert score(judgement(kernel(), None)) is None
    untimed = Passed(checks=(), timings=(), speedup={}, latency_ms=1.0)
    assert score(judgement(kernel(), 0.0).model_copy(update={"verdict": untimed})) is None


def test_workloads_count_by_their_geometric_mean(kernel, judgement) -> None:
    found = judgement(kernel(), 0.0)
    first, second = found.verdict.timings
    fast, slow = (
        timing.model_copy(update={"candidate": timing.candidate.model_copy(update={"median_ms": ms})})
        for timing, ms in ((first, 0.25), (second, 4.0))
    )
    verdict = found.verdict.model_copy(update={"timings": (fast, slow)})
    assert score(found.model_copy(update={"verdict": verdict})) == pytest.approx(0.0)


@given(values=st.lists(st.none() | st.floats(-3, 3), max_size=8))
def test_everything_that_passed_is_scored_once_and_in_order(judged, values) -> None:
    history = [judged(f"c{i}", value) for i, value in enumerate(values)]
    found = scored(history)
    assert [entry.score for entry in found] == pytest.approx([value for value in values if value is not None])
    assert (best(found) is None) == (not found)
    assert all(best(found).score >= entry.score for entry in found)


def test_last_judgement_counts_and_place_stays(judged, judgement) -> None:
    first, second = judged("a", 1.0), judged("b", 0.5)
    assert [entry.score for entry in scored([first, second, (first[0], judgement(first[0], 0.2))])] == pytest.approx(
        [0.2, 0.5]
    )
    assert [e.candidate for e in scored([first, second, (first[0], judgement(first[0], None))])] == [second[0]]
