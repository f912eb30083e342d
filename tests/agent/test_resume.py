"""The whole program, killed with SIGKILL at random moments: nothing judged is lost, nothing is judged twice."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from agent import steps, tasks
from agent.proposers.tuner import Tuner
from archive import Archive
from sandbox import devices

KILLS = 4
PATIENCE_S = 300.0
# One seed without tunables and one with three choices: four candidates, all of them found within the budget, so that
# the set does not depend on how fast each of them happened to be.
SPACE = 4

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(toy_folder: Path) -> Path:
    """A task whose search space is small."""
    (toy_folder / "cpu" / "10_other.cpp").unlink()
    path = toy_folder / "cpu" / "2_blocked.cpp"
    text = (
        path.read_text().replace("// tune: 16 32 64 128", "// tune: 16 64 128").replace("// tune: 1 2 4", "// tune: 1")
    )
    path.write_text(text)
    return toy_folder


class Program:
    """Starts the program on one archive."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.archive, self.folder, self.home = home / "archive.db", folder, home

    def run(self, *more: str) -> subprocess.Popen[str]:
        out = str(self.home / "out")
        budget = ["--budget-evals", "8", "--budget-seconds", "1000"]
        return self._start(
            "run", "--task", str(self.folder), "--target", "cpu", "--seed", "5", "--out", out, *budget, *more
        )

    def resume(self) -> subprocess.Popen[str]:
        with Archive.open(self.archive) as opened:
            (run,) = opened.runs()
        return self._start("resume", run.id)

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "agent", *arguments, "--archive", str(self.archive)]
        environment = {**os.environ, "PYTHONPATH": str(tasks.bundled().parent)}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def started(self) -> bool:
        """Whether the archive has the run yet."""
        if not self.archive.exists():
            return False
        with sqlite3.connect(self.archive) as database:
            tables = {name for (name,) in database.execute("select name from sqlite_master")}
            found = "runs" in tables and database.execute("select count(*) from runs").fetchone()[0] > 0
        database.close()
        return bool(found)

    def judged(self) -> int:
        """How many judgements the archive has."""
        with sqlite3.connect(self.archive) as database:
            count: int = database.execute("select count(*) from judgements").fetchone()[0]
        database.close()
        return count


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL, and wait until its workers, reference process and compilers are gone too."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, f"left behind: {alive}"


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    return output


def check_archive(path: Path, folder: Path) -> set[str]:
    """Everything that must hold at the end; returns the candidates that were judged."""
    with sqlite3.connect(path) as database:
        assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
        rows = database.execute("select candidate_id, confirmed from judgements").fetchall()
    database.close()
    assert set(Counter(rows).values()) == {1}
    with Archive.open(path) as opened:
        (run,) = opened.runs()
        trajectory = steps.trajectory(opened, run.id)
    assert run.status == "finished"
    assert run.winners.keys() == {workload.name for workload in tasks.load(str(folder), "cpu").workloads}
    task = tasks.load(str(folder), "cpu")
    tuner = Tuner(task, tasks.seeds(task), devices.detect("cpu"), 5)
    history = [(candidate, judgement.verdict) for candidate, judgement in trajectory]
    proposed = [tuner.propose(history[:done], 1)[0].id for done in range(len(history))]
    assert proposed == [candidate.id for candidate, _ in history]
    return set(proposed)


def test_killed_run_resumes_to_what_an_uninterrupted_run_finds(tmp_path: Path, folder: Path) -> None:
    rng = random.Random()
    moments = [rng.uniform(0.0, 12.0) for _ in range(KILLS)]
    print("kill after", moments)
    program = Program(tmp_path / "killed", folder)
    program.archive.parent.mkdir()
    process = program.run()
    wait_for(program.started)
    for moment in moments:
        time.sleep(moment)
        if process.poll() is not None:
            break
        before = program.judged()
        kill(process)
        assert program.judged() >= before
        process = program.resume()
    finish(process)
    whole = Program(tmp_path / "whole", folder)
    whole.archive.parent.mkdir()
    outcome = json.loads(finish(whole.run("--json")))
    assert outcome["status"] == "finished"
    assert outcome["ok"], outcome["message"]
    assert (Path(outcome["composed"]) / outcome["package"] / "provenance.json").is_file()
    found = check_archive(program.archive, folder)
    assert found == check_archive(whole.archive, folder)
    assert len(found) == SPACE


def test_interrupted_run_stops_after_the_running_evaluation_and_says_how_to_resume(
    tmp_path: Path, folder: Path
) -> None:
    program = Program(tmp_path / "drained", folder)
    program.archive.parent.mkdir()
    process = program.run()
    wait_for(program.started)
    wait_for(lambda: program.judged() >= 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    with Archive.open(program.archive) as opened:
        (run,) = opened.runs()
    assert process.returncode == 130, errors
    assert run.status == "drained"
    assert f"resume with: warpsmith resume {run.id} --archive {program.archive}" in errors
    finish(program.resume())
    assert len(check_archive(program.archive, folder)) == SPACE
