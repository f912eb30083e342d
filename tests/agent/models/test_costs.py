"""The costs command: what a run paid, by use and by candidate."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent import tasks
from archive import Archive, Exchange, Run
from sandbox.contract import Candidate


def costs(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    variables = {**os.environ, "PYTHONPATH": str(tasks.bundled().parent), "XDG_DATA_HOME": str(Path.cwd())}
    command = [sys.executable, "-m", "agent", "costs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120, check=False)


@pytest.fixture
def candidate() -> Candidate:
    return Candidate(task="toy", target="cpu", source="// 1", operator="propose", proposer="engineer")


@pytest.fixture
def archive(tmp_path: Path, candidate: Candidate) -> str:
    """A run that asked two models for two things, and one that asked nobody."""
    path = tmp_path / "archive.db"
    with Archive.open(path) as opened:
        opened.add(candidate)
        for name in ("asked-1", "quiet-1"):
            run = Run(id=name, task="toy", task_version="v1", target="cpu", device="box", rng_seed=0)
            opened.start_run(run)
        for number, fields in enumerate(_exchanges(candidate.id)):
            known = {"run": "asked-1", "at": f"2026-01-01T00:00:0{number}", "request": str(number), "seconds": 1.5}
            opened.record_exchange(Exchange(**known | fields))
    return str(path)


def _exchanges(candidate: str) -> list[dict[str, Any]]:
    used = {"input_tokens": 1000, "cached_tokens": 400, "output_tokens": 200, "reasoning_tokens": 50}
    rewrite = {"model": "big", "operator": "rewrite", "reply": "{}"}
    return [
        {**rewrite, **used, "usd": 0.1, "candidate": candidate},
        {**rewrite, **used, "usd": 0.2},
        {"model": "big", "operator": "repair", "reply": "{}", **used, "usd": None, "candidate": candidate},
        {"model": "small", "operator": "rewrite", "failure": "{}", "usd": 0.0},
    ]


def test_costs_are_summed_by_use_and_by_candidate(archive: str, candidate: Candidate) -> None:
    found = json.loads(costs("asked", "--archive", archive, "--json").stdout)
    assert found["run"] == "asked-1"
    shares = {tuple(share["of"]): share for share in found["by_operator"]}
    assert {of: (share["exchanges"], share["failed"], share["usd"]) for of, share in shares.items()} == {
        ("big", "rewrite"): (2, 0, 0.3),
        ("big", "repair"): (1, 0, 0.0),
        ("small", "rewrite"): (1, 1, 0.0),
    }
    assert shares["big", "rewrite"]["input_tokens"] == 2000
    by_candidate = [(share["of"], share["usd"]) for share in found["by_candidate"]]
    assert by_candidate == [([candidate.id], 0.1), (["none"], 0.2)]
    total = found["total"]
    assert (total["exchanges"], total["failed"], total["unpriced"], total["usd"]) == (4, 1, 1, 0.3)
    assert (total["output_tokens"], total["reasoning_tokens"], total["seconds"]) == (600, 150, 6.0)


def test_costs_for_people_are_tables_with_a_word_on_what_is_not_known(archive: str, candidate: Candidate) -> None:
    done = costs("asked-1", "--archive", archive)
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == "run asked-1: 4 exchanges, 0.30 USD"
    assert "big rewrite 2 0 2,000 800 400 100 3 0.30" in lines
    assert f"{candidate.id[:10]} 2 0 2,000 800 400 100 3 0.10" in lines
    assert lines[-1] == "of unknown price, counted as 0 USD: 1"


def test_run_that_asked_nobody_says_so(archive: str) -> None:
    done = costs("quiet-1", "--archive", archive)
    assert (done.returncode, done.stdout) == (0, "run quiet-1 asked no language model\n")


def test_unknown_run_is_bad_input_that_lists_the_known_ones(archive: str) -> None:
    done = costs("nothing", "--archive", archive)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "has no run 'nothing'; the newest are: " in done.stderr
    assert "asked-1 (toy cpu, running)" in done.stderr
