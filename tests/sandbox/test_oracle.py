"""The measure of error, on its own: what a candidate's outputs are held against."""

import math

import torch

from sandbox.referee.oracle import distance, scale


def rows() -> torch.Tensor:
    return torch.randn(50, 16, generator=torch.Generator().manual_seed(7)).double()


def test_equal_is_no_distance() -> None:
    wanted = rows()
    assert distance(wanted.float(), wanted) == (0.0, 0.0)


def test_one_wrong_element_shows_in_its_row_however_many_are_right() -> None:
    wanted = rows()
    got = wanted.float()
    got[3, 4] += float(wanted[3].norm())
    row, element = distance(got, wanted)
    assert math.isclose(row, 1.0, rel_tol=1e-5)
    assert element >= 1.0


def test_known_scale_changes_nothing() -> None:
    wanted = rows()
    got = (wanted * 1.01).float()
    assert distance(got, wanted, scale(wanted)) == distance(got, wanted)


def test_rows_of_zeros_are_measured_against_typical_rows() -> None:
    wanted = rows()
    wanted[5] = 0
    got = wanted.float()
    got[5, 0] = 1e-6
    row, _ = distance(got, wanted)
    assert 0 < row < 1


def test_nan_where_the_wanted_value_is_finite_is_infinitely_wrong() -> None:
    wanted = rows()
    got = wanted.float()
    got[1, 1] = math.nan
    assert distance(got, wanted) == (math.inf, math.inf)


def test_infinity_in_the_wanted_values_excuses_no_other_element() -> None:
    wanted = rows()
    wanted[1, 2] = math.inf
    got = wanted.float()
    assert distance(got, wanted) == (0.0, 0.0)
    got[1, 3] += 5
    got[2, 3] += 5
    assert distance(got, wanted)[0] > 0.5


def test_infinity_must_be_met_by_infinity_of_the_same_sign() -> None:
    wanted = rows()
    wanted[1, 2], wanted[4, 5] = -math.inf, math.nan
    got = wanted.float()
    got[4, 5] = 3.0
    assert distance(got, wanted) == (0.0, 0.0)
    for other in (0.0, math.inf, math.nan):
        got[1, 2] = other
        assert distance(got, wanted) == (math.inf, math.inf)
