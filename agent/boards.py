"""The leaderboard as tables that fit the console. Numbers are never cut: as a console gets narrower, the columns of
least weight go, then intervals move below their speedups; only the words of the last column wrap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agent.words import NAMED, bounds, milliseconds, percent, ratio, short, times
from sandbox.contract import Interval

if TYPE_CHECKING:
    from archive import Row

GAP = 2
"""Blanks between two columns."""
READABLE = 48
"""Columns that the words of a row should have before anything else gives way."""
TIGHT, LEAST = 22, 16
"""Columns that they should have beside stacked intervals, and that they must have before speedups go."""
LEGEND = (
    "× speedup: baseline / candidate, geometric mean over workloads (95 % interval); above 1 the candidate is faster\n"
    "✓ confirmed: measured again on fresh data, ranked first · roof: share of the roofline"
)


@dataclass(frozen=True)
class Layout:
    """Which columns there are, and whether intervals stand below their speedups."""

    columns: tuple[str, ...]
    stacked: bool = False

    def without(self, *names: str) -> Layout:
        return replace(self, columns=tuple(name for name in self.columns if name not in names))


FULL = Layout(("#", "ms", *(f"× {name}" for name in NAMED), "roof", "depth", "candidate", "by", "when (UTC)"))
NARROWER = (
    FULL,
    FULL.without("when (UTC)"),
    FULL.without("when (UTC)", "by"),
    FULL.without("when (UTC)", "by", "depth"),
    FULL.without("when (UTC)", "by", "depth", "roof"),
)
"""From the widest on."""
STACKED = tuple(replace(layout, stacked=True) for layout in NARROWER[2:])


def leaderboard(rows: Sequence[Row], width: int, limit: int | None = None) -> RenderableType:
    """One table for each task, target and device; rows come best first. `width` is the console's, in columns."""
    if not rows:
        return Text("nothing has passed yet")
    boards = groupby(rows, key=lambda row: (row.task, row.target, row.device))
    parts = [part for key, board in boards for part in _board(key, list(board), limit, width)]
    return Group(*parts, Text(LEGEND, style="dim"))


def _board(key: tuple[str, str, str], rows: Sequence[Row], limit: int | None, width: int) -> Iterator[RenderableType]:
    shown = rows[:limit]
    more = f", best {len(shown)} of {len(rows)}" if len(shown) < len(rows) else ""
    yield Text(f"{' · '.join(key)}{more}\n", style="bold")
    yield _table(shown, _layout(shown, width))
    yield Text()


def _layout(rows: Sequence[Row], width: int) -> Layout:
    """The widest layout that leaves the last column enough room."""
    wanted = min(READABLE, max(len(_words(row)) for row in rows))
    for layouts, least in ((NARROWER, wanted), (STACKED, min(TIGHT, wanted)), (STACKED[-1:], min(LEAST, wanted))):
        for layout in layouts:
            if width - _taken(rows, layout) >= least:
                return layout
    return STACKED[-1].without("ms", "× compile")


def _taken(rows: Sequence[Row], layout: Layout) -> int:
    """Columns that everything but the words takes."""
    lines = [layout.columns, *(tuple(_cells(place, row, layout)) for place, row in enumerate(rows, start=1))]
    columns = zip(*lines, strict=True)
    return sum(max(len(line) for cell in column for line in cell.split("\n")) + GAP for column in columns)


def _table(rows: Sequence[Row], layout: Layout) -> Table:
    table = Table(header_style="bold", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in layout.columns:
        table.add_column(name, justify="left" if name in ("candidate", "by", "when (UTC)") else "right", no_wrap=True)
    table.add_column("what", overflow="fold")
    for place, row in enumerate(rows, start=1):
        table.add_row(*_cells(place, row, layout), _words(row))
    return table


def _cells(place: int, row: Row, layout: Layout) -> Iterator[str]:
    return (_cell(name, place, row, layout.stacked) for name in layout.columns)


def _cell(column: str, place: int, row: Row, stacked: bool) -> str:
    match column:
        case "#":
            return f"{place} ✓" if row.confirmed else f"{place}  "
        case "ms":
            return milliseconds(row.latency_ms)
        case "roof":
            return percent(row.roofline_share)
        case "depth":
            return str(row.depth)
        case "candidate":
            return short(row.candidate)
        case "by":
            return row.proposer
        case "when (UTC)":
            return row.judged_at[:16].replace("T", " ")
    interval = row.speedup.get(column.removeprefix("× "))
    return _stack(interval) if stacked else times(interval)


def _stack(interval: Interval | None) -> str:
    return f"{ratio(interval.ratio)}\n{'–'.join(bounds(interval))}" if interval else "–"


def _words(row: Row) -> str:
    return row.note or row.operator
