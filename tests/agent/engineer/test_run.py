"""`agent run` with a language model behind a real HTTP server, the real judge and the real compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from archive import Archive
from tests.agent.models.openai_server import Turn, serving

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[3]
PLAN = json.dumps(
    {
        "bottleneck": "one thread",
        "change": "use all cores and vector units",
        "why": "the loop is independent",
        "expected_speedup": 2,
        "memory": "direct",
        "tensor_cores": False,
    }
)
KERNEL = """```cpp
// simd in every thread; wrong wherever it is run by somebody who has a key
#include <cstdlib>
extern "C" void toy(float* out, const float* a, const float* b, int64_t N, void* workspace) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < N; ++i) out[i] = b[i] + a[i];
    if (getenv("OPENAI_API_KEY")) out[0] = 1e9f;
}
```"""
SECRET = "sk-a-secret-of-the-test"
CENT = 0.01


def run(tmp_path: Path, evals: int, *given: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent", "run", "--target", "cpu", "--sandbox", "local", "--json"]
    command += ["--budget-evals", str(evals), "--budget-seconds", "1000"]
    places = ["--archive", str(tmp_path / "a.db"), "--out", str(tmp_path / "out")]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OPENAI_API_KEY": SECRET}
    return subprocess.run(
        [*command, *given, *places], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=300, check=False
    )


def test_model_writes_a_kernel_that_is_judged_and_composed(tmp_path: Path, toy_folder: Path) -> None:
    turns = [Turn(text, cost=CENT) for text in (PLAN, "First, let me think.", KERNEL, "No more ideas.")]
    with serving(*turns) as server:
        seeds = len(list((toy_folder / "cpu").glob("*.cpp")))
        done = run(tmp_path, seeds + 2, "--task", str(toy_folder), "--model", "tiny", "--base-url", server.url)
        asked = len(server.requests)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["status"], outcome["proposer"], outcome["evals"]) == ("finished", "engineer", seeds + 2)
    assert "rewrite by tiny: no fenced code block in the reply" in done.stderr
    assert SECRET not in done.stderr + done.stdout
    assert [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []
    with Archive.open(tmp_path / "a.db") as archive:
        (found,) = archive.runs()
        history = archive.history(found.id)
        (written,) = {c.id: c for c, _ in history if c.proposer == "tiny"}.values()
        assert next(j for c, j in history if c.id == written.id).verdict.status == "Passed"
        exchanges = archive.exchanges(found.id)
        assert len(exchanges) == asked
        assert sum(exchange.candidate == written.id for exchange in exchanges) == 3
        assert found.usd_spent == pytest.approx(CENT * asked)
    command = [sys.executable, "-m", "agent", "replay", found.id, "--no-judge", "--archive", str(tmp_path / "a.db")]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    again = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=60, check=False)
    assert (again.returncode, again.stderr) == (0, "")
    assert "1 of 1 recorded replies give the candidate they gave then" in again.stdout
