"""Winners that another machine reported, before a judge here."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from agent import tasks
from agent.cli import app
from agent.verifying import Verified, holds
from archive import Archive
from sandbox.contract import Candidate, Interval, Judgement, Measurement, Passed, Timing
from sandbox.errors import BadInput

TASK = tasks.load("vector_add", "cpu")
SEED = next(seed for seed in tasks.seeds(TASK) if seed.note == "1_parallel.cpp")


def reported(folder: Path, *candidates: Candidate) -> str:
    """An archive that says each has passed elsewhere, every next one on one workload more slowly."""
    where = str(folder / "archive.db")
    with Archive.open(where) as archive:
        for i, candidate in enumerate(candidates):
            timings = tuple(
                Timing(
                    workload=w.name, candidate=measured(1.0 + (i if j else -i / 9)), baselines={"eager": measured(3)}
                )
                for j, w in enumerate(TASK.workloads)
            )
            speedup = {"eager": Interval(ratio=3.0, low=2.9, high=3.1)}
            verdict = Passed(checks=(), timings=timings, speedup=speedup, latency_ms=1.0, confirmed=True)
            archive.add(candidate)
            archive.record(
                Judgement(
                    candidate=candidate.id,
                    task="vector_add",
                    task_version=TASK.version,
                    target="cpu",
                    device="Another CPU (8 cores)",
                    verdict=verdict,
                    seconds=1.0,
                    judged_at="2026-01-02T03:04:05+00:00",
                )
            )
    return where


def measured(ms: float) -> Measurement:
    return Measurement(rounds_ms=(ms, ms), median_ms=ms, low_ms=ms, high_ms=ms, samples=9)


def verify(archive: str, *more: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["archive", "verify", "--archive", archive, "--sandbox", "local", *more])
    return found.exit_code, found.stdout


def test_winner_that_holds_is_judged_here_and_recorded(tmp_path: Path) -> None:
    where = reported(tmp_path, SEED)
    code, stdout = verify(where, "--json")
    (finding,) = json.loads(stdout)
    assert code == 0
    assert (finding["candidate"], finding["status"]) == (SEED.id, "Passed")
    assert finding["workloads"] == [workload.name for workload in TASK.workloads]
    assert finding["speedup"]["eager"]["ratio"] == 3.0
    assert finding["speedup_here"]["eager"]["ratio"] > 0
    with Archive.open(where) as archive:
        assert len(archive.judgements()) == 2


def test_winner_that_is_wrong_here_makes_the_command_fail(tmp_path: Path) -> None:
    """Beside one that holds."""
    wrong = SEED.model_copy(update={"source": SEED.source.replace("a[i] + b[i]", "a[i] - b[i]"), "note": "wrong.cpp"})
    assert wrong.source != SEED.source
    code, stdout = verify(reported(tmp_path, SEED, wrong))
    assert code == 1
    assert "1 of 2 kernels pass here" in stdout
    assert f"{wrong.id[:10]} Incorrect" in stdout


def test_it_holds_only_where_something_passed_and_nothing_failed() -> None:
    def found(*statuses: str) -> list[Verified]:
        none: dict[str, object] = {"workloads": (), "speedup": {}}
        words = dict.fromkeys(("task", "candidate", "note", "device", "here"), "x")
        return [Verified.model_validate({**none, **words, "status": status}) for status in statuses]

    assert holds(found("Passed", "Unsuitable"))
    assert not holds(found("Unsuitable"))
    assert not holds(found("Passed", "Incorrect"))


def test_export_of_such_a_winner_carries_the_licence_it_is_given(tmp_path: Path) -> None:
    where = reported(tmp_path, SEED)
    (tmp_path / "LICENCE.txt").write_text("Do as you like.\n")
    command = [
        "export",
        "--archive",
        where,
        "--target",
        "cpu",
        "--source-only",
        "--out",
        str(tmp_path / "dist"),
        "--json",
    ]
    assert isinstance(CliRunner().invoke(app, [*command, "--license", str(tmp_path / "gone")]).exception, BadInput)
    found = CliRunner().invoke(app, [*command, "--license", str(tmp_path / "LICENCE.txt")])
    exported = json.loads(found.stdout)
    assert (Path(exported["project"]) / exported["package"] / "LICENSE").read_text() == "Do as you like.\n"
