"""Tasks made of PyTorch files: what they declare, and what their reference, oracle and draws do."""

import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch

from agent.importing import load_reference
from sandbox.contract import Task
from sandbox.errors import BadInput, TaskError
from sandbox.referee import oracle

DATA = Path(__file__).parent / "data"
DISTRIBUTIONS = ("timed", "normal", "shifted", "uniform", "outliers", "sharp", "equal_rows", "amplified_tail")
TEMPLATE = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, {init}):
        super().__init__()
{construct}

    def forward(self, {arguments}):
{forward}

def get_inputs():
    return {inputs}

def get_init_inputs():
    return {values}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def written(
    path: Path,
    forward: str,
    inputs: str = "[torch.rand(4, 8)]",
    arguments: str = "x",
    construct: str = "pass",
    init: str = "*_",
    values: str = "[]",
) -> Path:
    """A PyTorch file with one model."""
    file = path / "1_the-model_.py"
    body = {"construct": textwrap.indent(construct, " " * 8), "forward": textwrap.indent(forward, " " * 8)}
    file.write_text(TEMPLATE.format(init=init, arguments=arguments, inputs=inputs, values=values, **body))
    return file


def imported(file: Path) -> tuple[Task, ModuleType]:
    task = load_reference(file, "cpu")
    return task, oracle.load_reference(task)


def agrees_with_its_oracle(task: Task, module: ModuleType) -> list[torch.Tensor]:
    """Draws of every distribution are finite, and the reference is near the oracle on each; the last draw."""
    for seed, distribution in enumerate(DISTRIBUTIONS):
        values = module.draw(seed, distribution, "cpu")
        wanted = oracle.expected(task, module, values, task.workloads[0])
        reached = oracle.achieved(task, module.reference, values, task.workloads[0])
        for got, want in zip(reached, wanted, strict=True):
            assert bool(want.isfinite().all())
            assert oracle.distance(got, want)[0] < 1e-4, distribution
    return values


def test_linear_layer_becomes_a_task_with_its_weights_as_inputs() -> None:
    task, module = imported(DATA / "linear_relu.py")
    assert [tensor.name for tensor in task.tensors] == ["out", "x", "linear_weight", "linear_bias"]
    assert task.outputs[0].shape == ("64", "128")
    assert task.module is not None
    assert task.module.weights == ("linear.weight", "linear.bias")
    x, weight, bias = agrees_with_its_oracle(task, module)
    torch.testing.assert_close(module.reference(x, weight, bias)[0], torch.relu(x @ weight.T + bias))
    torch.testing.assert_close(module.compiled(x, weight, bias)[0], torch.relu(x @ weight.T + bias))


def test_floor_counts_no_more_bytes_than_must_move(tmp_path: Path) -> None:
    half = written(tmp_path, "return x[:2] * 2.0")
    assert imported(half)[0].bytes_moved == str(2 * (2 * 8 * 4))


def test_floor_counts_nothing_that_integers_may_leave_out(tmp_path: Path) -> None:
    inputs = "[torch.randn(64, 8), torch.randint(1, 9, (64,))]"
    ragged = "return (x * (torch.arange(8) < y[:, None])).sum(1)"
    assert imported(written(tmp_path, ragged, inputs, "x, y"))[0].bytes_moved == str(64 * 4)
    whole = "return x + y[:, None]"
    assert imported(written(tmp_path, whole, inputs, "x, y"))[0].bytes_moved == str(2 * 64 * 8 * 4)


def test_same_seed_draws_the_same_and_another_seed_others() -> None:
    _, module = imported(DATA / "linear_relu.py")
    first, again, other = (module.draw(seed, "normal", "cpu") for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_positive_inputs_stay_positive(tmp_path: Path) -> None:
    task, module = imported(written(tmp_path, "return x.log()", "[torch.rand(64, 8) + 0.1]"))
    agrees_with_its_oracle(task, module)
    for seed, distribution in enumerate(DISTRIBUTIONS):
        assert bool((module.draw(seed, distribution, "cpu")[0] > 0).all())


def test_values_that_the_model_cannot_bear_are_drawn_as_the_file_draws_them(tmp_path: Path) -> None:
    task, module = imported(written(tmp_path, "return (1 - x).log()", "[torch.rand(64, 8) * 0.99]"))
    agrees_with_its_oracle(task, module)


def test_batch_statistics_are_no_inputs_in_train_mode(tmp_path: Path) -> None:
    norm = written(tmp_path, "return self.norm(x)", "[torch.randn(16, 8)]", construct="self.norm = nn.BatchNorm1d(8)")
    task, module = imported(norm)
    assert task.module is not None
    assert (task.module.mode, task.module.weights) == ("train", ("norm.weight", "norm.bias"))
    agrees_with_its_oracle(task, module)


def test_dropout_puts_a_model_in_eval_mode_with_its_statistics_as_inputs(tmp_path: Path) -> None:
    construct = "self.norm = nn.BatchNorm1d(8)\nself.drop = nn.Dropout(0.5)"
    task, module = imported(written(tmp_path, "return self.drop(self.norm(x))", construct=construct))
    assert task.module is not None
    assert task.module.mode == "eval"
    assert set(task.module.weights) >= {"norm.running_mean", "norm.running_var"}
    agrees_with_its_oracle(task, module)


def test_constants_tuples_and_masks_reach_the_model(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "return x.masked_fill(mask, self.fill[1]).sum(dim), mask.any(1)",
        inputs="[torch.randn(4, 8), (0, 1), torch.rand(4, 8) < 0.5]",
        arguments="x, dim, mask",
        construct="self.fill = fill\nassert isinstance(fill, tuple)",
        init="fill",
        values="[(1.0, 2.5)]",
    )
    task, module = imported(file)
    assert [(t.name, t.shape, t.dtype) for t in task.tensors] == [
        ("out0", ("1",), "scalar_t"),
        ("out1", ("4",), "uint8"),
        ("x", ("4", "8"), "scalar_t"),
        ("mask", ("4", "8"), "uint8"),
    ]
    agrees_with_its_oracle(task, module)


def test_recurrent_model_with_a_state_that_is_no_parameter_has_an_oracle(tmp_path: Path) -> None:
    construct = "self.lstm = nn.LSTM(8, 5, batch_first=True)\nself.h = torch.randn(1, 4, 5)"
    forward = "return self.lstm(x, (self.h, self.h))[0]"
    agrees_with_its_oracle(*imported(written(tmp_path, forward, "[torch.randn(4, 3, 8)]", construct=construct)))


@pytest.mark.parametrize(
    ("inputs", "rigid"),
    [
        ("[torch.randn(8, 8).tril()]", (0,)),
        ("[(lambda a: a + a.mT)(torch.randn(8, 8))]", (0,)),
        ("[torch.randn(8, 8).sign()]", (0,)),
        ("[torch.randn(8, 8)]", ()),
    ],
)
def test_inputs_with_a_structure_keep_it(tmp_path: Path, inputs: str, rigid: tuple[int, ...]) -> None:
    task, module = imported(written(tmp_path, "return x.double().sum(1).float()", inputs))
    assert module.rigid == rigid
    agrees_with_its_oracle(task, module)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import torch\n", "no Model, get_inputs, get_init_inputs; wanted class Model"),
        ("raise RuntimeError('broken file')\n", "RuntimeError: broken file"),
        ("def (:\n", "SyntaxError: invalid syntax"),
    ],
)
def test_file_without_a_model_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "file.py"
    file.write_text(text)
    with pytest.raises(TaskError, match=reason):
        load_reference(file, "cpu")


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        ("return x + torch.rand_like(x)", "other answers to the same inputs"),
        ("return x.mul_(2)", "changes argument 0 in place"),
        ("return {'y': x}", "returned a dict; wanted a tensor"),
        ("return (x - 2).log()", "returns NaN"),
        ("return x.double()", "an output is float64, wanted one of"),
        ("return x[:0]", "has no elements"),
    ],
)
def test_model_that_no_kernel_can_be_compared_with_is_refused(tmp_path: Path, forward: str, reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        load_reference(written(tmp_path, forward), "cpu")


def test_file_that_cannot_be_read_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    (tmp_path / "empty.py").write_text(" \n")
    for name, reason in (
        ("gone.py", "no file"),
        ("latin.py", "not UTF-8"),
        ("empty.py", "is empty"),
        (".", "cannot read"),
    ):
        with pytest.raises(BadInput, match=reason):
            load_reference(tmp_path / name, "cpu")
