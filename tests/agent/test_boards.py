"""The leaderboard on consoles of any width: numbers are whole, only words wrap."""

import io
import math

import pytest
from rich.console import Console

from agent import boards, words
from archive import Row
from sandbox.contract import Interval

NOTE = "2_tensor_core.cu: WARPS=8 TILE_M=256 TILE_N=32 STAGES=2 QUERY_IN_REGISTERS=0"


def row(place: int, ratio: float) -> Row:
    interval = Interval(ratio=ratio, low=ratio * 0.97, high=ratio * 1.03)
    return Row(
        candidate=f"{place:064x}"[::-1],
        task="toy",
        task_version="v",
        target="cuda",
        device="test gpu",
        judge_version=1,
        status="Passed",
        latency_ms=0.0677 / place,
        speedup={"eager": interval, "compile": interval, "library": None},
        roofline_share=0.17,
        depth=1,
        operator="tune",
        proposer="tuner",
        note=NOTE,
        tunables={},
        parents=(),
        confirmed=place == 1,
        judged_at="2026-01-02T03:04:05+00:00",
        workloads=(),
    )


ROWS = [row(1, 12.3), row(2, 1.5), row(3, 0.0789)]


def drawn(width: int, limit: int | None = None) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None, record=True)
    console.print(boards.leaderboard(ROWS, width, limit))
    return console.export_text()


@pytest.mark.parametrize("width", [56, 64, 80, 100, 120, 140, 170, 200])
def test_numbers_are_whole_at_any_width(width: int) -> None:
    text = drawn(width)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    for number in ("12.3", "11.9–12.7", "1.50", "1.46–1.54", "0.079", "0.077–0.081", "1000000000"):
        assert number in text


@pytest.mark.parametrize("width", [100, 120, 170])
def test_words_wrap_between_words(width: int) -> None:
    assert all(word in drawn(width) for word in NOTE.split())


def test_wide_consoles_show_everything_and_narrow_ones_what_matters() -> None:
    assert all(name in drawn(200) for name in ("when (UTC)", "2026-01-02 03:04", "by", "depth", "roof"))
    assert all(name in drawn(80) for name in ("ms", "× eager", "× compile", "× library", "candidate"))
    assert "when" not in drawn(80)


def test_limit_says_how_many_there_are() -> None:
    assert "toy · cuda · test gpu, best 2 of 3" in drawn(120, limit=2)


@pytest.mark.parametrize(
    ("ratio", "wanted"),
    [
        (0.0789, "0.079"),
        (0.79, "0.79"),
        (0.999, "1.00"),
        (7.951, "7.95"),
        (9.999, "10.0"),
        (79.52, "79.5"),
        (795, "795"),
    ],
)
def test_ratios_have_two_or_three_digits(ratio: float, wanted: str) -> None:
    assert words.ratio(ratio) == wanted


def test_an_interval_has_the_decimals_of_its_ratio() -> None:
    assert words.times(Interval(ratio=0.79, low=0.788, high=0.8)) == "0.79 (0.79–0.80)"
    assert words.times(Interval(ratio=2.0, low=0.0, high=math.inf)) == "2.00 (0.00–∞)"
    assert words.times(None) == "–"
