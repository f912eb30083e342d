"""Wires the steps: translate → optimise ⟲ → confirm ⟲ → compose. The only file that knows langgraph.

The archive is the truth. A checkpoint holds only where the graph stands; without it, or with an old one, the steps
find out from the archive what is left to do, and nothing is judged twice.
"""

from __future__ import annotations

import fcntl
import signal
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal, TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.errors import GraphDrained
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import RunControl, Runtime
from platformdirs import user_data_path

from agent import steps
from agent.steps import Clients
from sandbox.errors import ArchiveUnusable, BadInput, WarpsmithError

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph.state import CompiledStateGraph

SPARE_STEPS = 50
"""Supersteps beyond one for each evaluation: translate, confirmations, compose."""


class State(TypedDict, total=False):
    """Where a run stands. Ids and words only: sources live in the archive."""

    run: str
    seeds: list[str]
    ended: str | None
    """Why the search is over; None while it goes on."""
    unconfirmed: bool
    winners: dict[str, str]


def run(
    clients: Clients, run_id: str, checkpoints: Path, on_drain: Callable[[], None]
) -> Literal["finished", "drained"]:
    """Run or resume `run_id` until it is finished or drained by SIGINT; `on_drain` is called once when that is asked.

    Whatever a step raises travels up; the run can be resumed all the same.
    """
    control = RunControl()
    with _only_here(checkpoints, run_id), _checkpointer(checkpoints) as saver, _sigint_drains(control, on_drain):
        clients.archive.update_run(run_id, status="running")
        try:
            _invoke(_build().compile(checkpointer=saver), clients, run_id, control)
        except GraphDrained:
            clients.archive.update_run(run_id, status="drained")
            return "drained"
        except KeyboardInterrupt:
            clients.archive.update_run(run_id, status="drained")
            raise
        except WarpsmithError:
            clients.archive.update_run(run_id, status="failed")
            raise
    return "finished"


def checkpoint_path(archive: str) -> Path:
    """Where the checkpoints of an archive lie: beside its file, or in the user's data folder if it is a server's."""
    if "://" in archive:
        return user_data_path("warpsmith", appauthor=False, ensure_exists=True) / "graph.db"
    return Path(f"{archive}.graph.db")


# ---------------------------------------------------------------- nodes and edges


def _translate(state: State, runtime: Runtime[Clients]) -> State:
    return {"seeds": steps.translate(runtime.context)}


def _optimise(state: State, runtime: Runtime[Clients]) -> State:
    return {"ended": steps.optimise(runtime.context, state["run"])}


def _confirm(state: State, runtime: Runtime[Clients]) -> State:
    return {"unconfirmed": steps.confirm(runtime.context, state["run"])}


def _compose(state: State, runtime: Runtime[Clients]) -> State:
    return {"winners": dict(steps.compose(runtime.context, state["run"]))}


def _build() -> StateGraph[State, Clients, State, State]:
    graph = StateGraph(State, context_schema=Clients)
    graph.add_node("translate", _translate)
    graph.add_node("optimise", _optimise)
    graph.add_node("confirm", _confirm)
    graph.add_node("compose", _compose)
    graph.add_edge(START, "translate")
    graph.add_edge("translate", "optimise")
    graph.add_conditional_edges("optimise", lambda state: "confirm" if state["ended"] else "optimise")
    graph.add_conditional_edges("confirm", lambda state: "confirm" if state["unconfirmed"] else "compose")
    graph.add_edge("compose", END)
    return graph


def _invoke(
    graph: CompiledStateGraph[State, Clients, State, State], clients: Clients, run_id: str, control: RunControl
) -> None:
    config: RunnableConfig = {
        "configurable": {"thread_id": run_id},
        "recursion_limit": clients.budget.evals + SPARE_STEPS,
    }
    interrupted = bool(graph.get_state(config).next)
    start: State | None = None if interrupted else {"run": run_id}
    graph.invoke(start, config, context=clients, control=control, durability="sync")


# ---------------------------------------------------------------- checkpoints and signals


@contextmanager
def _only_here(checkpoints: Path, run_id: str) -> Iterator[None]:
    """Hold the run's byte of the lock file, which the system frees however this process ends.

    BadInput where another process holds it.
    """
    path = checkpoints.with_name(f"{checkpoints.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("ab")
    except OSError as exc:
        raise ArchiveUnusable(f"lock file {path}: {exc.strerror}") from exc
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, zlib.crc32(run_id.encode()))
        except (BlockingIOError, PermissionError) as exc:
            raise BadInput(f"run {run_id} is under way in another process") from exc
        yield


@contextmanager
def _checkpointer(path: Path) -> Iterator[SqliteSaver]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with SqliteSaver.from_conn_string(str(path)) as saver:
            saver.setup()
            yield saver
    except (OSError, sqlite3.DatabaseError) as exc:
        raise ArchiveUnusable(f"checkpoint file {path}: {exc}; it can be deleted, nothing judged is lost") from exc


@contextmanager
def _sigint_drains(control: RunControl, on_drain: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT lets the running step finish; the second interrupts it; a third kills the process."""

    def handle(number: int, frame: FrameType | None) -> None:
        if control.drain_requested:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt
        control.request_drain("SIGINT")
        on_drain()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
