"""The device layer of torch sources, driven as the worker drives it: a memory file as arena, requests as dicts."""

import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from sandbox.worker import wire
from sandbox.worker.torch_build import BuildFailure, complete
from sandbox.worker.torch_calls import TorchCalls
from sandbox.worker.torch_forms import LaunchFailure

ADD = """
import torch

class ModelNew(torch.nn.Module):
    def forward(self, a, b):
        return a + b
"""

LINEAR = """
import torch

class ModelNew(torch.nn.Module):
    def __init__(self, features, shape):
        super().__init__()
        assert isinstance(shape, tuple)
        self.linear = torch.nn.Linear(features, shape[0])

    def forward(self, x):
        return torch.relu(self.linear(x))
"""

EXTENSION = """
torch::Tensor forward(torch::Tensor a, torch::Tensor b) {
    auto out = torch::empty_like(a);
    const float* x = a.data_ptr<float>();
    const float* y = b.data_ptr<float>();
    float* z = out.data_ptr<float>();
    for (int64_t i = 0; i < a.numel(); ++i) z[i] = x[i] + y[i];
    return out;
}
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the layer sets for its process does not outlive a test."""
    for name in ("PATH", "TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


class Arena:
    """Tensors one behind the other in a memory file that both sides map."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self.starts = [1024 * (1 + sum(-(-t.nbytes // 1024) for t in tensors[:i])) for i in range(len(tensors))]
        self.size = self.starts[-1] + tensors[-1].nbytes + 1024
        self.descriptor = wire.memory_file("arena", self.size)
        self.raw = torch.frombuffer(wire.mapped(self.descriptor, writable=True), dtype=torch.uint8)
        self.tensors = [
            self.raw[at : at + t.nbytes].view(t.dtype).reshape(t.shape)
            for at, t in zip(self.starts, tensors, strict=True)
        ]
        for place, tensor in zip(self.tensors, tensors, strict=True):
            place.copy_(tensor)


def source_file(text: str) -> int:
    descriptor = wire.memory_file("source", len(text.encode()))
    os.write(descriptor, text.encode())
    return descriptor


def loaded(text: str, form: str, module: dict[str, Any] | None = None) -> TorchCalls:
    device = TorchCalls("cpu")
    device.load({"key": "k", "form": form, "module": module}, source_file(text))
    return device


def bound(device: TorchCalls, arena: Arena, outputs: int = 1, scalars: Sequence[Sequence[Any]] = ()) -> Any:
    base = device.attach(arena.descriptor, arena.size)
    tensors = [{"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for t in arena.tensors]
    request = {"key": "k", "tensors": tensors, "outputs": outputs, "scalars": list(scalars)}
    return device.prepare(request, [base + start for start in arena.starts], 0)


def called(text: str, *values: torch.Tensor, form: str = "module", outputs: int = 1, **more: Any) -> list[torch.Tensor]:
    """What lies in the arena after one call."""
    device, arena = loaded(text, form, more.pop("module", None)), Arena(values)
    device.run([bound(device, arena, outputs, **more)])
    return arena.tensors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int32, torch.int64, torch.uint8])
def test_module_is_called_on_tensors_of_every_dtype(dtype: torch.dtype) -> None:
    a, b = torch.arange(12).reshape(3, 4).to(dtype), torch.full((3, 4), 2).to(dtype)
    out, *given = called(ADD, torch.zeros_like(a), a, b)
    assert torch.equal(out, a + b)
    assert torch.equal(given[0], a)


@pytest.mark.slow
def test_extension_without_its_own_binding_is_built_and_called() -> None:
    a, b = torch.randn(33), torch.randn(33)
    assert torch.equal(called(EXTENSION, torch.zeros(33), a, b, form="extension")[0], a + b)


def test_extension_that_does_not_compile_shows_the_compiler_errors() -> None:
    # No header of torch before the error, so that the compiler stops early.
    broken = '#error "no such luck"\n#include <torch/extension.h>\nPYBIND11_MODULE(a, b) {}\n'
    with pytest.raises(BuildFailure, match="no such luck"):
        loaded(broken, "extension")


def test_header_and_binding_are_added_only_where_missing() -> None:
    assert complete(EXTENSION).startswith("#include <torch/extension.h>")
    assert 'm.def("forward", &forward)' in complete(EXTENSION)
    whole = "#include <torch/extension.h>\nPYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {}\n"
    assert complete(whole) == whole


def test_scalars_follow_the_tensors_and_axes_are_left_out() -> None:
    text = ADD.replace("a, b)", "a, b, scale, causal)").replace("a + b", "a * scale + b * causal")
    a, b = torch.randn(5), torch.randn(5)
    scalars = [["axis", 5], ["float", 0.5], ["int", 3]]
    assert torch.equal(called(text, torch.zeros(5), a, b, scalars=scalars)[0], a * 0.5 + b * 3)


def test_in_outs_are_changed_in_place() -> None:
    text = ADD.replace("return a + b", "a.add_(b)\n        return b * 2")
    a, b = torch.randn(5), torch.randn(5)
    out, changed, _ = called(text, torch.zeros(5), a, b)
    assert torch.equal(changed, a + b)
    assert torch.equal(out, b * 2)


def module_form(**changes: Any) -> dict[str, Any]:
    form = {"init": [8, {"tuple": [4]}], "mode": "train", "arguments": [{"index": 0, "boolean": False}]}
    return {**form, "weights": ["linear.weight", "linear.bias"], **changes}


def linear_case() -> tuple[torch.Tensor, ...]:
    return torch.zeros(3, 4), torch.randn(3, 8), torch.randn(4, 8), torch.randn(4)


@pytest.mark.parametrize("text", [LINEAR, LINEAR.replace("linear", "projection")], ids=["by name", "by order"])
def test_weights_of_the_reference_become_those_of_the_module(text: str) -> None:
    out, x, weight, bias = linear_case()
    got = called(text, out, x, weight, bias, module=module_form())[0]
    torch.testing.assert_close(got, torch.relu(x @ weight.T + bias))


def test_keywords_and_dicts_reach_the_constructor() -> None:
    out, x, weight, bias = linear_case()
    text = LINEAR.replace("features, shape)", "sizes, *, shape)").replace("Linear(features", "Linear(sizes['in']")
    form = module_form(init=[{"dict": {"in": 8}}], keywords={"shape": {"tuple": [4]}})
    got = called(text, out, x, weight, bias, module=form)[0]
    torch.testing.assert_close(got, torch.relu(x @ weight.T + bias))


def test_new_weights_under_the_same_pointers_are_used() -> None:
    device, arena = loaded(LINEAR, "module", module_form()), Arena(linear_case())
    call = bound(device, arena)
    device.run([call])
    arena.tensors[2].normal_()
    device.run([call])
    out, x, weight, bias = arena.tensors
    torch.testing.assert_close(out, torch.relu(x @ weight.T + bias))


def test_module_without_a_place_for_a_weight_is_told_which() -> None:
    with pytest.raises(
        LaunchFailure, match=r"no parameter for linear.weight \[4, 8\].*left over: linear.weight \[4, 6"
    ):
        called(LINEAR.replace("(features,", "(features - 2,"), *linear_case(), module=module_form())


def test_arguments_stand_where_the_reference_has_them() -> None:
    text = "import torch\nclass ModelNew(torch.nn.Module):\n    def forward(self, k, mask): return mask.sum() * k[0]\n"
    arguments = [{"value": {"tuple": [3]}}, {"index": 0, "boolean": True}]
    form = {"init": [], "mode": "eval", "arguments": arguments, "weights": []}
    mask = torch.tensor([1, 0, 1], dtype=torch.uint8)
    assert called(text, torch.zeros(1, dtype=torch.int64), mask, module=form)[0].item() == 6


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return None", "returned NoneType, wanted 1 tensor"),
        ("return a, b", "returned 2 values, wanted 1 tensor"),
        ("return a[:2]", r"shape \[2\], wanted \[5\]"),
        ("return a.double()", "is float64, wanted float32"),
        ("return torch.masked.as_masked_tensor(a, a > 0)", "is a MaskedTensor, wanted a plain"),
        ("return a.to_sparse()", "wanted a plain strided"),
        ("raise KeyError('gone')", "KeyError: 'gone'"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
def test_what_does_not_fit_is_said(body: str, reason: str) -> None:
    with pytest.raises(LaunchFailure, match=reason):
        called(ADD.replace("return a + b", body), torch.zeros(5), torch.randn(5), torch.randn(5))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\n", "no class ModelNew"),
        ("import torch\nx = 1 / 0\n", "line 2: ZeroDivisionError"),
        ("class ModelNew(:\n", "SyntaxError"),
        (
            "import torch\nclass ModelNew(torch.nn.Module):\n    def __init__(self): raise OSError(1)\n",
            "constructed: OSE",
        ),
    ],
)
def test_source_that_cannot_be_loaded_is_a_build_failure(text: str, reason: str) -> None:
    with pytest.raises(BuildFailure, match=reason) as caught:
        loaded(text, "module")
    assert caught.value.stage == "build"


def test_profile_tells_operators_of_torch_from_the_candidates_own_code() -> None:
    text = ADD.replace(
        "return a + b", "end = time.perf_counter() + 0.02\n        while time.perf_counter() < end: pass\n"
    )
    text = text.replace("import torch", "import time, torch") + "        return a @ b\n"
    device, arena = loaded(text, "module"), Arena([torch.zeros(64, 64)] * 3)
    seconds = device.profile([bound(device, arena)])
    assert seconds["aten::mm"] > 0
    assert seconds["own"] > 0.015
