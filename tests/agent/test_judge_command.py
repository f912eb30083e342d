"""`warpsmith judge`, as a person runs it: verdict, evidence, label and exit code for every kind of file."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent import tasks
from agent.commands.judging import form_of
from archive import Archive
from sandbox.errors import BadInput

DATA = Path(__file__).parent / "data"
REFERENCE = str(DATA / "linear_relu.py")
WRONG = """\
// wrong in its last element
extern "C" void toy(float* out, const float* a, const float* b, int64_t N, void* workspace) {
    for (int64_t i = 0; i < N; ++i) out[i] = a[i] + (i + 1 < N ? b[i] : 0);
}
"""
FALLBACK = """\
import torch

class ModelNew(torch.nn.Module):
    def forward(self, a, b):
        try:
            return kernel(a, b)
        except Exception:
            return torch.add(a, b)
"""
KEYS = {"file", "status", "rule", "evidence", "label", "timings", "speedup", "latency_ms", "candidate", "judge_version"}


def judged(*arguments: object, code: int) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, on the cpu target in the local sandbox."""
    variables = {**os.environ, "PYTHONPATH": str(tasks.bundled().parent), "XDG_CACHE_HOME": str(Path.cwd() / "cache")}
    command = [sys.executable, "-m", "agent", "judge", *map(str, arguments), "--target", "cpu", "--sandbox", "local"]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300, check=False)
    assert done.returncode == code, done.stderr + done.stdout
    return done


def verdict(*arguments: object, code: int) -> dict[str, Any]:
    """What the command prints with --json."""
    found: dict[str, Any] = json.loads(judged(*arguments, "--json", code=code).stdout)
    assert found.keys() >= KEYS
    return found


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    (tmp_path / "wrong.cpp").write_text(WRONG)
    return tmp_path / "wrong.cpp"


# ---------------------------------------------------------------- kernels of our own contract


@pytest.mark.slow
def test_right_kernel_passes_with_timings_and_evidence(toy_folder: Path) -> None:
    found = verdict(toy_folder / "cpu" / "2_blocked.cpp", "--task", toy_folder, "--tunable", "BLOCK=128", code=0)
    assert (found["status"], found["rule"], found["label"]) == ("Passed", None, "custom")
    assert [timing["workload"] for timing in found["timings"]] == ["N1000 float32", "N4096 float32"]
    own = found["timings"][0]["candidate"]
    assert own["low_ms"] <= own["median_ms"] <= own["high_ms"]
    assert "largest error" in found["evidence"]
    assert "eager" in found["speedup"]


@pytest.mark.slow
def test_wrong_kernel_is_incorrect_with_the_error_as_evidence(toy_folder: Path, wrong: Path) -> None:
    found = verdict(wrong, "--task", toy_folder, code=1)
    assert (found["status"], found["rule"], found["label"]) == ("Incorrect", "error", None)
    assert "allowed" in found["evidence"]
    assert found["timings"] == []


@pytest.mark.slow
@pytest.mark.slow
def test_verdict_is_recorded_where_an_archive_is_named(toy_folder: Path, wrong: Path, tmp_path: Path) -> None:
    found = verdict(wrong, "--task", toy_folder, "--archive", tmp_path / "archive.db", code=1)
    with Archive.open(tmp_path / "archive.db") as archive:
        ((candidate, judgement),) = archive.judgements()
    assert (candidate.id, candidate.source, candidate.proposer) == (found["candidate"], WRONG, "file")
    assert judgement.verdict.status == "Incorrect"


def test_person_reads_verdict_rule_and_evidence(toy_folder: Path, wrong: Path) -> None:
    text = judged(wrong, "--task", toy_folder, code=1).stdout
    assert text.startswith("Incorrect  ")
    assert "rule      error" in text
    assert "evidence  N77 float32" in text


# ---------------------------------------------------------------- torch sources


@pytest.mark.slow
def test_module_that_calls_the_library_passes_with_that_label() -> None:
    found = verdict(DATA / "linear_relu_right.py", "--reference", REFERENCE, code=0)
    assert (found["status"], found["form"], found["label"]) == ("Passed", "module", "library")


@pytest.mark.slow
def test_module_without_the_bias_is_incorrect() -> None:
    found = verdict(DATA / "linear_relu_wrong.py", "--reference", REFERENCE, code=1)
    assert (found["status"], found["rule"]) == ("Incorrect", "error")


@pytest.mark.slow
def test_extension_with_its_own_loops_passes_as_custom() -> None:
    text = judged(DATA / "linear_relu_extension.cpp", "--reference", REFERENCE, code=0).stdout
    assert text.startswith("Passed  ")
    assert "label     custom" in text


@pytest.mark.slow
def test_module_for_a_task_gets_its_inputs_in_order(toy_folder: Path, tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("import torch\nclass ModelNew(torch.nn.Module):\n    def forward(self, a, b): return a - b\n")
    assert verdict(module, "--task", toy_folder, code=1)["status"] == "Incorrect"
    module.write_text(module.read_text().replace("a - b", "b + a"))
    assert verdict(module, "--task", toy_folder, code=0)["status"] == "Passed"


@pytest.mark.slow
def test_handler_that_hides_a_failed_kernel_is_cheating(toy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "fallback.py").write_text(FALLBACK)
    found = verdict(tmp_path / "fallback.py", "--task", toy_folder, code=1)
    assert (found["status"], found["rule"]) == ("Cheated", "silent fallback")
    assert found["evidence"].startswith("line 7: ")


@pytest.mark.slow
def test_extension_that_does_not_build_shows_what_the_compiler_said(toy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.cpp").write_text('#error "no such luck"\n#include <torch/extension.h>\n')
    found = verdict(tmp_path / "broken.cpp", "--task", toy_folder, code=1)
    assert found["status"] == "BuildFailed"
    assert "no such luck" in found["evidence"]


# ---------------------------------------------------------------- bad input


def test_form_is_told_by_name_and_text() -> None:
    assert form_of(Path("a.py"), "x = 1") == "module"
    assert form_of(Path("a.cu"), 'extern "C" __global__ void a() {}') == "kernel"
    assert form_of(Path("a.cu"), "torch::Tensor forward(torch::Tensor x);") == "extension"
    assert form_of(Path("a.cc"), "#include <torch/extension.h>") == "extension"
    for name in ("a.cc", "a.txt", "a"):
        with pytest.raises(BadInput):
            form_of(Path(name), "int x;")


def test_bad_input_is_one_line_and_exit_code_2(toy_folder: Path, tmp_path: Path, wrong: Path) -> None:
    (tmp_path / "empty.cpp").write_text("\n")
    (tmp_path / "latin.cpp").write_bytes(b"// \xe9\n")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((wrong,), "either --task NAME or --reference"),
        ((wrong, "--task", toy_folder, "--reference", REFERENCE), "either --task NAME or --reference"),
        (("gone.cpp", "--task", toy_folder), "no file gone.cpp"),
        ((tmp_path / "empty.cpp", "--task", toy_folder), "is empty"),
        ((tmp_path / "latin.cpp", "--task", toy_folder), "is not UTF-8"),
        ((tmp_path, "--task", toy_folder), "cannot read"),
        ((wrong, "--task", "atention"), "did you mean 'attention'"),
        ((wrong, "--reference", "gone.py"), "no file gone.py"),
        ((wrong, "--task", toy_folder, "--tunable", "BLOCK"), "wanted NAME=VALUE"),
        ((wrong, "--task", toy_folder, "--tunable", "BLOCK=1"), "has no tunable BLOCK"),
        ((DATA / "linear_relu_right.py", "--reference", REFERENCE, "--tunable", "A=1"), "for kernels of our own"),
        ((DATA / "linear_relu_right.py", "--reference", REFERENCE, "--archive", "a.db"), "only kernels of our own"),
    ]
    for arguments, reason in cases:
        done = judged(*arguments, code=2)
        assert reason in done.stderr
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
