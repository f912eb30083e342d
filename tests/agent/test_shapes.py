"""How further shapes are read, and what is said of those that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import shapes, tasks
from sandbox.errors import BadInput

GOOD = "attention:B=1,H=16,S=8192,D=128,causal=1,scale=0.088,dtype=float16"


def one(text: str) -> shapes.Shape:
    return shapes.read([text], None)[0]


def test_a_shape_is_a_workload_of_its_task() -> None:
    found = shapes.workload(tasks.load("attention", "cuda"), one(GOOD))
    assert found.name == "B1 H16 S8192 D128 causal=1 float16"
    assert found.scalars == {"scale": 0.088, "causal": 1}


def test_defaults_and_the_only_dtype_are_filled_in() -> None:
    found = shapes.workload(tasks.load("layernorm", "cpu"), one("layernorm: N=8, D=2048"))
    assert (found.scalars, found.dtype) == ({"eps": 1e-5}, "float32")


def test_a_file_has_a_table_for_each_shape(tmp_path: Path) -> None:
    file = tmp_path / "shapes.toml"
    file.write_text("[[layernorm]]\nN = 1\nD = 8\n[[layernorm]]\nN = 2\nD = 8\n[[mlp]]\nM = 1\nK = 2\nN = 3\n")
    found = shapes.read([GOOD], file)
    assert [shape.task for shape in found] == ["attention", "layernorm", "layernorm", "mlp"]
    assert found[2].place == f"{file}, shape 2 of layernorm"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attention", "wanted TASK:NAME=VALUE"),
        ("attention:B", "wanted TASK:NAME=VALUE"),
        ("attention:B=1,B=2", "a name is given twice"),
        (GOOD + ",Q=1", "has no axis or scalar 'Q'; it has B, H, S, D, scale, causal, dtype"),
        (GOOD.replace("H=16,", ""), "axis 'H' is missing"),
        (GOOD.replace("scale=0.088,", ""), "scalar 'scale' is missing and has no default"),
        (GOOD.replace("S=8192", "S=0"), "axis 'S' is 0, wanted an integer from 1 on"),
        (GOOD.replace("S=8192", "S=8k"), "axis 'S' is '8k', wanted an integer"),
        (GOOD.replace("causal=1", "causal=0.5"), "scalar 'causal' is 0.5, wanted int"),
        (GOOD.replace(",dtype=float16", ""), "dtype is missing; wanted float16 or bfloat16"),
        (GOOD.replace("=float16", "=float32"), "dtype 'float32' is not supported: task 'attention' for cuda is judged"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_shape_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        shapes.workload(tasks.load("attention", "cuda"), one(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "No such file"), ("[[layernorm]\n", "--shapes"), ("layernorm = 3\n", r"wanted tables \[\[layernorm\]\]")],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "shapes.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BadInput, match=message):
        shapes.read([], file)
