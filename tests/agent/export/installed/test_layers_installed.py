"""Layers and patch, from an installed package: state dicts, gradients, a thousand steps, compiling, undoing."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

NAME = os.environ.get("WARPSMITH_PACKAGE", "")
if not NAME:
    pytest.skip("no package is named in WARPSMITH_PACKAGE", allow_module_level=True)
if importlib.util.find_spec(f"{NAME}.layers") is None:
    pytest.skip("the package has no layers", allow_module_level=True)

TOLERANCES = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.float16: {"rtol": 2e-2, "atol": 1e-2}}
WIDTHS = {"d_model": 1024, "n_heads": 8, "n_kv_heads": 2}
"""Heads of 128, 8 over 2: kernels of kv_cache for the CPU are proven for them."""


def close(got: Any, wanted: Any) -> None:
    torch.testing.assert_close(got, wanted, **TOLERANCES[torch.get_default_dtype()])


@pytest.fixture(scope="module")
def layers() -> ModuleType:
    return importlib.import_module(f"{NAME}.layers")


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    return importlib.import_module(f"{NAME}.plain")


@pytest.fixture(scope="module")
def regions() -> ModuleType:
    return importlib.import_module(f"{NAME}.regions")


@pytest.fixture(autouse=True)
def only_what_is_proven_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers call an operator only where a kernel serves, so that its fallback is never needed."""
    monkeypatch.setenv("WARPSMITH_FALLBACK", "error")
    torch.manual_seed(0)


def twins(layers: ModuleType, plain: ModuleType, fused: bool, **widths: int) -> tuple[Any, Any]:
    ours = (layers.FusedAttentionLayerNorm if fused else layers.OptimizedAttention)(**(widths or WIDTHS))
    theirs = (plain.PlainAttentionLayerNorm if fused else plain.PlainAttention)(**(widths or WIDTHS))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("fused", [False, True])
def test_state_dicts_go_there_and_back(layers: ModuleType, plain: ModuleType, fused: bool) -> None:
    ours, theirs = twins(layers, plain, fused)
    ours.allocate_cache(1, 8)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    layers.LayerNorm(8).load_state_dict(nn.LayerNorm(8).state_dict())
    layers.MultiLayerPerceptron(8, 16).load_state_dict(plain.PlainMultiLayerPerceptron(8, 16).state_dict())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("tokens", [1, 100, 129])
def test_attention_and_its_gradients_are_those_of_the_plain_twin(
    layers: ModuleType, plain: ModuleType, fused: bool, tokens: int
) -> None:
    ours, theirs = twins(layers, plain, fused, d_model=256, n_heads=4, n_kv_heads=4)  # heads of 64
    x = torch.randn(2, tokens, 256)
    for training in (True, False):
        ours.train(training)
        found = []
        for module in (ours, theirs):
            module.zero_grad()
            out = module(x)
            out.square().mean().backward()
            found.append([out, *(p.grad for p in module.parameters())])
        close(*found)


def test_a_thousand_steps_match_full_attention_across_growth_batches_and_reset(
    layers: ModuleType, plain: ModuleType, regions: ModuleType
) -> None:
    ours, theirs = twins(layers, plain, fused=False)
    ours.eval()
    x = torch.randn(3, 600, WIDTHS["d_model"])
    with torch.no_grad():
        wanted = theirs.double()(x.double())
    step = {"B": 3, "H": 8, "Hkv": 2, "L": 1024, "D": 128}
    if "kv_cache" in importlib.import_module(f"{NAME}.operators").NAMES:
        assert regions.serves("kv_cache", x, **step) or regions.REGIONS["kv_cache"][0].device != "cpu"

    def compare(rows: int, position: int | Tensor) -> None:
        at, each = torch.as_tensor(position).expand(rows), torch.arange(rows)
        got = ours(x[each, at][:, None], input_pos=position)
        close(got[:, 0].double(), wanted[each, at])

    for position in range(520):  # grows from 256 to 512 and 1024
        compare(2, position)
    for position in range(520, 560):
        compare(1, position)
    for late in range(40):
        compare(3, torch.tensor([560 + late, 520 + late, late], device="cpu"))
    ours.reset_cache()
    for position in range(400):
        compare(2, torch.tensor([position], device="cpu"))


def test_training_and_decoding_compile_without_graph_breaks(layers: ModuleType, plain: ModuleType) -> None:
    torch.compiler.reset()
    ours, theirs = twins(layers, plain, fused=False)
    backend = os.environ.get("WARPSMITH_COMPILE_BACKEND", "inductor")
    compiled = torch.compile(ours, fullgraph=True, backend=backend)
    x = torch.randn(2, 80, WIDTHS["d_model"])
    wanted = theirs(x)
    close(compiled(x), wanted)
    compiled(x).sum().backward()
    ours.eval()
    ours.allocate_cache(2, 128)
    for position in range(8):
        out = compiled(x[:, position : position + 1], input_pos=torch.full((2,), position))
        close(out, wanted[:, position : position + 1])


def test_patch_swaps_shares_and_undoes(plain: ModuleType) -> None:
    patching = importlib.import_module(f"{NAME}.patching")
    model = nn.Sequential(nn.LayerNorm(256), plain.PlainAttention(256, 4), plain.PlainMultiLayerPerceptron(256, 512))
    model.eval()
    x, parameters, modules = torch.randn(2, 40, 256), [*model.parameters()], [*model]
    wanted = model(x)
    report = patching.patch(model)
    operators = importlib.import_module(f"{NAME}.operators").NAMES
    assert set(report.swapped) == {
        "1",
        *(["0"] if "layernorm" in operators else []),
        *(["2"] if "mlp" in operators else []),
    }
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    close(model(x), wanted)
    report.undo()
    assert [*model] == modules
    torch.testing.assert_close(model(x), wanted)


def test_layers_take_strided_and_odd_inputs(layers: ModuleType, plain: ModuleType) -> None:
    norm, twin = layers.LayerNorm(1023).eval(), nn.LayerNorm(1023)
    for x in (torch.randn(5, 7, 1023), torch.randn(3, 1023, 2)[..., 0], torch.randn(0, 1023), torch.randn(1023)):
        close(norm(x), twin(x))
    mlp, plain_mlp = layers.MultiLayerPerceptron(192, 520).eval(), plain.PlainMultiLayerPerceptron(192, 520)
    plain_mlp.load_state_dict(mlp.state_dict())
    for x in (torch.randn(4, 5, 192), torch.randn(192, 100).t(), torch.randn(192)):
        close(mlp(x), plain_mlp(x))
