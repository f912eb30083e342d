"""FlashInfer definitions in a package: `run` answers what no kernel serves, whatever it returns its outputs in."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from agent import flashinfer
from agent.compose import Part, Winner, compose
from sandbox.toolchain import Toolchain
from tests.agent.export.conftest import CPU, candidate

ROWS = {"shape": ["rows", "width"], "dtype": "float32"}
RETURNS = {"in_a_dict": '{"out": x + x}', "in_a_tuple": "(x + x,)", "as_it_is": "x + x", "two": "(x + x, x * x)"}
KERNEL = """\
// Leaves what it should write alone.
extern "C" void NAME(float* outOTHER, const float* x, int64_t rows, int64_t width, void* workspace) {}
"""


def part(folder: Path, name: str) -> Part:
    definition = {
        "name": name,
        "axes": {"rows": {"type": "var"}, "width": {"type": "const", "value": 8}},
        "inputs": {"x": ROWS},
        "outputs": {"out": ROWS, **({"squares": ROWS} if name == "two" else {})},
        "reference": f"def run(x):\n    return {RETURNS[name]}\n",
    }
    file = folder / f"{name}.json"
    file.write_text(json.dumps(definition))
    task = flashinfer.load(file, "cpu")
    source = KERNEL.replace("NAME", name).replace("OTHER", ", float* squares" if name == "two" else "")
    winner = Winner(candidate=candidate(task, source))
    return Part(task=task, device=CPU, winners={w.name: winner for w in task.workloads})


@pytest.fixture(scope="module")
def package(toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("definitions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder / "extensions"))
        patch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin")
        composed = compose([part(folder, name) for name in RETURNS], toolchain, folder / "out", "of_definitions")
        patch.syspath_prepend(str(composed.root))
        return importlib.import_module("of_definitions")


@pytest.mark.filterwarnings("ignore:.*PyTorch computes it instead")
@pytest.mark.parametrize("name", RETURNS)
def test_the_fallback_gives_the_outputs_as_the_operator_has_them(package: Any, name: str) -> None:
    x = torch.randn(5000, 8, requires_grad=True)
    found = getattr(package, name)(x)
    results = found if name == "two" else [found]
    for got, wanted in zip(results, (x + x, x * x), strict=name == "two"):
        torch.testing.assert_close(got, wanted)
    (grad,) = torch.autograd.grad(results[0].sum(), x)
    torch.testing.assert_close(grad, torch.full_like(x, 2))
