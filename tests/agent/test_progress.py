"""What a running search shows: folded from events, drawn on a terminal or written as lines."""

import io

from rich.console import Console

from agent.config import Budget
from agent.progress import Board, advanced, display, eta_seconds, panel
from agent.steps import Ended, Judging, Settled, Spent
from sandbox.contract import BuildFailed, Candidate, Interval, Judgement, Passed, Verdict

CANDIDATE = Candidate(task="toy", target="cpu", source="int a;", operator="seed", proposer="seed", note="1_[plain].cpp")


def settled(verdict: Verdict, evals: int = 1, seconds: float = 10.0) -> Settled:
    judgement = Judgement(
        candidate=CANDIDATE.id,
        task="toy",
        task_version="v",
        target="cpu",
        device="test cpu",
        verdict=verdict,
        seconds=1.0,
        judged_at="2026-01-01T00:00:00+00:00",
    )
    return Settled(CANDIDATE, judgement, reused=False, confirming=False, spent=Spent(evals, seconds, 0.0))


def passed(ratio: float) -> Passed:
    interval = Interval(ratio=ratio, low=ratio, high=ratio)
    return Passed(checks=(), timings=(), speedup={"eager": interval, "library": interval}, latency_ms=8.0 / ratio)


def drawn(board: Board) -> str:
    console = Console(width=100, record=True, file=io.StringIO(), color_system=None)
    console.print(panel(board, 12.0))
    return console.export_text()


def test_best_is_kept_through_slower_and_failing_candidates() -> None:
    board = Board(Budget())
    for verdict in (BuildFailed(log="no"), passed(2.0), passed(4.0), passed(3.0), BuildFailed(log="no")):
        board = advanced(board, settled(verdict))
    assert board.best is not None
    assert board.best.judgement.verdict == passed(4.0)
    assert len(board.last) == 5


def test_panel_shows_budgets_best_last_verdicts_stage_and_eta() -> None:
    board = Board(Budget(evals=10, seconds=1000))
    for event in (
        settled(passed(2.0)),
        settled(BuildFailed(log="x.cpp:1: error: [bold]"), 2, 20.0),
        Judging(CANDIDATE, False),
    ):
        board = advanced(board, event)
    text = drawn(board)
    assert "2 / 10" in text
    assert "20 / 1000" in text
    assert "best  4.000 ms 2.00× eager 2.00× library  1_[plain].cpp" in text
    assert "BuildFailed x.cpp:1: error: [bold]" in text
    assert "judging" in text
    assert "1_[plain].cpp" in text
    assert "about 80 s of search left" in text


def test_eta_is_bounded_by_the_budget_that_ends_first() -> None:
    board = advanced(Board(Budget(evals=1000, seconds=30)), settled(passed(1.0)))
    assert eta_seconds(board) == 20.0
    assert eta_seconds(Board(Budget())) is None


def test_end_of_the_search_is_a_stage() -> None:
    assert "nothing left" in advanced(Board(Budget()), Ended("nothing left")).stage


def test_lines_are_written_where_there_is_no_terminal() -> None:
    file = io.StringIO()
    with display(Console(file=file, width=40)) as shown:
        shown.report(settled(passed(2.0)))
        shown.report(Ended("budget spent"))
    lines = file.getvalue().splitlines()
    assert "Passed 4.000 ms 2.00× eager 2.00× library" in lines[0]
    assert "1_[plain].cpp" in lines[0]
    assert lines[1].startswith("search over: budget spent")
