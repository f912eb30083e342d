"""Remembers candidates, judgements, runs, asks and exchanges. Knows nothing of proposers, models and command lines."""

from archive.leaderboard import Row, WorkloadRow, rows, standing
from archive.records import Ask, Exchange, ImportReport, Run, RunStatus, Tally, new_run_id
from archive.store import Archive

__all__ = [
    "Archive",
    "Ask",
    "Exchange",
    "ImportReport",
    "Row",
    "Run",
    "RunStatus",
    "Tally",
    "WorkloadRow",
    "new_run_id",
    "rows",
    "standing",
]
