"""A real run with a real model that is far too small to write kernels: whatever it says, the run ends well.

Not covered: good replies. Needs the server of conftest; `make test-llm` runs this, nothing else does.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from agent import steps
from agent.engineer.memory import PLANNING
from agent.models.endpoint import Failed
from archive import Archive, Exchange, Run

pytestmark = [pytest.mark.llm, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[3]
EVALS = 20
LINE = re.compile(r"^.* by smollm2: .+$", re.MULTILINE)
"""What is said of a reply that nothing came of."""
MODEL = """
[[models]]
name = "smollm2"
model = "smollm2"
base_url = "{url}"
max_tokens = 300
"""


def run(tmp_path: Path, evals: int, seconds: int, *given: str) -> tuple[dict[str, object], str]:
    """What the run printed as JSON, and what it said."""
    command = [sys.executable, "-m", "agent", "run", "--task", "layernorm", "--target", "cpu", "--sandbox", "local"]
    command += ["--json", "--budget-evals", str(evals), "--budget-seconds", str(seconds), *given]
    places = ["--archive", str(tmp_path / "a.db"), "--out", str(tmp_path / "out")]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*command, *places], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=seconds + 600, check=False
    )
    print(done.stderr)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def kept(tmp_path: Path) -> tuple[Run, list[str], Sequence[Exchange]]:
    """The run, the candidates it judged, and what was said to the model, as the archive has them."""
    with Archive.open(tmp_path / "a.db") as archive:
        (found,) = archive.runs()
        judged = steps.trajectory(archive, found.id)
        assert all(
            j.verdict.status in ("Passed", "BuildFailed", "Incorrect", "LaunchFailed", "TimedOut") for _, j in judged
        )
        return found, [candidate.id for candidate, _ in judged], archive.exchanges(found.id)


def in_vain(exchanges: Sequence[Exchange]) -> int:
    """Requests that came to neither a kernel nor a plan that was carried out; one that came too late ends the run."""
    count = 0
    for at, exchange in enumerate(exchanges):
        follows = exchanges[at + 1].operator if at + 1 < len(exchanges) else ""
        carried_out = exchange.operator == f"{PLANNING}{follows}"
        late = exchange.failure is not None and Failed.model_validate_json(exchange.failure).kind == "out of time"
        count += not (exchange.candidate or carried_out or late)
    return count


def check(tmp_path: Path, outcome: dict[str, object], said: str) -> Sequence[Exchange]:
    """The run is finished, the archive agrees with what was printed, and every reply in vain has its line."""
    found, judged, exchanges = kept(tmp_path)
    assert (outcome["status"], outcome["proposer"], found.status) == ("finished", "engineer", "finished")
    assert outcome["evals"] == len(judged)
    assert outcome["ok"] is True
    assert len(LINE.findall(said)) == in_vain(exchanges)
    return exchanges


def test_replies_of_a_tiny_model_cost_attempts_and_nothing_else(tmp_path: Path, serve: Callable) -> None:
    with serve(8192) as server:
        (tmp_path / "warpsmith.toml").write_text(MODEL.format(url=server.url))
        outcome, said = run(tmp_path, EVALS, 420)
        exchanges = check(tmp_path, outcome, said)
        assert exchanges
        assert server.answered() >= sum(exchange.reply is not None for exchange in exchanges)


def test_endless_reply_ends_with_the_search(tmp_path: Path, serve: Callable) -> None:
    """As one would call it, with room for 16,384 tokens of a reply."""
    with serve(8192) as server:
        outcome, said = run(tmp_path, EVALS, 180, "--model", "smollm2", "--base-url", server.url)
        assert check(tmp_path, outcome, said)


def test_context_that_is_too_small_is_said_in_one_line(tmp_path: Path, serve: Callable) -> None:
    with serve(2048) as server:
        outcome, said = run(tmp_path, 4, 1800, "--model", "smollm2", "--base-url", server.url)
        (exchange,) = check(tmp_path, outcome, said)
    assert exchange.failure is not None
    assert Failed.model_validate_json(exchange.failure).kind == "too long"
    (line,) = LINE.findall(said)
    assert "the prompt does not fit into the model's context" in line
    assert "2048 tokens" in line
    assert outcome["evals"] == 4, "the tuner goes on"
