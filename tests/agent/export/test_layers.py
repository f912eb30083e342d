"""Layers against their plain twins, once with operators behind them and once with PyTorch's functions alone."""

import importlib
import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.agent.export.assembled import ARGUMENTS, GREATEST, assemble

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


class Package:
    """The modules of an assembled package."""

    def __init__(self, package: ModuleType) -> None:
        self.layers, self.plain, self.operators = (
            importlib.import_module(f"{package.__name__}.{name}") for name in ("layers", "plain", "operators")
        )


@pytest.fixture(scope="module", params=["operators", "no_operators"])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Package:
    tasks = tuple(ARGUMENTS) if request.param == "operators" else ()
    return Package(assemble(tmp_path_factory.mktemp("package"), f"layers_with_{request.param}", tasks))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return Package(assemble(tmp_path_factory.mktemp("package"), "layers_served", tuple(ARGUMENTS)))


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def twins(package: Package, fused: bool = False, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """An attention layer and its plain twin with the same weights."""
    layer_class = package.layers.FusedAttentionLayerNorm if fused else package.layers.OptimizedAttention
    plain_class = package.plain.PlainAttentionLayerNorm if fused else package.plain.PlainAttention
    ours, theirs = layer_class(64, 4, 2, **settings), plain_class(64, 4, 2, **settings)
    if fused:
        nn.init.normal_(ours.norm.weight)
        nn.init.normal_(ours.norm.bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


# ---------------------------------------------------------------- without a cache


@pytest.mark.parametrize("fused", [False, True])
def test_state_dicts_are_those_of_the_plain_twins(package: Package, fused: bool) -> None:
    ours, theirs = twins(package, fused)
    ours(torch.randn(1, 3, 64), input_pos=0)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    mlp = package.layers.MultiLayerPerceptron(8, 16), package.plain.PlainMultiLayerPerceptron(8, 16)
    assert (
        list(mlp[0].state_dict()) == list(mlp[1].state_dict()) == [f"{n}_proj.weight" for n in ("gate", "up", "down")]
    )
    assert list(package.layers.LayerNorm(8).state_dict()) == list(nn.LayerNorm(8).state_dict())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_and_its_gradients_are_those_of_the_plain_twin(
    package: Package, fused: bool, is_causal: bool
) -> None:
    ours, theirs = twins(package, fused, is_causal=is_causal)
    x = torch.randn(3, 17, 64)
    for training in (True, False):
        ours.train(training)
        found = []
        for module in (ours, theirs):
            leaf = x.clone().requires_grad_()
            module.zero_grad()
            out = module(leaf)
            out.square().sum().backward()
            found.append([out, leaf.grad, *(p.grad for p in module.parameters())])
        torch.testing.assert_close(*found, **TOLERANCE)


@pytest.mark.parametrize("shape", [(9, 9), (3, 9, 9), (3, 1, 9), (3, 1, 1, 9), (1, 4, 9, 9), (3, 4, 9, 9)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_masks_come_on_top_of_causality(package: Package, shape: tuple[int, ...], is_causal: bool) -> None:
    ours, theirs = twins(package, is_causal=is_causal)
    x = torch.randn(3, 9, 64)
    wide = (lambda mask: mask[:, None]) if len(shape) == 3 else (lambda mask: mask)
    seen = torch.rand(shape) > 0.4
    seen[..., 0] = True  # a row that sees nothing is nan in the twin
    for mask in (seen, torch.randn(shape), torch.zeros(shape).masked_fill(~seen, -math.inf)):
        torch.testing.assert_close(ours(x, mask), theirs(x, wide(mask)), **TOLERANCE)


def test_a_query_that_sees_nothing_gets_zeros(package: Package) -> None:
    ours, _ = twins(package)
    seen = torch.ones(2, 1, 5, dtype=torch.bool)
    seen[1, 0, :2] = False  # padded on the left
    out = ours(torch.randn(2, 5, 64), seen)
    assert out.isfinite().all()
    assert not out[1, :2].any()


def test_operators_are_called_where_they_serve_and_pytorch_elsewhere(served: Package) -> None:
    def calls(module: nn.Module, *arguments: Any, **keywords: Any) -> list[str]:
        served.operators.CALLS.clear()
        module(*arguments, **keywords)
        return list(served.operators.CALLS)

    ours, _ = twins(served)
    fused, _ = twins(served, fused=True)
    mlp, norm = served.layers.MultiLayerPerceptron(64, 96), served.layers.LayerNorm((5, 64))
    x = torch.randn(2, 5, 64)
    assert [calls(m, x) for m in (ours, fused, mlp, norm)] == [[], [], [], []]  # they train
    for module in (ours, fused, mlp, norm):
        module.eval()
    assert calls(ours, x) == ["attention"]
    assert calls(fused, x) == ["attention_layernorm"]
    assert calls(mlp, x) == ["mlp"]
    assert calls(norm, x) == ["layernorm"]
    assert calls(ours, x, torch.ones(5, 5)) == []
    assert calls(ours, x, input_pos=0) == ["attention"]
    assert calls(ours, x[:, :1], input_pos=5) == ["kv_cache"]
    assert calls(ours, x, input_pos=6) == []
    assert calls(fused, x[:, :1], input_pos=0) == ["kv_cache", "layernorm"]
    assert calls(ours, torch.randn(1, GREATEST + 1, 64)) == []  # outside the region
    assert calls(ours.double(), x.double()) == []
    with torch.autocast("cpu"):
        assert [calls(m, x) for m in (fused, mlp, norm)] == [[], [], []]


# ---------------------------------------------------------------- with a cache


@pytest.mark.parametrize("fused", [False, True])
def test_a_thousand_steps_match_full_attention_across_growth_batches_and_reset(package: Package, fused: bool) -> None:
    ours, theirs = twins(package, fused)
    x = torch.randn(3, 700, 64)
    with torch.no_grad():
        wanted = theirs.double()(x.double())

    def step(rows: int, positions: int | Tensor) -> None:
        at = torch.as_tensor(positions).expand(rows)
        each = torch.arange(rows)
        got = ours(x[each, at][:, None], input_pos=positions)
        torch.testing.assert_close(got[:, 0].double(), wanted[each, at], **TOLERANCE)

    for position in range(600):  # the cache grows from 256 to 512 and 1024
        step(2, position)
    assert ours.cache.k.shape == (2, 2, 1024, 16)
    for position in range(600, 650):
        step(1, position)
    for late in range(50):  # a third sequence joins, the second goes on where it was
        step(3, torch.tensor([650 + late, 600 + late, late], dtype=torch.int32 if late % 2 else torch.int64))
    assert ours.cache.k.shape == (3, 2, 1024, 16)
    ours.reset_cache()
    for position in range(300):
        step(3, torch.tensor([position]))


def test_chunks_match_the_whole_at_one_offset_and_at_one_for_each_row(package: Package) -> None:
    ours, _ = twins(package)
    x = torch.randn(2, 40, 64)
    whole = ours(x)
    chunks = [ours(x[:, start:end], input_pos=start) for start, end in ((0, 7), (7, 8), (8, 30), (30, 40))]
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole, **TOLERANCE)
    ours.reset_cache()
    ours(x[:, :20], input_pos=0)
    again = ours(torch.stack([x[0, 20:30], x[1, 5:15]]), input_pos=torch.tensor([20, 5]))
    torch.testing.assert_close(again, torch.stack([whole[0, 20:30], whole[1, 5:15]]), **TOLERANCE)


@pytest.mark.parametrize("additive", [False, True])
def test_a_padded_prompt_is_decoded_as_if_it_were_not_padded(package: Package, additive: bool) -> None:
    ours, _ = twins(package)
    x = torch.randn(2, 12, 64)
    pads = 4
    alone = ours(x[1:, pads:])
    seen = torch.ones(2, 1, 1, 16, dtype=torch.bool)  # longer than what is filled
    seen[1, ..., :pads] = False
    mask = torch.zeros(seen.shape).masked_fill(~seen, -math.inf) if additive else seen
    out = [ours(x[:, :8], mask, input_pos=0)] + [ours(x[:, p : p + 1], mask, input_pos=p) for p in range(8, 11)]
    out.append(ours(x[:, 11:], mask, input_pos=torch.tensor([11, 11])))
    torch.testing.assert_close(torch.cat(out, dim=1)[1:, pads:], alone, **TOLERANCE)


def test_steps_write_into_the_memory_that_is_there(package: Package) -> None:
    ours, _ = twins(package)
    ours.allocate_cache(2, 64)
    place = ours.cache.k.data_ptr(), ours.cache.v.data_ptr()
    for position in range(64):
        ours(torch.randn(2 - position % 2, 1, 64), input_pos=position)
    ours.reset_cache()
    assert (ours.cache.k.data_ptr(), ours.cache.v.data_ptr()) == place
    assert not ours.cache.k.any()
    ours(torch.randn(2, 1, 64), input_pos=64)
    assert ours.cache.k.shape[2] == 128


def test_positions_on_a_device_are_never_read(package: Package) -> None:
    """Tensors of the meta device have no values, so that reading one is an error."""
    ours = package.layers.OptimizedAttention(64, 4, 2, max_batch=3, max_context=32, device="meta")
    for tokens in (1, 4):
        out = ours(
            torch.empty(2, tokens, 64, device="meta"), input_pos=torch.empty(2, dtype=torch.int32, device="meta")
        )
        assert out.shape == (2, tokens, 64)
    growing = package.layers.OptimizedAttention(64, 4, 2, device="meta")
    with pytest.raises(ValueError, match=r"room for 0 rows, got 2, .* call allocate_cache\(batch, context\) first"):
        growing(torch.empty(2, 1, 64, device="meta"), input_pos=torch.empty(2, dtype=torch.int32, device="meta"))


def test_a_cache_made_under_inference_mode_serves_outside_of_it(package: Package) -> None:
    ours, _ = twins(package)
    x = torch.randn(1, 300, 64)
    with torch.inference_mode():
        ours(x[:, :10], input_pos=0)
    out = ours(x[:, 10:], input_pos=10)
    assert not out.requires_grad
    torch.testing.assert_close(out, ours(x)[:, 10:], **TOLERANCE)


def test_the_cache_moves_with_the_module(package: Package) -> None:
    ours, _ = twins(package)
    x = torch.randn(1, 6, 64)
    ours(x[:, :5], input_pos=0)
    ours.double()
    torch.testing.assert_close(ours(x[:, 5:].double(), input_pos=5), ours(x.double())[:, 5:], rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu"), pytest.raises(ValueError, match=r"the cache holds torch.float32, got torch.bfloat16"):
        ours.float()(x, input_pos=0)
    ours.allocate_cache(1, 8, torch.bfloat16)
    with torch.autocast("cpu"):
        assert ours(x, input_pos=0).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": torch.zeros(3, 64)}, r"x has shape \[3, 64\], wanted \[B, S, 64\]"),
        ({"mask": torch.ones(3, 3, dtype=torch.int64)}, r"mask is torch.int64, wanted bool"),
        ({"mask": torch.ones(3)}, r"mask has shape \[3\], wanted"),
        ({"mask": torch.ones(3, 4)}, r"mask is for 4 keys, wanted 3"),
        ({"mask": torch.ones(3, 4), "input_pos": 2}, r"mask is for 4 keys, wanted 5 or more"),
        ({"input_pos": -1}, r"input_pos is -1, wanted 0 or more"),
        ({"input_pos": torch.tensor([0, -2])}, r"input_pos is -2, wanted 0 or more"),
        ({"input_pos": torch.zeros(2)}, r"input_pos is torch.float32, wanted integers"),
        ({"input_pos": torch.arange(3)}, r"input_pos has shape \[3\], wanted .*: \[2\], or one for all rows"),
        ({"input_pos": 14}, r"ends at position 17, but max_context is 16"),
        ({"input_pos": 0, "x": torch.zeros(5, 3, 64)}, r"a call with 5 rows, but max_batch is 4"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(package: Package, wrong: dict[str, Any], message: str) -> None:
    ours, _ = twins(package)
    ours.cache.max_batch, ours.cache.max_context = 4, 16
    with pytest.raises(ValueError, match=message) as refusal:
        ours(**{"x": torch.zeros(2, 3, 64), **wrong})
    assert "\n" not in str(refusal.value)


def test_heads_that_do_not_divide_are_refused(package: Package) -> None:
    with pytest.raises(ValueError, match="d_model 64, n_heads 6, n_kv_heads 6: each must be a multiple of the next"):
        package.layers.OptimizedAttention(64, 6)


# ---------------------------------------------------------------- compiled


@pytest.mark.parametrize("fused", [False, True])
def test_forward_and_decoding_compile_without_graph_breaks(package: Package, fused: bool) -> None:
    torch.compiler.reset()
    ours, theirs = twins(package, fused)
    x = torch.randn(2, 12, 64)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    found = []
    for module in (compiled, theirs):
        module.zero_grad()
        module(x).square().sum().backward()
        found.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*found, **TOLERANCE)
    ours.eval()
    wanted = theirs(x)
    ours.allocate_cache(2, 16)
    for position in range(12):
        out = compiled(x[:, position : position + 1], input_pos=torch.full((2,), position))
        torch.testing.assert_close(out, wanted[:, position : position + 1], **TOLERANCE)


def test_the_other_layers_compile_without_graph_breaks(package: Package) -> None:
    torch.compiler.reset()
    for layer in (package.layers.MultiLayerPerceptron(8, 16), package.layers.LayerNorm(8)):
        for training in (True, False):
            layer.train(training)
            compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
            x = torch.randn(2, 3, 8)
            torch.testing.assert_close(compiled(x), layer(x), **TOLERANCE)


# ---------------------------------------------------------------- LayerNorm and MLP


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 0, 8), (2, 3, 4, 8)])
def test_layernorm_takes_any_leading_shape(package: Package, shape: tuple[int, ...]) -> None:
    ours, theirs = package.layers.LayerNorm(8, eps=1e-3).eval(), nn.LayerNorm(8, eps=1e-3)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    for x in (torch.randn(shape), torch.randn(*shape, 2)[..., 0]):
        torch.testing.assert_close(ours(x), theirs(x), **TOLERANCE)


def test_layernorm_over_several_dimensions_without_bias_and_in_other_dtypes_is_that_of_pytorch(
    package: Package,
) -> None:
    x = torch.randn(2, 3, 4, 8)
    for settings in ({}, {"bias": False}, {"elementwise_affine": False}):
        ours, theirs = package.layers.LayerNorm((4, 8), **settings).eval(), nn.LayerNorm((4, 8), **settings)
        torch.testing.assert_close(ours(x), theirs(x), **TOLERANCE)
        torch.testing.assert_close(ours(x.bfloat16()), theirs(x.bfloat16()), **TOLERANCE)
        with torch.autocast("cpu"):
            assert ours(x).dtype == theirs(x).dtype
    with pytest.raises(RuntimeError, match="expected input with shape"):
        package.layers.LayerNorm(7).eval()(x)


def test_mlp_and_its_gradients_are_those_of_the_plain_twin(package: Package) -> None:
    ours, theirs = package.layers.MultiLayerPerceptron(8, 16), package.plain.PlainMultiLayerPerceptron(8, 16)
    theirs.load_state_dict(ours.state_dict())
    for training in (True, False):
        ours.train(training)
        found = []
        for module in (ours, theirs):
            module.zero_grad()
            out = module(torch.ones(2, 3, 8))
            out.sum().backward()
            found.append([out, *(p.grad for p in module.parameters())])
        torch.testing.assert_close(*found, **TOLERANCE)


def test_projections_that_are_hooked_or_replaced_later_are_called(served: Package) -> None:
    mlp = served.layers.MultiLayerPerceptron(8, 16).eval()
    x = torch.randn(2, 8)
    handle = mlp.up_proj.register_forward_hook(lambda module, inputs, output: output * 0)
    assert not mlp(x).any()
    handle.remove()
    assert mlp(x).any()
    mlp.up_proj = nn.Linear(8, 16)
    nn.init.zeros_(mlp.up_proj.weight)
    nn.init.ones_(mlp.up_proj.bias)
    torch.testing.assert_close(mlp(x), mlp.down_proj(nn.functional.silu(mlp.gate_proj(x))))
