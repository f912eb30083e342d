"""The simulation of the gate, with the judge's own interval."""

from bench.gate import NOISES, simulate


def test_no_noise_makes_a_kernel_faster_than_itself() -> None:
    rows = [simulate(noise, 1.0, rounds=12, trials=200, seed=1) for noise in NOISES]
    assert [row.declared for row in rows] == [0] * len(NOISES)


def test_three_per_cent_are_found_where_blocks_stray_by_one() -> None:
    assert simulate(NOISES[1], 1.03, rounds=12, trials=200, seed=1).rate > 0.7
