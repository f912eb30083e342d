"""What a running search shows: a live panel on a terminal, plain lines elsewhere. Always on stderr.

A Board is what is known so far, folded from the events; the two displays only draw it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agent import words
from agent.config import Budget
from agent.session import Announcement
from agent.steps import Asking, Composed, Ended, Event, Judging, Settled, Spent, Unused
from sandbox.contract import Passed

KEPT = 6
"""Verdicts shown at a time."""
NOTHING = Spent(evals=0, seconds=0.0, usd=0.0)


@dataclass(frozen=True)
class Board:
    """What the display knows."""

    budget: Budget
    spent: Spent = NOTHING
    stage: str = "opening the judge"
    best: Settled | None = None
    last: tuple[Settled, ...] = ()
    unused: int = 0
    """Times that a model was asked in vain."""


def advanced(board: Board, event: Event) -> Board:
    """The board after an event."""
    if isinstance(event, Judging):
        verb = "confirming" if event.confirming else "judging"
        return replace(board, stage=f"{verb} {words.label(event.candidate)}")
    if isinstance(event, Settled):
        best = event if _faster(event, board.best) else board.best
        return replace(board, spent=event.spent, best=best, last=(*board.last, event)[-KEPT:], stage="proposing")
    if isinstance(event, Asking):
        return replace(board, stage=f"asking {event.model}: {event.purpose}")
    if isinstance(event, Unused):
        return replace(board, stage="proposing", unused=board.unused + 1)
    if isinstance(event, Ended):
        return replace(board, stage=f"search over ({event.reason}): confirming the fastest")
    return replace(board, stage="done")


def _faster(one: Settled, other: Settled | None) -> bool:
    return _speedup(one) > (_speedup(other) if other else 0.0)


def _speedup(settled: Settled) -> float:
    verdict = settled.judgement.verdict
    return verdict.speedup["eager"].ratio if isinstance(verdict, Passed) else 0.0


def eta_seconds(board: Board) -> float | None:
    """Seconds until the first budget is spent at the pace so far; None before the first verdict."""
    if board.spent.evals == 0:
        return None
    pace = board.spent.seconds / board.spent.evals
    by_evals = (board.budget.evals - board.spent.evals) * pace
    return max(0.0, min(by_evals, board.budget.seconds - board.spent.seconds))


# ---------------------------------------------------------------- words


def announcement_lines(announced: Announcement) -> list[str]:
    """What a run says before it starts."""
    budget = announced.config.budget
    return [
        f"run {announced.run}: {announced.task} ({announced.summary})",
        f"target {announced.target} on {announced.device}",
        f"sandbox {announced.sandbox}: {announced.why_sandbox}",
        f"proposer {announced.proposer} ({announced.why}), from {announced.seeds} seed kernels",
        *(f"passed over on this device: {note} ({why})" for note, why in announced.passed_over.items()),
        f"budget {budget.evals} evaluations, {budget.seconds:.0f} s, {budget.usd:.2f} USD; archive {announced.archive}",
    ]


def event_line(event: Event) -> str | None:
    """An event as one line; None where it needs none."""
    if isinstance(event, Settled):
        count = "confirm" if event.confirming else f"{event.spent.evals:>5}  "
        return f"{count} {words.verdict_words(event.judgement)}  {words.label(event.candidate)}" + (
            "  (from the archive)" if event.reused else ""
        )
    if isinstance(event, Unused):
        return f"      – {event.purpose} by {event.model}: {event.reason}"
    if isinstance(event, Ended):
        return f"search over: {event.reason}; the fastest are measured again"
    if isinstance(event, Composed):
        return "composing done" if event.composition else "nothing passed, so nothing is composed"
    return None


# ---------------------------------------------------------------- displays


class Display(Protocol):
    run: str | None
    """Id of the run, once it is announced."""

    def announce(self, announced: Announcement) -> None: ...

    def report(self, event: Event) -> None: ...

    def say(self, text: str) -> None: ...


class Lines:
    """Plain lines, for logs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.run: str | None = None

    def announce(self, announced: Announcement) -> None:
        self.run = announced.run
        for line in announcement_lines(announced):
            self.say(line)

    def report(self, event: Event) -> None:
        if line := event_line(event):
            self.say(line)

    def say(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)


class Panel(Lines):
    """A live panel below the announcement."""

    def __init__(self, console: Console, live: Live) -> None:
        super().__init__(console)
        self.live = live
        self.board: Board | None = None
        self.since = time.monotonic()

    def announce(self, announced: Announcement) -> None:
        super().announce(announced)
        self.board = Board(announced.config.budget)
        self.live.start()

    def report(self, event: Event) -> None:
        if self.board is not None:
            self.board = advanced(self.board, event)

    def __rich__(self) -> RenderableType:
        return panel(self.board, time.monotonic() - self.since) if self.board else Text("")


def panel(board: Board, wall_seconds: float) -> RenderableType:
    """Budget bars, the best so far, the last verdicts, what is being done."""
    eta = eta_seconds(board)
    left = f", about {eta:.0f} s of search left" if eta else ""
    status = f"{wall_seconds:.0f} s{left} · {board.stage}"
    parts: list[RenderableType] = [_bars(board)]
    if board.best is not None:
        parts.append(_line(f" best  {_in_brief(board.best)}", "bold"))
    for settled in board.last:
        lead = "again" if settled.confirming else f"{settled.spent.evals:>5}"
        parts.append(_line(f"{lead}  {_in_brief(settled)}", "dim"))
    if board.unused:
        parts.append(_line(f"       {board.unused} replies could not be used", "dim"))
    return Group(*parts, _line(status, "cyan"))


def _in_brief(settled: Settled) -> str:
    """Without the id, which the leaderboard gives: at 80 columns the note is what tells candidates apart."""
    return f"{words.brief(settled.judgement)}  {settled.candidate.note or settled.candidate.operator}"


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _bars(board: Board) -> Table:
    grid = Table.grid(padding=(0, 1))
    spent, budget = board.spent, board.budget
    rows = [("evaluations", spent.evals, budget.evals, "{:.0f}"), ("seconds", spent.seconds, budget.seconds, "{:.0f}")]
    if spent.usd:
        rows.append(("USD", spent.usd, budget.usd, "{:.2f}"))
    for name, value, total, form in rows:
        bar = ProgressBar(total=float(total), completed=min(float(value), float(total)), width=40)
        grid.add_row(name, bar, f"{form.format(value)} / {form.format(total)}")
    return grid


@contextmanager
def display(console: Console) -> Iterator[Display]:
    """A live panel where the console is a terminal, else lines."""
    if not console.is_terminal:
        yield Lines(console)
        return
    live = Live(console=console, refresh_per_second=2, transient=True)
    shown = Panel(console, live)
    live.update(shown)
    try:
        yield shown
    finally:
        live.stop()
