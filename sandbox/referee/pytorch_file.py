"""A user's PyTorch file as a reference: `class Model(nn.Module)`, `get_inputs()` and `get_init_inputs()`.

Weights are inputs like any other, so that nothing can be baked into a kernel: they are set in the model before each
call. Values follow what the file itself draws, under a secret seed, then rescaled at random; another batch size is cut
from as many draws as it takes. Not covered: what shapes and dtypes there are (describing.py).
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sandbox.contract import ModuleForm, ValueArgument
from sandbox.errors import TaskError

CONSTRUCTION_SEED = 0
"""The same as for a `ModelNew` in the worker."""
WANTED = ("Model", "get_inputs", "get_init_inputs")


def load(path: Path, siblings: Path) -> ModuleType:
    """The file as a module; what it imports is also looked for in `siblings`. TaskError where a part is missing."""
    sys.path.append(str(siblings))
    spec = importlib.util.spec_from_file_location("pytorch_file", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if missing := [name for name in WANTED if not callable(getattr(module, name, None))]:
        raise TaskError(f"no {', '.join(missing)}; wanted class Model(nn.Module), get_inputs() and get_init_inputs()")
    return module


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Everything that a file may draw from, seeded; torch's own generators are put back afterwards."""
    random.seed(seed)
    with contextlib.suppress(ImportError):
        import numpy

        numpy.random.seed(seed % 2**32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def construct(module: ModuleType, seed: int = CONSTRUCTION_SEED) -> torch.nn.Module:
    """A new Model of what get_init_inputs() gives."""
    with seeded(seed):
        positional, keywords = init_of(module)
        model: torch.nn.Module = module.Model(*positional, **keywords)
    return model


def init_of(module: ModuleType) -> tuple[list[Any], dict[str, Any]]:
    """get_init_inputs() as positional arguments and keywords: a list, a dict, or a list of these two.

    TaskError where it is something else.
    """
    found = module.get_init_inputs()
    if isinstance(found, dict):
        return [], found
    if not isinstance(found, list | tuple):
        raise TaskError(f"get_init_inputs() returned a {type(found).__name__}; wanted a list of arguments")
    match found:
        case [[*positional], dict() as keywords] if all(isinstance(name, str) for name in keywords):
            return positional, keywords
    return list(found), {}


def inputs_of(module: ModuleType) -> list[Any]:
    """One draw of get_inputs(). TaskError where it is no list of arguments."""
    found = module.get_inputs()
    if not isinstance(found, list | tuple):
        raise TaskError(f"get_inputs() returned a {type(found).__name__}; wanted a list of arguments")
    return list(found)


def drawn(module: ModuleType, batched: Sequence[int] = (), size: int = 0) -> list[Any]:
    """One draw of get_inputs(); its arguments at the positions `batched` get `size` rows.

    Rows that one draw lacks are those of further draws, so that each is drawn as the file draws it.
    """
    draws = [inputs_of(module)]
    while batched and size > len(draws) * len(draws[0][batched[0]]):
        draws.append(inputs_of(module))
    return [
        torch.cat([draw[i] for draw in draws])[:size] if i in batched else value for i, value in enumerate(draws[0])
    ]


def outputs_of(result: Any) -> tuple[Tensor, ...]:
    """What a model returned, as a task has it: at least one dimension, uint8 for bool."""
    found = (result,) if isinstance(result, Tensor) else tuple(result)
    return tuple(
        (value.to(torch.uint8) if value.dtype == torch.bool else value).reshape(value.shape or (1,)) for value in found
    )


def moved(model: torch.nn.Module, device: str) -> torch.nn.Module:
    """On `device`, tensors that are plain attributes included."""
    for part, name, value in list(_plain(model.to(device))):
        setattr(part, name, value.to(device))
    return model


def widened(model: torch.nn.Module) -> torch.nn.Module:
    """A copy in float64, tensors that are plain attributes included."""
    wide = copy.deepcopy(model).double()
    for part, name, value in list(_plain(wide)):
        if value.is_floating_point():
            setattr(part, name, value.double())
    return wide


def _plain(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, Tensor]]:
    """Tensors that are attributes and neither parameters nor buffers: their module and their name in it."""
    for part in model.modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                yield part, name, value


Placed = tuple[torch.nn.Module, list[Tensor]]
"""A model, and those of its parameters and buffers that the task's weights take the place of."""


class PytorchFile:
    """reference, oracle, compiled and draw of a task that was made of a PyTorch file."""

    def __init__(
        self, path: str, siblings: str, form: str, rigid: Sequence[int], axis: str = "", batched: Sequence[int] = ()
    ) -> None:
        self.module = load(Path(path), Path(siblings))
        self.form = ModuleForm.model_validate_json(form)
        self.rigid = tuple(rigid)
        self.axis, self.batched = axis, tuple(batched)
        self.models: dict[tuple[str, bool], Placed] = {}

    def model(self, device: str, wide: bool = False) -> Placed:
        """The one instance on `device`, in its own precision or in float64."""
        if (device, wide) not in self.models:
            made = widened(self.model(device)[0]) if wide else moved(construct(self.module), device)
            made = made.train(self.form.mode == "train").requires_grad_(False)
            self.models[device, wide] = made, places(made, self.form.weights)
        return self.models[device, wide]

    def reference(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The model's answer in its own precision."""
        return self._answer(self.model(values[0].device.type), values)

    def oracle(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The same in float64."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return self._answer(self.model(values[0].device.type, wide=True), values)
        finally:
            torch.set_default_dtype(before)

    def compiled(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The same as `reference`, in the way that torch.compile can follow."""
        given, weights = self._split(values)
        model, homes = self.models[values[0].device.type, False]
        fitting = [_as_placed(weight, place) for place, weight in zip(homes, weights, strict=True)]
        named = dict(zip(self.form.weights, fitting, strict=True))
        return outputs_of(torch.func.functional_call(model, named, self._arguments(given)))

    def _answer(self, placed: Placed, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        model, homes = placed
        given, weights = self._split(values)
        # functional_call would cost more than many a kernel, and make the baseline look slow.
        for place, weight in zip(homes, weights, strict=True):
            place.data = _as_placed(weight, place)
        return outputs_of(model(*self._arguments(given)))

    def _split(self, values: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        at = len(values) - len(self.form.weights)
        return values[:at], values[at:]

    def _arguments(self, given: Sequence[Tensor]) -> tuple[Any, ...]:
        return tuple(
            decoded(argument.value)
            if isinstance(argument, ValueArgument)
            else given[argument.index].bool()
            if argument.boolean
            else given[argument.index]
            for argument in self.form.arguments
        )

    def draw(self, seed: int, distribution: str, device: str, axes: Mapping[str, int] | None = None) -> list[Tensor]:
        """Inputs as get_inputs() gives them, bent towards `distribution` where the model can bear it; then weights.

        `axes` says how many rows the inputs with a batch axis get; they have as many as the file gives them without.
        """
        batched = self.batched if axes else ()
        with seeded(seed):
            given = drawn(self.module, batched, axes[self.axis] if axes else 0)
        inputs = [value.to(device) for value in given if isinstance(value, Tensor)]
        fresh = dict(state(construct(self.module, seed + 1)))
        with seeded(seed + 2):
            weights = [
                _as_held(fresh[name].to(device)) if i in self.rigid else perturbed(fresh[name].to(device))
                for i, name in enumerate(self.form.weights, start=len(inputs))
            ]
            plain = [_as_held(value) for value in inputs]
            bent = [value if i in self.rigid else reshaped(value, distribution) for i, value in enumerate(plain)]
        return [*(bent if self._bears([*bent, *weights], distribution) else plain), *weights]

    def _bears(self, values: Sequence[Tensor], distribution: str) -> bool:
        """A logarithm of what has become negative would make an oracle of NaN, which nothing can be compared with.

        Nor can positions among equal values, of which several are right.
        """
        with torch.no_grad():
            answers = self.reference(*values)
        if distribution == "equal_rows" and not all(answer.is_floating_point() for answer in answers):
            return False
        return all(bool(answer.isfinite().all()) for answer in answers)


def places(model: torch.nn.Module, names: Sequence[str]) -> list[Tensor]:
    """Parameters, buffers and other attributes by name."""
    found = dict(state(model))
    return [found[name] for name in names]


def state(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and tensors that are plain attributes, by name."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    paths = {part: f"{path}." if path else "" for path, part in model.named_modules()}
    for part, name, value in _plain(model):
        yield paths[part] + name, value


def _as_held(value: Tensor) -> Tensor:
    return (value.to(torch.uint8) if value.dtype == torch.bool else value).contiguous()


def _as_placed(value: Tensor, place: Tensor) -> Tensor:
    return value.bool() if place.dtype == torch.bool else value


# ---------------------------------------------------------------- JSON


def encoded(value: Any) -> Any:
    """A constant as JSON, a tuple as an object with the one key `tuple`, a dict with the one key `dict`.

    TaskError where that cannot be.
    """
    if isinstance(value, tuple):
        return {"tuple": [encoded(item) for item in value]}
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {"dict": {name: encoded(item) for name, item in value.items()}}
    if isinstance(value, list):
        return [encoded(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        raise TaskError("got tensors within a list, tuple or dict; wanted each as an argument of its own")
    raise TaskError(
        f"got an argument of type {type(value).__name__}; wanted tensors, and as constants numbers, strings, None, "
        "lists, tuples and dicts of them"
    )


def decoded(value: Any) -> Any:
    """What `encoded` was given."""
    if isinstance(value, dict) and "dict" in value:
        return {name: decoded(item) for name, item in value["dict"].items()}
    if isinstance(value, dict):
        return tuple(decoded(item) for item in value["tuple"])
    return [decoded(item) for item in value] if isinstance(value, list) else value


# ---------------------------------------------------------------- values


def _between(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def perturbed(value: Tensor) -> Tensor:
    """A weight with another scale; ones stay positive and zeros do not stay zeros, as after training."""
    if not value.is_floating_point():
        return value.detach().contiguous()
    start = value.detach().flatten()[:1].float()
    if bool((value == value.flatten()[0]).all()):
        noise = torch.randn(value.shape, device=value.device)
        drawn = start * (0.3 * noise).exp() if bool(start != 0) else noise * _between(0.05, 0.5)
        return drawn.to(value.dtype).contiguous()
    return (value.detach() * _between(0.5, 1.5)).contiguous()


def reshaped(value: Tensor, distribution: str) -> Tensor:
    """Values bent towards one of the judge's distributions; signs are kept, so that what was positive stays so."""
    if not value.is_floating_point():
        return value
    value = value * _between(0.5, 2.0)
    chance = torch.rand(value.shape, device=value.device)
    if distribution == "shifted":
        spread = float(value.float().std(correction=0))
        sign = -1.0 if bool((value < 0).any()) and _between(0, 1) < 0.5 else 1.0
        return value + sign * spread * _between(2.0, 8.0)
    if distribution == "outliers":
        return torch.where(chance < 0.003, value * _between(10.0, 40.0), value)
    if distribution == "sharp":
        return value * _between(2.0, 4.0)
    if distribution == "equal_rows" and value.dim():
        return torch.where(chance[..., :1] < 0.25, value[..., :1].expand(value.shape), value).contiguous()
    if distribution == "amplified_tail":
        value.view(-1)[int(value.numel() * _between(0.7, 0.95)) :] *= _between(4.0, 8.0)
    return value
