"""The flow of a run, with a scripted judge: nothing judged is lost or judged twice, however the run is stopped."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import graph, steps, tasks
from agent.config import Budget
from agent.proposers.tuner import Tuner
from agent.steps import Clients, Composition, Event, Winners
from archive import Archive, Run
from sandbox.contract import (
    BuildFailed,
    Candidate,
    Device,
    Incorrect,
    Interval,
    Judgement,
    Measurement,
    Passed,
    Task,
    Timing,
    Verdict,
)
from sandbox.errors import ArchiveUnusable, BadInput, WorkerLost

CPU = Device(name="test cpu", target="cpu", arch="x86_64", threads=2)


class ScriptedJudge:
    """Judges by a table: `speed` gives milliseconds for each workload, or a verdict. Counts what it was asked."""

    device = CPU

    def __init__(self, speed: Callable[[Candidate], tuple[float, ...] | Verdict]) -> None:
        self.speed = speed
        self.judged: list[str] = []
        self.confirmed: list[str] = []
        self.before: Callable[[int], None] = lambda count: None
        self.refuted: set[str] = set()

    def judge(self, task: Task, candidate: Candidate) -> Judgement:
        self.judged.append(candidate.id)
        self.before(len(self.judged))
        return self._judgement(task, candidate, confirmed=False)

    def confirm(self, task: Task, candidate: Candidate) -> Judgement:
        self.confirmed.append(candidate.id)
        return self._judgement(task, candidate, confirmed=True)

    def _judgement(self, task: Task, candidate: Candidate, confirmed: bool) -> Judgement:
        verdict = self.speed(candidate)
        if confirmed and candidate.id in self.refuted:
            verdict = Incorrect(workload="w", distribution="normal", rule="error", evidence="too large")
        if isinstance(verdict, tuple):
            timings = tuple(
                Timing(workload=w.name, candidate=measured(ms), baselines={"eager": measured(8.0)})
                for w, ms in zip(task.workloads, verdict, strict=True)
            )
            latency = (verdict[0] * verdict[1]) ** 0.5
            ratio = 8.0 / latency
            speedup = {"eager": Interval(ratio=ratio, low=ratio, high=ratio)}
            verdict = Passed(checks=(), timings=timings, speedup=speedup, latency_ms=latency, confirmed=confirmed)
        return Judgement(
            candidate=candidate.id,
            task=task.name,
            task_version=task.version,
            target=task.target,
            device=CPU.name,
            verdict=verdict,
            seconds=0.1,
            judged_at=f"2026-01-01T00:00:{len(self.judged) + len(self.confirmed):02}.000000+00:00",
        )


def measured(ms: float) -> Measurement:
    return Measurement(rounds_ms=(ms,), median_ms=ms, low_ms=ms, high_ms=ms, samples=1)


def speed(candidate: Candidate) -> tuple[float, ...] | Verdict:
    """Small blocks win on the first workload, large ones on the second; UNROLL=4 does not build."""
    if not candidate.tunables:
        return 6.0, 6.0
    if candidate.tunables["UNROLL"] == 4:
        return BuildFailed(log="no")
    penalty = 1.5 if candidate.note.startswith("10_") else 1.0
    block = candidate.tunables["BLOCK"]
    return penalty * (1 + block / 100), penalty * (1 + 10 / block)


class Line:
    """An archive with one run in it, and everything to start or resume it with."""

    def __init__(self, folder: Path, task: Task, evals: int = 9, where: str = "archive.db") -> None:
        self.path = folder / where
        self.task = task
        self.budget = Budget(evals=evals, seconds=1e6)
        self.judge = ScriptedJudge(speed)
        self.events: list[Event] = []
        self.composed: list[Winners] = []
        self.archive = Archive.open(self.path)
        self.run_id = self.archive.start_run(
            Run(id="r1", task=task.name, task_version=task.version, target="cpu", device=CPU.name, rng_seed=3)
        )

    def compose(self, winners: Winners) -> Composition:
        self.composed.append(winners)
        return Composition(root=self.path.parent, package="toy", ok=True, message="scripted")

    def run(self) -> str:
        seeds = tasks.seeds(self.task)
        clients = Clients(
            archive=self.archive,
            judge=self.judge,
            task=self.task,
            seeds=seeds,
            proposer=Tuner(self.task, seeds, CPU, 3),
            budget=self.budget,
            compose=self.compose,
            report=self.events.append,
        )
        return graph.run(clients, self.run_id, graph.checkpoint_path(str(self.path)), lambda: None)

    def trajectory(self) -> list[str]:
        return [candidate.id for candidate, _ in steps.trajectory(self.archive, self.run_id)]


@pytest.fixture
def line(tmp_path: Path, toy_folder: Path) -> Iterator[Line]:
    made = Line(tmp_path, tasks.load(str(toy_folder), "cpu"))
    yield made
    made.archive.close()


@pytest.fixture
def uninterrupted(tmp_path: Path, toy_folder: Path) -> list[str]:
    other = Line(tmp_path, tasks.load(str(toy_folder), "cpu"), where="other.db")
    other.run()
    other.archive.close()
    return other.judge.judged


def test_run_spends_its_evaluations_and_finishes(line: Line) -> None:
    assert line.run() == "finished"
    assert len(line.judge.judged) == 9
    assert line.trajectory() == line.judge.judged
    run = line.archive.run(line.run_id)
    assert run.status == "finished"
    assert run.seconds_spent > 0


def test_winner_is_chosen_for_each_workload_and_confirmed(line: Line) -> None:
    line.budget = Budget(evals=1000, seconds=1e6)
    line.run()
    (winners,) = line.composed
    blocks = {workload: candidate.tunables["BLOCK"] for workload, (candidate, _) in winners.items()}
    assert blocks == {"N1000 float32": 16, "N4096 float32": 128}
    assert all(j.verdict.status == "Passed" and j.verdict.confirmed for _, j in winners.values())
    assert line.archive.run(line.run_id).winners == {name: c.id for name, (c, _) in winners.items()}
    assert len(line.judge.confirmed) == len(set(line.judge.confirmed))


def test_search_ends_when_nothing_is_left_to_try(line: Line) -> None:
    line.budget = Budget(evals=1000, seconds=1e6)
    line.run()
    assert len(line.judge.judged) == 23
    assert any(isinstance(event, steps.Ended) and "nothing left" in event.reason for event in line.events)


def test_seconds_end_the_search(line: Line) -> None:
    line.archive.update_run(line.run_id, seconds_spent=50.0)
    line.budget = Budget(evals=9, seconds=50.0)
    assert line.run() == "finished"
    assert line.judge.judged == []
    assert line.composed == []


def test_finalist_that_fails_on_fresh_data_is_replaced(line: Line) -> None:
    line.run()
    fastest = line.archive.run(line.run_id).winners["N1000 float32"]
    again = Line(line.path.parent, line.task, where="again.db")
    again.judge.refuted = {fastest}
    again.run()
    assert fastest in again.judge.confirmed
    assert fastest not in again.archive.run(again.run_id).winners.values()
    assert set(again.archive.run(again.run_id).winners) == {w.name for w in line.task.workloads}
    again.archive.close()


def test_nothing_is_composed_where_nothing_passed(line: Line) -> None:
    line.judge.speed = lambda candidate: BuildFailed(log="no")
    assert line.run() == "finished"
    assert line.composed == []
    assert line.archive.run(line.run_id).winners == {}
    assert isinstance(line.events[-1], steps.Composed)


def test_interrupt_drains_and_resume_continues_identically(line: Line, uninterrupted: list[str]) -> None:
    line.judge.before = lambda count: os.kill(os.getpid(), signal.SIGINT) if count == 4 else None
    assert line.run() == "drained"
    assert line.archive.run(line.run_id).status == "drained"
    assert len(line.trajectory()) == 4
    assert line.run() == "finished"
    assert line.judge.judged == uninterrupted


def test_second_interrupt_stops_the_running_evaluation(line: Line, uninterrupted: list[str]) -> None:
    def twice(count: int) -> None:
        if count == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    line.judge.before = twice
    with pytest.raises(KeyboardInterrupt):
        line.run()
    assert len(line.trajectory()) == 3
    assert line.run() == "finished"
    assert line.trajectory() == uninterrupted


@pytest.mark.parametrize("count", [1, 3, 5, 9])
def test_lost_worker_stops_the_run_and_resume_continues_identically(
    line: Line, uninterrupted: list[str], count: int
) -> None:
    def lose(now: int) -> None:
        if now == count:
            raise WorkerLost("gone")

    line.judge.before = lose
    with pytest.raises(WorkerLost):
        line.run()
    assert line.archive.run(line.run_id).status == "failed"
    assert len(line.trajectory()) == count - 1
    assert line.run() == "finished"
    assert line.trajectory() == uninterrupted


def test_resume_without_checkpoint_judges_nothing_twice(line: Line, uninterrupted: list[str]) -> None:
    line.judge.before = lambda count: os.kill(os.getpid(), signal.SIGINT) if count == 4 else None
    line.run()
    graph.checkpoint_path(str(line.path)).unlink()
    assert line.run() == "finished"
    assert line.judge.judged == uninterrupted


def test_resume_with_a_stale_checkpoint_judges_nothing_twice(line: Line, uninterrupted: list[str]) -> None:
    checkpoint = graph.checkpoint_path(str(line.path))
    line.judge.before = lambda count: os.kill(os.getpid(), signal.SIGINT) if count in (2, 6) else None
    line.run()
    stale = checkpoint.read_bytes()
    line.run()
    checkpoint.write_bytes(stale)
    assert line.run() == "finished"
    assert line.judge.judged == uninterrupted


def test_finished_run_that_is_run_again_judges_nothing(line: Line) -> None:
    line.run()
    counts = len(line.judge.judged), len(line.judge.confirmed)
    assert line.run() == "finished"
    assert (len(line.judge.judged), len(line.judge.confirmed)) == counts


def test_second_run_reuses_judgements_of_the_first(line: Line) -> None:
    line.run()
    first = list(line.judge.judged)
    task = line.task
    line.run_id = line.archive.start_run(
        Run(id="r2", task=task.name, task_version=task.version, target="cpu", device=CPU.name, rng_seed=3)
    )
    line.events.clear()
    line.run()
    reused = [event for event in line.events if isinstance(event, steps.Settled) and event.reused]
    assert [event.candidate.id for event in reused] == first
    assert line.judge.judged == first


def test_judgements_of_another_machine_are_not_reused(line: Line, tmp_path: Path) -> None:
    line.run()
    first = list(line.judge.judged)
    line.archive.export(tmp_path / "there.jsonl")
    task = line.task
    with Archive.open(tmp_path / "here.db") as here:
        here.import_(tmp_path / "there.jsonl")
        line.archive = here
        line.path = tmp_path / "here.db"
        line.run_id = here.start_run(
            Run(id="r2", task=task.name, task_version=task.version, target="cpu", device=CPU.name, rng_seed=3)
        )
        line.run()
        assert line.judge.judged == [*first, *first]


def test_checkpoint_holds_no_source(line: Line) -> None:
    line.run()
    with sqlite3.connect(graph.checkpoint_path(str(line.path))) as database:
        rows = database.execute("select checkpoint, metadata from checkpoints").fetchall()
    database.close()
    assert rows
    assert not any(b"extern" in bytes(part) for row in rows for part in row)


def test_unusable_checkpoint_file_is_named(line: Line) -> None:
    graph.checkpoint_path(str(line.path)).write_text("this is no database, but long enough to look like one" * 50)
    with pytest.raises(ArchiveUnusable, match=r"checkpoint file .*archive\.db\.graph\.db: .* it can be deleted"):
        line.run()


def test_run_that_is_under_way_elsewhere_is_left_alone(line: Line) -> None:
    lock = graph.checkpoint_path(str(line.path)).with_name(f"{line.path.name}.graph.db.lock")
    hold = "import fcntl, sys, zlib; f = open(sys.argv[1], 'ab'); " + (
        "fcntl.lockf(f, fcntl.LOCK_EX, 1, zlib.crc32(b'r1')); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(BadInput, match="run r1 is under way in another process"):
            line.run()
    assert line.judge.judged == []


def test_checkpoints_of_a_server_lie_in_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert graph.checkpoint_path("postgresql://host/db") == tmp_path / "warpsmith" / "graph.db"
