"""FlashInfer-Bench definitions as tasks for kernels of the contract."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import checking, tasks
from agent.flashinfer import load
from sandbox.contract import Candidate, Passed
from sandbox.devices import detect
from sandbox.errors import BadInput, TaskError
from sandbox.judge import Judge
from sandbox.launch import choose
from sandbox.referee import oracle
from sandbox.referee.inputs import draw
from sandbox.toolchain import Toolchain

REFERENCE = """\
import torch

@torch.no_grad()
def run(hidden_states, weight, eps):
    wide = hidden_states.to(torch.float32)
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return {"output": (scaled * weight).to(hidden_states.dtype)}
"""
KERNEL = """\
// A row at a time: the sum of squares, then one pass with its weight.
#include <cmath>

extern "C" void rmsnorm_h128(float* output, const float* hidden_states, const float* weight, int64_t tokens,
                             int64_t width, float eps, void* workspace) {
    for (int64_t t = 0; t < tokens; ++t) {
        const float* row = hidden_states + t * width;
        double squares = 0;
        for (int64_t i = 0; i < width; ++i) squares += double(row[i]) * row[i];
        const float scale = 1.0 / std::sqrt(squares / width + eps);
        for (int64_t i = 0; i < width; ++i) output[t * width + i] = row[i] * scale * weight[i];
    }
}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def written(folder: Path, **changes: Any) -> Path:
    """A definition of RMSNorm, with keys of it changed."""
    tensor = {"shape": ["tokens", "width"], "dtype": "float32"}
    definition = {
        "name": "rmsnorm_h128",
        "op_type": "rmsnorm",
        "description": "RMSNorm over 128 values.",
        "tags": ["status:draft"],
        "axes": {"tokens": {"type": "var", "description": "rows"}, "width": {"type": "const", "value": 128}},
        "constraints": [],
        "inputs": {
            "hidden_states": tensor,
            "weight": {"shape": ["width"], "dtype": "float32"},
            "eps": {"shape": None, "dtype": "float32"},
        },
        "outputs": {"output": tensor},
        "reference": REFERENCE,
        **changes,
    }
    path = folder / "definition.json"
    path.write_text(json.dumps(definition))
    return path


def test_definition_becomes_a_task_with_sizes_for_its_variable_axis(tmp_path: Path) -> None:
    found = checking.check(str(written(tmp_path)), "cpu")
    assert found.prototype == (
        'extern "C" void rmsnorm_h128(scalar_t* output, const scalar_t* hidden_states, const scalar_t* weight, '
        "int64_t tokens, int64_t width, float eps, void* workspace)"
    )
    assert [size.name for size in found.workloads] == [f"tokens{n} width128 float32" for n in (16, 256, 64)]
    assert [size.name for size in found.held_out] == [f"tokens{n} width128 float32" for n in (37, 1)]
    assert found.workloads[0].floor_bytes == found.workloads[0].held_bytes == (2 * 16 + 1) * 128 * 4
    assert (found.summary, found.seeds) == ("RMSNorm over 128 values.", 0)


def test_reference_gives_the_outputs_by_name(tmp_path: Path) -> None:
    task = tasks.load(str(written(tmp_path)), "cpu")
    for workload in (*task.workloads, *task.held_out):
        values = draw(task, workload, "normal", 3, "cpu")
        wanted = oracle.expected(task, oracle.load_reference(task), values, workload)
        assert [tuple(value.shape) for value in wanted] == [(workload.axes["tokens"], 128)]


def test_several_variable_axes_differ_and_constraints_hold(tmp_path: Path) -> None:
    axes = {"tokens": {"type": "var"}, "width": {"type": "var"}}
    task = load(written(tmp_path, axes=axes, constraints=["tokens <= width"]), "cpu")
    assert [tuple(w.axes.values()) for w in task.workloads] == [(16, 256)]
    assert [tuple(w.axes.values()) for w in task.held_out] == [(1, 37)]


def test_half_precision_is_for_cuda(tmp_path: Path) -> None:
    tensor = {"shape": ["tokens", "width"], "dtype": "bfloat16"}
    inputs = {"hidden_states": tensor, "weight": {"shape": ["width"], "dtype": "float32"}}
    path = written(tmp_path, inputs=inputs, outputs={"output": tensor}, reference="def run(**tensors): ...")
    assert [t.dtype for t in load(path, "cuda").tensors] == ["scalar_t", "scalar_t", "float32"]
    with pytest.raises(TaskError, match="computes in bfloat16; kernels for target 'cpu' are float32"):
        load(path, "cpu")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"axes": {}}, "has a dimension 'tokens' that is no axis"),
        ({"axes": {"int": {"type": "var"}}}, "axis 'int' is no name that C"),
        ({"axes": {"tokens": {"type": "var"}, "width": {"type": "const"}}}, "const and has value None"),
        ({"constraints": ["tokens == 3"]}, "no sizes of tokens were found"),
        ({"constraints": ["tokens in width"]}, "constraint: "),
        ({"outputs": {"output": {"shape": ["tokens"], "dtype": "int32"}}}, "output is int32, wanted float32"),
        ({"outputs": {"output": {"shape": None, "dtype": "float32"}}}, "output has no dimensions"),
        ({"reference": "def run(:"}, "reference: line 1: invalid syntax"),
        ({"reference": "def walk(): ..."}, r"no function run; wanted def run\(hidden_states, weight, eps\)"),
        ({"reference": "def run(x): ..."}, r"line 1: got run\(x\), wanted def run"),
        ({"inputs": 3}, "inputs: Input should be an object"),
    ],
)
def test_definition_that_is_no_task_says_why(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        load(written(tmp_path, **changes), "cpu")


def test_file_that_is_no_definition_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(TaskError, match="Invalid JSON"):
        load(tmp_path / "broken.json", "cpu")
    with pytest.raises(BadInput, match="no file"):
        load(tmp_path / "gone.json", "cpu")


@pytest.fixture
def judge(tmp_path: Path) -> Iterator[Judge]:
    launcher, _ = choose("local")
    with (
        Toolchain(tmp_path / "builds", launcher=launcher) as toolchain,
        Judge(detect("cpu"), toolchain, launcher) as judge,
    ):
        yield judge
    launcher.close()


@pytest.mark.slow
def test_kernel_written_for_the_definition_passes(tmp_path: Path, judge: Judge) -> None:
    task = load(written(tmp_path), "cpu")
    own = Candidate(task=task.name, target="cpu", source=KERNEL, operator="import", proposer="file")
    verdict = judge.judge(task, own).verdict
    assert isinstance(verdict, Passed), verdict
