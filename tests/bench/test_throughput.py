"""What the throughput bench makes of its samples."""

import pytest

from bench.judge_throughput import Verdict, weighted


def verdict(expected: str, seconds: float) -> Verdict:
    return Verdict(kind="", expected=expected, status=expected, seconds=seconds)


def test_what_does_not_compile_counts_by_its_share_of_all() -> None:
    sample = [verdict("Passed", 40.0), verdict("Incorrect", 44.0), verdict("BuildFailed", 10.0)]
    whole = ["Passed"] * 6 + ["Incorrect"] + ["BuildFailed"]
    assert weighted(sample, whole) == pytest.approx(7 / 8 * 42 + 1 / 8 * 10)


def test_a_sample_without_any_of_a_kind_is_its_own_mean() -> None:
    assert weighted([verdict("Passed", 40.0)], ["Passed", "BuildFailed"]) == 40.0
