"""What patch swaps, what it leaves and why, and that it can be undone."""

import copy
import importlib
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tests.agent.export.assembled import ARGUMENTS, assemble


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return assemble(tmp_path_factory.mktemp("package"), "patching_served", tuple(ARGUMENTS))


@pytest.fixture(scope="module")
def plain(package: ModuleType) -> ModuleType:
    return importlib.import_module(f"{package.__name__}.plain")


@pytest.fixture(scope="module")
def patching(package: ModuleType) -> ModuleType:
    return importlib.import_module(f"{package.__name__}.patching")


@pytest.fixture(scope="module")
def layers(package: ModuleType) -> ModuleType:
    return importlib.import_module(f"{package.__name__}.layers")


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


class LlamaMLP(nn.Module):
    """As many models write it."""

    def __init__(self, activation: nn.Module, bias: bool = False) -> None:
        super().__init__()
        self.hidden_size = 8
        self.gate_proj, self.up_proj = nn.Linear(8, 12, bias=bias), nn.Linear(8, 12, bias=bias)
        self.down_proj = nn.Linear(12, 8, bias=bias)
        self.act_fn = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class StandardAttention(nn.Module):
    """As in many a tutorial; `forbidden` masks where the mask is true, and not where it is false."""

    def __init__(self, causal: bool = False, forbidden: bool = False, dropout: float | None = None) -> None:
        super().__init__()
        self.num_heads, self.causal, self.forbidden = 2, causal, forbidden
        self.q_proj, self.out_proj = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.k_proj, self.v_proj = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)
        if dropout is not None:
            self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, 4)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / 2
        if self.causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(mask if self.forbidden else ~mask, -torch.inf)
        elif mask is not None:
            scores = scores + mask
        return self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Rotary(StandardAttention):
    def forward(self, x: Tensor, position_embeddings: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + position_embeddings)


class Tupled(StandardAttention):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(x), None


class Broken(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyboardInterrupt


def test_what_fits_is_swapped_and_computes_the_same(
    patching: ModuleType, plain: ModuleType, layers: ModuleType
) -> None:
    norm = nn.LayerNorm(8)
    model = nn.Sequential(
        norm, LlamaMLP(nn.SiLU()), StandardAttention(), StandardAttention(causal=True), plain.PlainAttention(8, 2, 1),
        nn.ModuleList([plain.PlainAttentionLayerNorm(8, 2), plain.PlainMultiLayerPerceptron(8, 12)]), norm,
    )  # fmt: skip
    model[5].forward = lambda x: model[5][1](model[5][0](x))
    model.eval()
    x, keys, rng = torch.randn(2, 6, 8), list(model.state_dict()), torch.get_rng_state()
    wanted = model(x)
    report = patching.patch(model)
    assert torch.equal(torch.get_rng_state(), rng)
    assert list(report.swapped) == ["0", "1", "2", "3", "4", "5.0", "5.1", "6"]
    assert report.skipped == {}
    assert [type(m).__name__ for m in model] == [
        "LayerNorm", "MultiLayerPerceptron", *["OptimizedAttention"] * 3, "ModuleList", "LayerNorm",
    ]  # fmt: skip
    assert model[0] is model[6]
    assert [m.is_causal for m in model[2:5]] == [False, True, True]
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)


def test_optimisers_and_tied_weights_keep_their_parameters(patching: ModuleType) -> None:
    model = nn.ModuleDict({"mlp": LlamaMLP(nn.SiLU()), "norm": nn.LayerNorm(8), "head": nn.Linear(8, 12, bias=False)})
    model["head"].weight = model["mlp"].up_proj.weight
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [id(p) for p in model.parameters()]
    report = patching.patch(model)
    assert [id(p) for p in model.parameters()] == before
    assert model["head"].weight is model["mlp"].up_proj.weight
    old = model["norm"].weight.clone()
    (model["norm"](torch.randn(3, 8)) * torch.randn(8)).sum().backward()
    optimiser.step()
    report.undo()
    assert not torch.equal(model["norm"].weight, old)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (LlamaMLP(nn.GELU()), "it computes something else: off by"),
        (LlamaMLP(nn.SiLU(), bias=True), "gate_proj has a bias"),
        (StandardAttention(dropout=0.1), "has dropout"),
        (StandardAttention(forbidden=True), "with a mask, it returns zeros or nan"),
        (Rotary(), "its forward takes position_embeddings"),
        (Tupled(), "it returns tuple, not a tensor"),
        (nn.LayerNorm(8, bias=False), "has no weight and bias"),
        (nn.MultiheadAttention(8, 2), "has packed projections and biases"),
        (LlamaMLP(nn.SiLU()).to("meta"), "its weights are on the meta device"),
    ],
)
def test_what_does_not_fit_stays_and_the_report_says_why(patching: ModuleType, module: nn.Module, why: str) -> None:
    model = nn.ModuleDict({"layer": module})
    report = patching.patch(model)
    assert model["layer"] is module
    assert report.swapped == {}
    assert report.skipped["layer"].startswith(why)
    assert f"layer  stays: {why}" in str(report)


def test_modules_in_use_stay(patching: ModuleType, plain: ModuleType) -> None:
    hooked, wrapped, cached = nn.LayerNorm(8), LlamaMLP(nn.SiLU()), plain.PlainAttention(8, 2)
    hooked.register_forward_hook(lambda module, inputs, output: None)
    wrapped.forward = lambda x: x
    cached(torch.randn(1, 2, 8), input_pos=0)
    report = patching.patch(nn.ModuleDict({"hooked": hooked, "wrapped": wrapped, "cached": cached}))
    assert report.skipped["hooked"] == "has hooks"
    assert report.skipped["wrapped"] == "its forward was replaced"
    assert report.skipped["cached"] == "its cache is in use; call reset_cache() first"


def test_mode_dtype_and_further_attributes_come_along(patching: ModuleType) -> None:
    model = nn.Sequential(LlamaMLP(nn.SiLU()), nn.LayerNorm(8)).to(torch.bfloat16).eval()
    model[0].act_fn.train()
    model[1].name = "the last one"
    patching.patch(model)
    assert [m.training for m in (model[0], model[0].up_proj, model[0].act_fn, model[1])] == [False, False, True, False]
    assert model[0].hidden_size == 8
    assert model[1].name == "the last one"
    assert model(torch.randn(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_undone_the_very_old_modules_are_back_with_what_happened_since(patching: ModuleType) -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.Sequential(LlamaMLP(nn.SiLU())))
    old = model[0], model[1][0]
    report = patching.patch(model)
    model.eval()
    state = {name: torch.full_like(value, 3) for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    report.undo()
    report.undo()
    assert (model[0], model[1][0]) == old
    assert not model[0].training
    assert (model[0].weight == 3).all()


def test_a_copy_of_a_patched_model_can_be_unpatched(patching: ModuleType, layers: ModuleType) -> None:
    model = nn.Sequential(nn.LayerNorm(8), LlamaMLP(nn.SiLU()))
    patching.patch(model)
    twin = copy.deepcopy(model)
    patching.unpatch(twin)
    assert [type(m) for m in twin] == [nn.LayerNorm, LlamaMLP]
    assert type(model[0]) is layers.LayerNorm
    assert twin[0].weight is not model[0].weight


def test_patching_twice_changes_nothing_more(patching: ModuleType) -> None:
    model = nn.Sequential(nn.LayerNorm(8))
    first = patching.patch(model)
    assert patching.patch(model).swapped == {}
    first.undo()
    assert type(model[0]) is nn.LayerNorm


def test_only_the_rules_given_are_followed(patching: ModuleType) -> None:
    model = nn.Sequential(nn.LayerNorm(8), LlamaMLP(nn.SiLU()))
    assert list(patching.patch(model, rules=[patching.layernorm]).swapped) == ["0"]


def test_a_model_that_is_one_such_module_is_told_so(patching: ModuleType) -> None:
    assert patching.patch(nn.LayerNorm(8)).skipped == {"": "is the model itself: nothing holds it"}


def test_whatever_a_models_own_code_raises_leaves_it_whole(patching: ModuleType) -> None:
    model = nn.Sequential(nn.LayerNorm(8), Broken(nn.SiLU()))
    with pytest.raises(KeyboardInterrupt):
        patching.patch(model)
    assert type(model[0]) is nn.LayerNorm


def test_without_an_operator_its_modules_stay(tmp_path_factory: pytest.TempPathFactory) -> None:
    bare = assemble(tmp_path_factory.mktemp("package"), "patching_bare", ())
    patch = importlib.import_module(f"{bare.__name__}.patching").patch
    report = patch(nn.Sequential(nn.LayerNorm(8), LlamaMLP(nn.SiLU()), StandardAttention()))
    assert report.skipped == {"0": "this package has no layernorm", "1": "this package has no mlp"}
    assert report.swapped == {"2": "StandardAttention -> OptimizedAttention"}
