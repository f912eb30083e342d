"""`warpsmith export` end to end: the wheel of three small tasks, installed, then tested from where it was installed.

The tests of the installed package lie in `installed/`; they are run from a copy, in a process that cannot see this
source tree. With other versions of PyTorch they are run by `make test-wheel`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent import tasks
from archive import Archive
from sandbox import devices
from sandbox.contract import Candidate, Judgement, Measurement, Passed, Task, Timing

INSTALLED = Path(__file__).with_name("installed")
TASKS = {"vector_add": "1_parallel.cpp", "layernorm": "1_two_pass.cpp", "kv_cache": "1_heads.cpp"}
"""The seed kernels that are said to have won."""


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def won(task: Task, note: str) -> tuple[Candidate, Judgement]:
    """A seed kernel with the verdict of a winner."""
    candidate = next(seed for seed in tasks.seeds(task) if seed.note == note)

    def measured(ms: float) -> Measurement:
        return Measurement(rounds_ms=(ms, ms), median_ms=ms, low_ms=ms, high_ms=ms, samples=9)

    timings = tuple(
        Timing(workload=w.name, candidate=measured(1.0), baselines={"eager": measured(2.5)}) for w in task.workloads
    )
    verdict = Passed(checks=(), timings=timings, speedup={}, latency_ms=1.0, confirmed=True)
    return candidate, Judgement(
        candidate=candidate.id,
        task=task.name,
        task_version=task.version,
        target=task.target,
        device=devices.cpu().name,
        verdict=verdict,
        seconds=1.0,
        judged_at="2026-01-02T03:04:05+00:00",
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dist")


@pytest.fixture(scope="module")
def exported(out: Path) -> dict[str, Any]:
    """What the command says of the wheel it made."""
    with Archive.open(out / "archive.db") as archive:
        for name, note in TASKS.items():
            candidate, judgement = won(tasks.load(name, "cpu"), note)
            archive.add(candidate)
            archive.record(judgement)
    arguments = ("export", "--archive", "archive.db", "--target", "cpu", "--out", "dist", "--hub", "--json")
    done = run(sys.executable, "-m", "agent", *arguments, cwd=out, PYTHONPATH=str(tasks.bundled().parent))
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.fixture(scope="module")
def site(exported: dict[str, Any], out: Path) -> Path:
    """The folder into which pip installed the wheel."""
    folder = out / "site"
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder))
    done = run(sys.executable, *pip, str(out / exported["wheel"]), cwd=out)
    assert done.returncode == 0, done.stderr
    return folder


def test_it_says_what_went_in_and_that_the_wheel_verifies_itself(exported: dict[str, Any], out: Path) -> None:
    assert {award["task"] for award in exported["awards"]} == set(TASKS)
    assert {award["speedup"]["eager"]["ratio"] for award in exported["awards"]} == {2.5}
    assert (exported["package"], exported["ok"]) == ("warpsmith_kernels", True), exported["message"]
    assert Path(exported["wheel"]).name.endswith("-cp310-abi3-linux_x86_64.whl")
    assert exported["wheel_bytes"] == (out / exported["wheel"]).stat().st_size
    assert (out / exported["project"] / "pyproject.toml").is_file()


def test_the_installed_package_passes_its_tests(exported: dict[str, Any], site: Path, out: Path) -> None:
    tests = out / "installed"
    shutil.copytree(INSTALLED, tests)
    done = run(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tests), str(tests),
        cwd=tests,
        PYTHONPATH=str(site),
        WARPSMITH_PACKAGE=exported["package"],
        WARPSMITH_INSTALLED=str(site),
        WARPSMITH_COMPILE_BACKEND="aot_eager",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr


def test_the_layout_for_the_hub_is_the_same_package_under_a_name_of_its_own(
    exported: dict[str, Any], out: Path
) -> None:
    (variant,) = (out / exported["hub"] / "build").iterdir()
    assert variant.name.startswith("torch-stable-abi210-cpu-")
    known = json.loads((variant / "metadata.json").read_text())
    assert (known["name"], known["backend"]) == ("warpsmith-kernels", {"type": "cpu"})
    code = f"""
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location({known["id"]!r}, {str(variant / "__init__.py")!r})
module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
plain = torch.nn.LayerNorm(1023)
x = torch.randn(2, 50, 1023)
torch.testing.assert_close(module.layers.LayerNorm.forward(plain, x), plain(x))
assert torch.ops.{known["id"]}.layernorm is not None
assert "layers" in module.__all__
"""
    done = run(sys.executable, "-P", "-c", code, cwd=out, WARPSMITH_FALLBACK="error")
    assert done.returncode == 0, done.stderr
