"""Puts this package's layers in the place of a model's own modules, and takes them out again.

    report = patch(model); print(report); …; report.undo()

Swapped are torch.nn.LayerNorm, the plain twins, and modules of other classes that are built like them and give the
same results on random input. Their parameters stay the very same objects, so optimisers and tied weights keep working.
Not covered: the model itself where it is one such module, since nothing holds it, and code that keeps references to
modules of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from . import operators
from .layers import FusedAttentionLayerNorm, LayerNorm, MultiLayerPerceptron, OptimizedAttention
from .plain import PlainAttention, PlainAttentionLayerNorm, PlainMultiLayerPerceptron

__all__ = ["Report", "patch", "unpatch"]

Rule = Callable[[nn.Module], "nn.Module | str | None"]
"""For a module: what takes its place, sharing its parameters; or why one that looks fitting stays; else None."""

OWN = (FusedAttentionLayerNorm, LayerNorm, MultiLayerPerceptron, OptimizedAttention)
HEADS = ("n_heads", "num_heads", "n_head", "num_attention_heads", "heads")
"""What classes call the number of their heads."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Largest relative L2 difference of results that count as the same; float32 may be computed as TF32."""
FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Of a forward that takes something else than a tensor of floating-point numbers."""


@dataclass(frozen=True)
class Swap:
    """One module in its place."""

    parent: nn.Module
    name: str
    """In the parent."""
    old: nn.Module
    new: nn.Module

    def do(self) -> None:
        setattr(self.parent, self.name, self.new)

    def undo(self) -> None:
        if self.parent._modules.get(self.name) is self.new:
            self.old.training = self.new.training
            setattr(self.parent, self.name, self.old)


@dataclass(frozen=True)
class Report:
    """What became of every module that one of the rules knew."""

    swapped: dict[str, str] = field(default_factory=dict)
    """Module name -> `old class -> new class`."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Module name -> why it stayed."""
    swaps: list[Swap] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Every old module back in its place; a second time does nothing."""
        for swap in self.swaps:
            swap.undo()

    def __str__(self) -> str:
        lines = {**self.swapped, **{name: f"stays: {why}" for name, why in self.skipped.items()}}
        width = max((len(name or "(model)") for name in lines), default=0)
        heading = f"{len(self.swapped)} swapped, {len(self.skipped)} left as they were"
        return "\n".join([heading, *(f"  {name or '(model)':{width}}  {what}" for name, what in lines.items())])


def patch(model: nn.Module, *, rules: Sequence[Rule] | None = None) -> Report:
    """Swap what `rules` know, by default all of RULES; modules that are ours already are passed over."""
    report = Report()
    chosen = RULES if rules is None else tuple(rules)
    answer = consider(model, chosen)
    if answer is not None:
        report.skipped[""] = answer if isinstance(answer, str) else "is the model itself: nothing holds it"
        return report
    _visit(model, "", chosen, report, {})
    for swap in report.swaps:  # only now, so that whatever a model's own code raises leaves the model whole
        swap.do()
    return report


def unpatch(model: nn.Module) -> None:
    """Every module that any `patch` replaced back in its place, also in a copy of the patched model."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            old = vars(child).get("_replaced") if child is not None else None
            if child is not None and old is not None:
                Swap(parent, name, old, child).undo()


def consider(module: nn.Module, rules: Sequence[Rule]) -> nn.Module | str | None:
    """What the first rule that knows the module says."""
    if isinstance(module, OWN):
        return None
    answer = next((answer for rule in rules if (answer := rule(module)) is not None), None)
    return answer if answer is None or isinstance(answer, str) else own_ways(module) or answer


def _visit(
    parent: nn.Module, prefix: str, rules: Sequence[Rule], report: Report, known: dict[nn.Module, nn.Module | None]
) -> None:
    """Children in order; one that stands in several places has the same replacement in all of them."""
    for name, child in list(parent._modules.items()):
        if child is None or isinstance(child, OWN):
            continue
        path = f"{prefix}{name}"
        if child not in known:
            answer = consider(child, rules)
            if isinstance(answer, str):
                report.skipped[path] = answer
            known[child] = inherit(child, answer) if isinstance(answer, nn.Module) else None
            if known[child] is None:
                _visit(child, f"{path}.", rules, report, known)
        new = known[child]
        if new is not None:
            report.swaps.append(Swap(parent, name, child, new))
            report.swapped[path] = f"{type(child).__name__} -> {type(new).__name__}"


def inherit(old: nn.Module, new: nn.Module) -> nn.Module:
    """Mode, further attributes and further children of the old module, in its order, and the old module itself."""
    for name, value in vars(old).items():
        vars(new).setdefault(name, value)
    children = {**old._modules, **new._modules}  # the order of parameters is that of an optimiser's state
    new._modules.clear()
    new._modules.update(children)
    new.training = old.training
    vars(new)["_replaced"] = old  # past nn.Module, which would make it a child
    return new


def own_ways(module: nn.Module) -> str | None:
    """What would be lost with the module."""
    if any(getattr(module, hooks, None) for hooks in HOOKS):
        return "has hooks"
    if "forward" in vars(module):
        return "its forward was replaced"
    if type(module).__call__ is not nn.Module.__call__:
        return "its class defines __call__"
    return None


# ---------------------------------------------------------------- rules


def layernorm(module: nn.Module) -> nn.Module | str | None:
    """torch.nn.LayerNorm itself; a subclass may compute something else."""
    if type(module) is not nn.LayerNorm:
        return None
    if module._parameters["weight"] is None or module._parameters["bias"] is None:
        return "has no weight and bias; PyTorch's own would be called"
    if "layernorm" not in operators.NAMES:
        return "this package has no layernorm"
    if why := own_ways(module):
        return why
    new = LayerNorm(module.normalized_shape, module.eps, device="meta")
    new._parameters = module._parameters  # the dict itself: undone, the old module has what was loaded since
    return new


def plain_attention(module: nn.Module) -> nn.Module | str | None:
    """The plain twins of both attention layers."""
    if not isinstance(module, PlainAttention) or type(module) not in (PlainAttention, PlainAttentionLayerNorm):
        return None
    if module.past is not None:
        return "its cache is in use; call reset_cache() first"
    if why := own_ways(module):
        return why
    sizes = module.d_model, module.n_heads, module.n_kv_heads
    if not isinstance(module, PlainAttentionLayerNorm):
        return shared(module, OptimizedAttention(*sizes, is_causal=module.is_causal, device="meta"), ATTENTION)
    fused = FusedAttentionLayerNorm(*sizes, eps=module.norm.eps, is_causal=module.is_causal, device="meta")
    return shared(module, fused, (*ATTENTION, "norm"))


def gated_mlp(module: nn.Module) -> nn.Module | str | None:
    """The plain twin, and classes with Llama's three projections that compute the same."""
    if any(name not in module._modules for name in MLP):
        return None
    if "mlp" not in operators.NAMES:
        return "this package has no mlp"
    why = unlike(module, MLP, optional=())
    gate, up, down = (module._modules[name] for name in MLP)
    if why or not all(isinstance(linear, nn.Linear) for linear in (gate, up, down)):
        return why
    assert isinstance(gate, nn.Linear)
    assert isinstance(up, nn.Linear)
    assert isinstance(down, nn.Linear)
    if not gate.weight.shape == up.weight.shape == down.weight.shape[::-1]:
        return "its projections do not fit together"
    new = shared(module, MultiLayerPerceptron(gate.in_features, gate.out_features, device="meta"), MLP)
    if type(module) is PlainMultiLayerPerceptron:
        return new
    with torch.no_grad():
        x = draw(gate, 2, 3)
        # So that gates are where activations differ from each other.
        x = x * (2 / gate(x).float().std()).nan_to_num(1, posinf=1).to(x.dtype)
    return differs(module, new, [(x,)]) or new


def attention(module: nn.Module) -> nn.Module | str | None:
    """Classes with the projections of OptimizedAttention, whose forward(x[, mask]) computes the same."""
    if any(name not in module._modules for name in ATTENTION[:3]):
        return None
    if why := unlike(module, ATTENTION, optional=("mask",)):
        return why
    q, k = module._modules["q_proj"], module._modules["k_proj"]
    assert isinstance(q, nn.Linear)
    assert isinstance(k, nn.Linear)
    heads = next((n for name in HEADS if isinstance(n := getattr(module, name, None), int) and n > 0), None)
    if heads is None:
        return f"its number of heads is none of {', '.join(HEADS)}"
    if q.out_features != q.in_features or q.in_features % heads or k.out_features % (q.in_features // heads):
        return f"its projections do not fit {heads} heads"
    kv_heads = k.out_features // (q.in_features // heads)
    if heads % kv_heads:
        return f"its projections do not fit {heads} heads"
    found = [
        shared(module, OptimizedAttention(q.in_features, heads, kv_heads, is_causal=causal, device="meta"), ATTENTION)
        for causal in (True, False)
    ]
    x = draw(q, 2, 5)
    reasons = [differs(module, new, [(x,)]) for new in found]
    if all(reasons):
        return reasons[0]
    new = found[reasons.index(None)]
    if "mask" in inspect.signature(type(module).forward).parameters:
        seen = (torch.arange(5)[:, None] + torch.arange(5)) % 3 != 1
        seen = (seen | torch.eye(5, dtype=torch.bool)).to(x.device)
        added = torch.where(seen, 0.5, -float("inf")).to(x.dtype)
        why = differs(module, new, [(x, seen), (x, added)])
        return f"with a mask, {why}" if why else new
    return new


def other_attention(module: nn.Module) -> str | None:
    return "has packed projections and biases" if isinstance(module, nn.MultiheadAttention) else None


RULES: tuple[Rule, ...] = (layernorm, plain_attention, attention, gated_mlp, other_attention)


# ---------------------------------------------------------------- are they the same?


def shared(old: nn.Module, new: nn.Module, names: Sequence[str]) -> nn.Module:
    """The new module with these children of the old one."""
    for name in names:
        setattr(new, name, old._modules[name])
    return new


def unlike(module: nn.Module, projections: Sequence[str], optional: Sequence[str]) -> str | None:
    """Why a module is not made of bias-free projections alone, or what else its forward takes."""
    if why := own_ways(module):
        return why
    for name in projections:
        linear = module._modules.get(name)
        if type(linear) is not nn.Linear:
            return f"{name} is {'missing' if linear is None else type(linear).__name__}, wanted torch.nn.Linear"
        if linear._parameters["bias"] is not None:
            return f"{name} has a bias"
        if linear.weight.is_meta:
            return "its weights are on the meta device, so that nothing can be compared"
    others = [child for name, child in module._modules.items() if name not in projections and child is not None]
    if module._parameters or module._buffers or any(list(child.state_dict()) for child in others):
        return "has parameters or buffers besides its projections"
    if any(getattr(child, "p", 0) for child in others):
        return "has dropout"
    return takes_more(module, optional)


def takes_more(module: nn.Module, optional: Sequence[str]) -> str | None:
    _, *parameters = inspect.signature(type(module).forward).parameters.values()
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    more = [p.name for p in parameters[1:] if p.name not in optional or p.default is not None or p.kind not in plain]
    if not parameters or parameters[0].kind not in plain:
        return "its forward takes no tensor"
    return f"its forward takes {', '.join(more)}" if more else None


def draw(linear: nn.Linear, *leading: int) -> Tensor:
    """Random input of [*leading, in_features]; the global generators stay where they are."""
    values = torch.randn(*leading, linear.in_features, generator=torch.Generator().manual_seed(0))
    return values.to(linear.weight.device, linear.weight.dtype)


def differs(old: nn.Module, new: nn.Module, calls: Sequence[tuple[Tensor, ...]]) -> str | None:
    """Run both, in training and in eval mode, and say in what their results differ."""
    for training in (True, False):
        with mode(old, training), mode(new, training):
            for call in calls:
                try:
                    with torch.no_grad():
                        wanted, got = old(*call), new(*call)
                except FAILURES as exc:
                    return f"it cannot be tried: {exc}".partition("\n")[0]
                why = apart(got, wanted)
                if why:
                    return why
    return None


def apart(got: Tensor, wanted: object) -> str | None:
    if not isinstance(wanted, Tensor):
        return f"it returns {type(wanted).__name__}, not a tensor"
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return f"it returns {list(wanted.shape)} {wanted.dtype}, not {list(got.shape)} {got.dtype}"
    length = wanted.double().norm()
    if not length > 0:
        return "it returns zeros or nan, so that nothing can be compared"
    error = float((got.double() - wanted.double()).norm() / length)
    return None if error <= TOLERANCES.get(wanted.dtype, 2e-3) else f"it computes something else: off by {error:.1g}"


@contextmanager
def mode(module: nn.Module, training: bool) -> Iterator[None]:
    """In training or eval mode for a while, random numbers drawn meanwhile undone."""
    before = {child: child.training for child in module.modules()}
    devices = {p.device for p in module.parameters() if p.device.type != "cpu"}
    with torch.random.fork_rng(devices, device_type=next(iter(devices)).type if devices else "cpu"):
        try:
            module.train(training)
            yield
        finally:
            for child, was in before.items():
                child.training = was
