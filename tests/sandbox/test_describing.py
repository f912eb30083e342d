"""What a user's PyTorch file is taken for: shapes, weights and batch sizes, or why no task can be made of it."""

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from sandbox.errors import TaskError
from sandbox.referee.describing import describe
from sandbox.referee.pytorch_file import PytorchFile

TEMPLATE = """
import torch
from torch import nn
from torch.nn import functional as F

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


def described(
    folder: Path,
    forward: str,
    inputs: str = "[torch.randn(8, 16)]",
    construct: str = "pass",
    arguments: str = "x",
    init: str = "*_",
    values: str = "[]",
    kernels: bool = True,
) -> dict[str, Any]:
    body = {"construct": textwrap.indent(construct, " " * 8), "forward": textwrap.indent(forward, " " * 8)}
    text = TEMPLATE.format(inputs=inputs, arguments=arguments, init=init, values=values, **body)
    (folder / "file.py").write_text(text)
    return describe(folder / "file.py", "cpu", kernels)


def weights(found: dict[str, Any]) -> list[str]:
    return [spec["name"] for spec in found["weights"]]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ("{'a': 16, 'b': 4}", {"init": [], "keywords": {"a": 16, "b": 4}}),
        ("[[16], {'b': 4}]", {"init": [16], "keywords": {"b": 4}}),
        ("[16, 4]", {"init": [16, 4], "keywords": {}}),
        ("(16, 4)", {"init": [16, 4], "keywords": {}}),
    ],
)
def test_constructor_takes_a_list_keywords_or_both(tmp_path: Path, values: str, wanted: dict[str, Any]) -> None:
    construct = "self.linear = nn.Linear(a, b)"
    found = described(tmp_path, "return self.linear(x)", construct=construct, init="a, b=3", values=values)
    assert {key: found[key] for key in wanted} == wanted
    assert found["weights"][0]["shape"] == ["4", "16"]


def test_dict_among_the_constants_reaches_the_constructor(tmp_path: Path) -> None:
    construct, values = "self.linear = nn.Linear(sizes['in'], sizes['out'])", "[{'in': 16, 'out': 4}]"
    found = described(tmp_path, "return self.linear(x)", construct=construct, init="sizes", values=values)
    assert found["init"] == [{"dict": {"in": 16, "out": 4}}]


def test_tensor_that_is_a_plain_attribute_is_an_input_of_kernels_alone(tmp_path: Path) -> None:
    forward, construct = "return torch.tanh(x + self.position)", "self.position = torch.randn(16)"
    found = described(tmp_path, forward, construct=construct)
    assert (weights(found), found["rigid"]) == (["position"], [1])
    assert weights(described(tmp_path, forward, construct=construct, kernels=False)) == []


def test_state_of_a_recurrent_model_that_is_a_plain_attribute_is_drawn_and_set(tmp_path: Path) -> None:
    construct = "self.cell = nn.GRU(16, 5, batch_first=True)\nself.start = torch.randn(1, 4, 5)"
    forward = "self.start = self.start.to(x.device)\nreturn self.cell(x, self.start)[0]"
    found = described(tmp_path, forward, "[torch.randn(4, 3, 16)]", construct)
    form = {"arguments": found["arguments"], "weights": weights(found), "mode": found["mode"]}
    file = PytorchFile(str(tmp_path / "file.py"), str(tmp_path), _json(form), found["rigid"])
    first, other = file.draw(1, "normal", "cpu"), file.draw(2, "normal", "cpu")
    assert weights(found)[-1] == "start"
    assert not torch.equal(first[-1], other[-1])
    changed = [*first[:-1], other[-1]]
    assert not torch.allclose(file.reference(*first)[0], file.reference(*changed)[0])
    torch.testing.assert_close(
        file.oracle(*[value.double() for value in changed])[0].float(), *file.reference(*changed)
    )


def test_positions_are_not_asked_for_among_equal_values(tmp_path: Path) -> None:
    found = described(tmp_path, "return x.argmax(1)", "[torch.randn(64, 16)]")
    form = {"arguments": found["arguments"], "weights": [], "mode": found["mode"]}
    file = PytorchFile(str(tmp_path / "file.py"), str(tmp_path), _json(form), found["rigid"])
    (values,) = file.draw(1, "equal_rows", "cpu")
    assert bool((values.amax(1) > values.amin(1)).all())


def _json(form: dict[str, Any]) -> str:
    from sandbox.contract import ModuleForm

    return ModuleForm.model_validate(form).model_dump_json()


def test_statistics_that_a_call_changes_are_no_inputs_whatever_counts_them(tmp_path: Path) -> None:
    for norm in ("nn.BatchNorm1d(16)", "nn.BatchNorm1d(16, momentum=None)"):
        found = described(tmp_path, "return self.norm(x)", construct=f"self.norm = {norm}")
        assert (found["mode"], weights(found)) == ("train", ["norm.weight", "norm.bias"])


def test_state_that_decides_the_answer_puts_a_model_in_eval_mode(tmp_path: Path) -> None:
    """The vectors of a power iteration, which every call in train mode changes."""
    construct = "self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 12))"
    found = described(tmp_path, "return self.linear(x)", construct=construct)
    assert found["mode"] == "eval"
    assert [name.rsplit(".", 1)[-1] for name in weights(found)] == ["bias", "original", "_u", "_v"]


def test_complex_table_is_left_to_the_kernel(tmp_path: Path) -> None:
    construct = "self.register_buffer('turn', torch.polar(torch.ones(8), torch.arange(8.0)))"
    forward = "return torch.view_as_real(torch.view_as_complex(x.view(-1, 8, 2)) * self.turn).flatten(1)"
    found = described(tmp_path, forward, construct=construct)
    assert (weights(found), found["batch"]["others"]) == ([], (1, 7, 4))


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ("torch.randn(8, 16)", "get_inputs() returned a Tensor; wanted a list"),
        ("{'x': torch.randn(8, 16)}", "get_inputs() returned a dict; wanted a list"),
        ("[[torch.randn(8), torch.randn(8)]]", "tensors within a list"),
        ("[torch.randn(8, 8).numpy()]", "an argument of type ndarray; wanted tensors"),
        ("[torch.eye(8).to_sparse()]", "argument 0 is torch.sparse_coo; wanted a dense tensor"),
        ("[torch.randn(8, 16).double()]", "x is float64, wanted one of"),
        ("[torch.randn(1 << 24, 1 << 16)]", "4398.0 GB, of which the judge keeps 12 draws"),
    ],
)
def test_inputs_that_no_kernel_can_take_say_why(tmp_path: Path, inputs: str, reason: str) -> None:
    with pytest.raises(TaskError) as caught:
        described(tmp_path, "return 2 * x", inputs)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("forward", "construct", "reason"),
    [
        ("return F.relu(x, inplace=True)", "pass", "changes argument 0 in place"),
        ("return x, (x, x)", "pass", "returned a tuple of Tensor, tuple; wanted"),
        ("return x, None", "pass", "returned a tuple of Tensor, NoneType; wanted"),
        ("return x.sum().item()", "pass", "returned a float; wanted"),
        ("return F.dropout(x, 0.5, training=True)", "pass", "other answers to the same inputs, in eval mode too"),
        ("return x * self.k", "import random\nself.k = random.random()", "holds random values beside its parameters"),
        ("return x + self.rows[0]", "self.rows = [torch.randn(16)]", "holds random values beside its parameters"),
        (
            "self.mean = 0.9 * self.mean + x.mean(0)\nreturn x - self.mean",
            "self.register_buffer('mean', torch.zeros(16))",
            "other answers to the same inputs, in eval mode too",
        ),
    ],
)
def test_model_that_no_kernel_can_stand_in_for_says_why(
    tmp_path: Path, forward: str, construct: str, reason: str
) -> None:
    with pytest.raises(TaskError) as caught:
        described(tmp_path, forward, construct=construct)
    assert reason in str(caught.value)


def test_outputs_too_large_to_keep_are_refused_after_one_call(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="of which the judge keeps 12 draws"):
        described(tmp_path, "return x.expand(1 << 40)", "[torch.randn(1)]")
