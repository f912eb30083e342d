"""The command line, as a script or a person meets it: what stands on stdout, and the exit codes."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agent import tasks
from archive import Archive, Run
from sandbox.contract import BuildFailed, Candidate, Interval, Judgement, Measurement, Passed, Timing, Verdict

HEAVY = ("torch", "optuna", "langgraph", "sqlalchemy", "openai", "mcp")


def warpsmith(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, in the test's empty folder."""
    variables = {
        **os.environ,
        "PYTHONPATH": str(tasks.bundled().parent),
        "XDG_DATA_HOME": str(Path.cwd()),
        **environment,
    }
    command = [sys.executable, "-m", "agent", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120, check=False)


def printed_json(*arguments: str, **environment: str) -> Any:
    """What a command with --json printed."""
    done = warpsmith(*arguments, "--json", **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def measured(ms: float) -> Measurement:
    return Measurement(rounds_ms=(ms,), median_ms=ms, low_ms=ms, high_ms=ms, samples=9)


def judgement(candidate: Candidate, verdict: Verdict) -> Judgement:
    return Judgement(
        candidate=candidate.id,
        task="vector_add",
        task_version=tasks.load("vector_add", "cpu").version,
        target="cpu",
        device="test cpu",
        verdict=verdict,
        seconds=1.0,
        judged_at="2026-01-02T03:04:05+00:00",
    )


def passed(ms: float) -> Passed:
    timing = Timing(workload="N1048576 float32", candidate=measured(ms), baselines={"eager": measured(4.0)})
    speedup = {"eager": Interval(ratio=4.0 / ms, low=3.9 / ms, high=4.1 / ms)}
    return Passed(checks=(), timings=(timing,), speedup=speedup, latency_ms=ms)


@pytest.fixture
def candidates() -> list[Candidate]:
    """A seed, a faster child of it, and another child that does not build."""
    common: dict[str, Any] = {"task": "vector_add", "target": "cpu"}
    seed = Candidate(
        **common, source="// seed\nint a;\n", tunables={"T": 1}, operator="seed", proposer="seed", note="1_a.cpp"
    )
    child = Candidate(
        **common, source="// child\nint a;\n", tunables={"T": 2}, parents=(seed.id,), operator="tune", proposer="tuner"
    )
    broken = child.model_copy(update={"source": "// broken [red]\nint a;\n"})
    return [seed, child, broken]


@pytest.fixture
def archive(tmp_path: Path, candidates: list[Candidate]) -> str:
    path = tmp_path / "some" / "archive.db"
    verdicts = [passed(2.0), passed(1.0), BuildFailed(log="kernel.cpp:2: error: [bold] is no type")]
    with Archive.open(path) as opened:
        for candidate, verdict in zip(candidates, verdicts, strict=True):
            opened.add(candidate)
            opened.record(judgement(candidate, verdict))
    return str(path)


def test_help_and_tasks_import_nothing_heavy() -> None:
    code = (
        "import sys\nfrom agent.cli import app\n"
        "app(['tasks'], standalone_mode=False)\napp(['run', '--help'], standalone_mode=False)\n"
        f"loaded = [name for name in {HEAVY} if name in sys.modules]\nassert not loaded, loaded"
    )
    environment = {**os.environ, "PYTHONPATH": str(tasks.bundled().parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_help_documents_exit_codes() -> None:
    done = warpsmith("--help")
    assert done.returncode == 0
    assert "130 interrupted" in " ".join(done.stdout.split())


def test_tasks_are_listed() -> None:
    assert [task["name"] for task in printed_json("tasks")] == tasks.available()
    text = warpsmith("tasks").stdout
    assert "softmax(Q·Kᵀ·scale [causal])·V" in text


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_shown_task_keeps_its_held_out_workloads_to_itself(target: tasks.Target) -> None:
    task = tasks.load("attention", target)
    done = warpsmith("tasks", "show", "attention", "--target", target)
    shown = printed_json("tasks", "show", "attention", "--target", target)
    assert "void attention(scalar_t* out, const scalar_t* q" in done.stdout
    assert all(workload.name in done.stdout for workload in task.workloads)
    assert not any(workload.name in done.stdout for workload in task.held_out)
    assert "held_out" not in shown
    assert all(workload.axes not in [w["axes"] for w in shown["workloads"]] for workload in task.held_out)


def test_leaderboard_is_a_json_array_best_first(archive: str, candidates: list[Candidate]) -> None:
    rows = printed_json("leaderboard", "--archive", archive)
    assert [row["candidate"] for row in rows] == [candidates[1].id, candidates[0].id]
    best = rows[0]
    assert (best["task"], best["target"], best["device"], best["status"]) == ("vector_add", "cpu", "test cpu", "Passed")
    assert best["latency_ms"] == 1.0
    assert best["speedup"] == {"eager": {"ratio": 4.0, "low": 3.9, "high": 4.1}, "compile": None, "library": None}


def test_leaderboard_filters(archive: str) -> None:
    assert printed_json("leaderboard", "--archive", archive, "--task", "mlp") == []
    assert printed_json("leaderboard", "--archive", archive, "--target", "cuda") == []
    assert len(printed_json("leaderboard", "--archive", archive, "--target", "cpu", "--task", "vector_add")) == 2


def test_archive_comes_from_the_environment_too(archive: str) -> None:
    assert len(printed_json("leaderboard", WARPSMITH_ARCHIVE=archive)) == 2


def test_leaderboard_for_people_has_intervals_and_no_colour(archive: str) -> None:
    done = warpsmith("leaderboard", "--archive", archive)
    assert "4.00 (3.90–4.10)" in done.stdout
    assert "\x1b" not in done.stdout


def test_show_takes_a_prefix_and_prints_source_verdict_and_lineage(archive: str, candidates: list[Candidate]) -> None:
    seed, child, broken = candidates
    shown = printed_json("show", child.id[:8], "--archive", archive)
    assert shown["candidate"]["id"] == child.id
    assert shown["candidate"]["source"] == child.source
    assert shown["lineage"] == [seed.id, child.id]
    assert shown["judgements"][0]["verdict"]["latency_ms"] == 1.0
    text = warpsmith("show", broken.id[:8], "--archive", archive).stdout
    assert "error: [bold] is no type" in text
    assert "// broken [red]" in text


def test_diff_shows_tunables_and_source(archive: str, candidates: list[Candidate]) -> None:
    seed, child, _ = candidates
    shown = printed_json("diff", seed.id[:8], child.id[:8], "--archive", archive)
    assert shown["tunables"] == {"T": [1, 2]}
    assert "-// seed\n+// child" in shown["diff"]
    assert "T: 1 → 2" in warpsmith("diff", seed.id[:8], child.id[:8], "--archive", archive).stdout


def test_archive_moves_between_machines(archive: str, tmp_path: Path) -> None:
    file, other = str(tmp_path / "all.jsonl"), str(tmp_path / "other.db")
    assert printed_json("archive", "export", file, "--archive", archive)["records"] > 0
    assert printed_json("archive", "import", file, "--archive", other)["candidates"] == {"new": 3, "known": 0}
    assert printed_json("archive", "import", file, "--archive", other)["candidates"] == {"new": 0, "known": 3}
    assert printed_json("leaderboard", "--archive", other) == printed_json("leaderboard", "--archive", archive)


def test_build_compiles_for_a_gpu_that_is_elsewhere() -> None:
    reports = printed_json("build", "--task", "vector_add", "--arch", "sm_86")
    assert {report["arch"] for report in reports} == {"sm_86"}
    assert all(report["ok"] for report in reports)
    kernel = reports[0]["kernels"][0]
    assert kernel["registers"] > 0
    assert kernel["spill_bytes"] == 0
    assert 0 < kernel["occupancy"] <= 1


def test_kernel_that_does_not_build_fails_the_build_with_the_compilers_message(toy_folder: Path) -> None:
    (toy_folder / "cpu" / "1_plain.cpp").write_text('extern "C" void toy() { no_such_thing(); }\n')
    done = warpsmith("build", "--task", str(toy_folder), "--target", "cpu")
    assert done.returncode == 1
    assert "no_such_thing" in done.stderr


def test_doctor_knows_the_key_but_does_not_tell_it() -> None:
    done = warpsmith("doctor", "--json", OPENAI_API_KEY="sk-very-secret")
    found = {finding["part"]: finding for finding in json.loads(done.stdout)}
    assert found["key"]["there"]
    assert found["c++ compiler"]["there"]
    assert "very-secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "no task: give --task NAME"),
        (["run", "--task", "atention"], "did you mean 'attention'"),
        (
            ["run", "--task", "vector_add", "--proposer", "oracle"],
            "unknown proposer 'oracle'; available: auto, engineer, tuner",
        ),
        (["run", "--task", "vector_add", "--budget-evals", "0"], "'budget.evals'"),
        (["run", "--task", "vector_add", "--target", "cpu", "--out", "/proc/nowhere"], "output folder /proc/nowhere"),
        (["run", "--task", "vector_add", "--config", "no.toml"], "no.toml does not exist"),
        (["resume", "nothing"], "has no run 'nothing'"),
        (["costs", "nothing"], "has no run 'nothing'"),
        (["show", "feed"], "has no candidate 'feed'"),
        (["build", "--task", "vector_add", "--arch", "sm_1"], "unknown architecture 'sm_1'"),
        (["archive", "import", "missing.jsonl"], "missing.jsonl"),
        (["build", "--task", "vector_add", "--target", "cpu", "--arch", "sm_86"], "--arch sm_86 is for target 'cuda'"),
        (["run", "--target", "gpu"], "'gpu' is not one of 'auto', 'cuda', 'cpu'; see `warpsmith run --help`"),
        (["run", "--budget-evals", "many"], "Invalid value for '--budget-evals'"),
        (["run", "--budget"], "No such option: --budget"),
        (["leaderboard", "--limit", "0"], "Invalid value for '--limit'"),
        (["leadrboard"], "No such command 'leadrboard'"),
        (["archive"], "Missing command; see `warpsmith archive --help`"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = warpsmith(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_archive_that_cannot_be_used_is_exit_code_3(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_text("this is no database " * 100)
    done = warpsmith("leaderboard", "--archive", str(tmp_path / "broken.db"))
    assert done.returncode == 3
    assert "broken.db" in done.stderr
    assert "Traceback" not in done.stderr


def test_archive_of_a_newer_version_is_left_alone(archive: str) -> None:
    with closing(sqlite3.connect(archive)) as database, database:
        database.execute("UPDATE archive_version SET version_num = '9999'")
    before = Path(archive).read_bytes()
    done = warpsmith("leaderboard", "--archive", archive)
    assert done.returncode == 3
    assert done.stderr.startswith("error: archive ")
    assert "A newer Warpsmith wrote it" in done.stderr
    assert Path(archive).read_bytes() == before


def test_damaged_import_changes_nothing(archive: str, tmp_path: Path) -> None:
    file, other = tmp_path / "all.jsonl", str(tmp_path / "other.db")
    printed_json("archive", "export", str(file), "--archive", archive)
    file.write_bytes(file.read_bytes()[:-300])
    done = warpsmith("archive", "import", str(file), "--archive", other)
    assert done.returncode == 2
    assert "cut short" in done.stderr
    assert printed_json("leaderboard", "--archive", other) == []


def test_without_a_compiler_the_run_stops_and_says_how_to_resume(toy_folder: Path, tmp_path: Path) -> None:
    where = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "CXX": ""}
    asked = ["--task", str(toy_folder), "--target", "cpu", "--archive", "a.db", "--sandbox", "local", "--json"]
    done = warpsmith("run", *asked, **where)
    assert done.returncode == 3
    assert done.stdout == ""
    assert "error: no C++ compiler" in done.stderr
    assert "resume with: warpsmith resume" in done.stderr
    assert "Traceback" not in done.stderr
    done = warpsmith("build", "--task", str(toy_folder), "--target", "cpu", **where)
    assert done.returncode == 3
    assert done.stderr.startswith("error: no C++ compiler")


def test_seed_that_does_not_suit_the_architecture_is_shown_as_excluded() -> None:
    done = warpsmith("build", "--task", "attention", "--arch", "sm_86")
    assert done.returncode == 0
    assert "excluded: 3_wgmma.cu: tune-if smem_optin > 200000" in done.stdout
    reports = printed_json("build", "--task", "attention", "--arch", "sm_86")
    excluded = [(report["seed"], report["kernels"]) for report in reports if report["excluded"]]
    assert excluded == [("3_wgmma.cu", []), ("4_persistent.cu", [])]


def test_empty_leaderboard_says_where_it_looked(archive: str) -> None:
    done = warpsmith("leaderboard", "--archive", archive, "--task", "mlp")
    assert (done.returncode, done.stdout) == (0, f"nothing has passed yet for mlp in {archive}\n")


def test_resuming_a_finished_run_says_so_and_succeeds(archive: str, candidates: list[Candidate]) -> None:
    with Archive.open(archive) as opened:
        run = Run(
            id="done-1",
            task="vector_add",
            task_version=tasks.load("vector_add", "cpu").version,
            target="cpu",
            device="test cpu",
            rng_seed=0,
        )
        opened.start_run(run)
        opened.record(judgement(candidates[0], passed(2.0)), "done-1")
        opened.update_run("done-1", status="finished")
    done = warpsmith("resume", "done", "--archive", archive, "--json")
    assert done.returncode == 0, done.stderr
    assert "run done-1 is finished" in done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["status"] == "finished"
    assert [row["candidate"] for row in outcome["leaderboard"]] == [candidates[0].id]


def test_dry_run_prints_prompts_and_needs_no_key(tmp_path: Path) -> None:
    arguments = ("run", "--task", "vector_add", "--target", "cpu", "--model", "gpt-6.1-sol", "--dry-run")
    found = printed_json(*arguments, OPENAI_API_KEY="")
    assert [prompt["purpose"] for prompt in found["prompts"]] == ["plan rewrite", "rewrite"]
    assert found["estimates"][0]["model"] == "gpt-6.1-sol"
    assert list(tmp_path.iterdir()) == []
