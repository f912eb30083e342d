"""The two forms of a torch source, made ready to be called on given tensors: an extension's `forward`, and `ModelNew`.

Not covered: how a text becomes callable (torch_build.py), and calling (torch_calls.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sandbox.worker.torch_build import BuildFailure, said

CONSTRUCTION_SEED = 0
"""The reference is constructed under it, too: what is random in both and no parameter agrees, as its users expect."""


class LaunchFailure(Exception):
    """The candidate could not be constructed or called, or returned something else than was wanted."""

    stage = "launch"


class Extension:
    """`forward(in-outs, inputs, scalars)`; for a task made of a PyTorch file its arguments, then its weights."""

    def __init__(self, forward: Callable[..., Any], shape: dict[str, Any] | None) -> None:
        self.forward, self.shape = forward, shape

    def on(self, tensors: list[Tensor], scalars: list[Any]) -> Callable[[], Any]:
        """The call on these tensors."""
        if self.shape is None:
            arguments = [*tensors, *scalars]
        else:
            weights = tensors[len(tensors) - len(self.shape["weights"]) :]
            arguments = [*_arguments(self.shape, tensors), *weights]
        return lambda: self.forward(*arguments)


class Module:
    """An instance of `ModelNew`; its parameters are made to lie in the arena before each call."""

    def __init__(self, kind: type[torch.nn.Module], shape: dict[str, Any] | None, target: str) -> None:
        self.shape = shape
        init = [decoded(value) for value in shape["init"]] if shape else []
        keywords = {name: decoded(value) for name, value in shape.get("keywords", {}).items()} if shape else {}
        torch.manual_seed(CONSTRUCTION_SEED)
        try:
            self.instance = kind(*init, **keywords).to(target).train(shape is None or shape["mode"] == "train")
        except BuildFailure:
            raise
        except Exception as exc:
            raise BuildFailure(f"ModelNew could not be constructed: {said(exc)}") from exc

    def on(self, tensors: list[Tensor], scalars: list[Any]) -> Callable[[], Any]:
        """The call on these tensors; LaunchFailure where a weight has no place in the module."""
        if self.shape is None:
            return lambda: self.instance(*tensors, *scalars)
        weights = tensors[len(tensors) - len(self.shape["weights"]) :]
        arguments = _arguments(self.shape, tensors)
        pairs = _places(self.instance, dict(zip(self.shape["weights"], weights, strict=True)))

        def forward() -> Any:
            for place, value in pairs:
                place.data = value
            return self.instance(*arguments)

        return forward


def decoded(value: Any) -> Any:
    """A value that travelled as JSON: a tuple is an object with the one key `tuple`, a dict one with the key `dict`."""
    if isinstance(value, dict) and set(value) == {"tuple"}:
        return tuple(decoded(item) for item in value["tuple"])
    if isinstance(value, dict):
        return {name: decoded(item) for name, item in value["dict"].items()}
    return [decoded(item) for item in value] if isinstance(value, list) else value


def _arguments(shape: dict[str, Any], tensors: list[Tensor]) -> list[Any]:
    return [
        decoded(argument["value"])
        if "value" in argument
        else tensors[argument["index"]].view(torch.bool)
        if argument["boolean"]
        else tensors[argument["index"]]
        for argument in shape["arguments"]
    ]


def _places(instance: torch.nn.Module, weights: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Which parameter or buffer takes which weight: by name and shape, then in order of those of equal shape."""
    named = {**dict(instance.named_parameters()), **dict(instance.named_buffers())}
    pairs = {name: name for name, value in weights.items() if name in named and named[name].shape == value.shape}
    free = [name for name, _ in instance.named_parameters() if name not in pairs]
    for name in [name for name in weights if name not in pairs]:
        match = next((other for other in free if named[other].shape == weights[name].shape), None)
        if match is None:
            raise LaunchFailure(_homeless(name, weights[name], {other: named[other] for other in free}))
        free.remove(match)
        pairs[name] = match
    for name, other in pairs.items():
        if named[other].dtype != weights[name].dtype:
            got, wanted = short(named[other].dtype), short(weights[name].dtype)
            raise LaunchFailure(
                f"parameter {other} of ModelNew is {got}, wanted {wanted} as {name} is in the reference"
            )
    return [(named[other], weights[name]) for name, other in pairs.items()]


def _homeless(name: str, value: Tensor, free: dict[str, Tensor]) -> str:
    left = ", ".join(f"{other} {list(parameter.shape)}" for other, parameter in free.items()) or "none"
    return (
        f"ModelNew has no parameter for {name} {list(value.shape)} of the reference, by name or by shape in order; "
        f"it has left over: {left}"
    )


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
