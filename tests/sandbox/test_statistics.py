import math
import random

import pytest

from sandbox import statistics
from sandbox.contract import Timing


def timing(candidate: list[float], **baselines: list[float]) -> Timing:
    return Timing(
        workload="w",
        candidate=statistics.measurement(candidate, 1),
        baselines={name.replace("_", ":"): statistics.measurement(values, 1) for name, values in baselines.items()},
    )


def test_speedup_is_the_geometric_mean_over_workloads() -> None:
    found = statistics.speedups([timing([1.0, 1.0], eager=[2.0, 2.0]), timing([1.0, 1.0], eager=[8.0, 8.0])])
    assert found["eager"].ratio == pytest.approx(4.0)


def test_noise_shared_by_a_round_cancels() -> None:
    noise = [1.0, 3.0, 0.5, 2.0]
    found = statistics.speedups([timing(noise, eager=[2 * value for value in noise])])["eager"]
    assert found.low == pytest.approx(2.0)
    assert found.high == pytest.approx(2.0)


def test_library_is_the_best_call_of_each_workload() -> None:
    found = statistics.speedups(
        [
            timing([1.0, 1.0], eager=[1.0, 1.0], library_a=[2.0, 2.0], library_b=[3.0, 3.0]),
            timing([1.0, 1.0], eager=[1.0, 1.0], library_a=[9.0, 9.0], library_b=[4.0, 4.0]),
        ]
    )
    assert found["library"].ratio == pytest.approx(math.sqrt(8.0))


def test_a_baseline_missing_on_one_workload_is_not_reported() -> None:
    assert set(statistics.speedups([timing([1.0], eager=[1.0], compile=[1.0]), timing([1.0], eager=[1.0])])) == {
        "eager"
    }


def test_intervals_cover_the_truth_as_often_as_they_claim() -> None:
    rng = random.Random(7)
    covered = 0
    for _ in range(2000):
        found = statistics.interval([rng.gauss(0.1, 0.05) for _ in range(10)])
        covered += found.low <= math.exp(0.1) <= found.high
    assert 0.935 <= covered / 2000 <= 0.965


def test_one_round_claims_nothing() -> None:
    found = statistics.interval([0.3])
    assert (found.low, found.high) == (0.0, math.inf)
