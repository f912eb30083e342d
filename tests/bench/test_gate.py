"""The simulation of the gate, with the judge's own interval."""

import statistics

import pytest

from bench.gate import NOISES, TRUE_GAIN, Row, closed_in, simulate, together


def test_no_noise_makes_a_kernel_faster_than_itself() -> None:
    rows = [simulate(noise, 1.0, rounds=12, trials=200, seed=1) for noise in NOISES]
    assert [row.declared for row in rows] == [0] * len(NOISES)


def test_three_per_cent_are_found_where_blocks_stray_by_one() -> None:
    assert simulate(NOISES[1], 1.03, rounds=12, trials=200, seed=1).rate > 0.7


def test_trials_of_several_judges_count_as_those_of_one() -> None:
    halves = [[1.0, 1.01, 0.98], [1.02, 1.03, 0.99, 1.04]]
    rows = [
        Row(
            what="a",
            true_ratio=1.0,
            rounds=12,
            trials=len(ratios),
            declared=1,
            mean_ratio=statistics.fmean(ratios),
            spread=statistics.stdev(ratios),
        )
        for ratios in halves
    ]
    whole = together(rows)
    assert (whole.trials, whole.declared) == (7, 2)
    assert whole.mean_ratio == pytest.approx(statistics.fmean([*halves[0], *halves[1]]))
    assert whole.spread == pytest.approx(statistics.stdev([*halves[0], *halves[1]]))


@pytest.mark.parametrize("hidden", [0.0, 0.05, 0.3])
def test_calibration_finds_the_share_whose_cost_hides_behind_other_work(hidden: float) -> None:
    def gain(extra: float) -> float:
        return max(0.1 * extra, 1.2 * (extra - hidden))

    assert gain(closed_in(gain, TRUE_GAIN)) == pytest.approx(TRUE_GAIN, rel=0.06)
