"""What a user's PyTorch file computes: `python -m sandbox.referee.describing FILE DEVICE OUT PURPOSE` writes it to OUT.

JSON. PURPOSE is `kernels`, which know nothing but their arguments, or `modules`, which take the model's place. Runs the
file, which is the user's own. A last line on stderr that starts with the name of TaskError says what is wrong with it.
Not covered: the task that is made of this (agent/importing.py).
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from sandbox.contract import ITEMSIZE
from sandbox.errors import TaskError
from sandbox.referee import batching, pytorch_file
from sandbox.referee.batching import AXIS, Batch
from sandbox.referee.pytorch_file import (
    construct,
    encoded,
    init_of,
    inputs_of,
    moved,
    outputs_of,
    places,
    seeded,
    state,
)

_STATE_SEED = 1
_KEPT_DRAWS = 12
"""Inputs and expected outputs, the latter in float64, that the judge holds in memory; about as many as it draws."""


def describe(path: Path, device: str, kernels: bool) -> dict[str, Any]:
    """Inputs, weights, outputs and how they reach the model; TaskError where no task can be made of it.

    Shapes are strings. For `kernels` they are over batching.AXIS where the model has a batch axis, and tables count as
    weights: buffers that stay as the constructor makes them.
    """
    module = pytorch_file.load(path, path.parent)
    positional, keywords = init_of(module)
    _require_room(_promised(module), device)
    given, others = _draws(module)
    arguments = _arguments(given)
    tensors = [value.to(device) for value in given if isinstance(value, Tensor)]
    mode, outputs, changed = _tried(module, given, device)
    model = moved(construct(module), device).train(mode == "train")
    weights = _weights(model, changed)
    tables = _tables(model, {*changed, *dict(weights)}) if kernels else []
    _require_room(sum(value.nbytes for value in (*tensors, *dict((*weights, *tables)).values())), device)
    _require_same_shapes(model, _on(others, device), outputs)
    if not tensors and not weights:
        raise TaskError("get_inputs() gives no tensor and Model has no parameters; wanted something to compute with")
    if kernels:
        _require_nothing_hidden(module, [*dict(weights), *dict(tables)], mode, given, device)
    batch: Batch | str = "not looked for"
    if kernels:
        fixed = [i for i, value in enumerate(given) if isinstance(value, Tensor) and _is_ordered(value)]
        batch = batching.find(module, given, outputs, fixed, lambda values: _answer(model, _on(values, device)))
    known = batch if isinstance(batch, Batch) else None
    inputs = [
        _spec(name, value, batched=known is not None and at in known.inputs)
        for name, (at, value) in zip(_names(module, given), _tensors(given), strict=True)
    ]
    read = _bytes_read(module, (given, others), mode, device)
    scaled = sum(read[at] for at in known.inputs) if known else 0
    results = [_spec("", value) for value in outputs]
    if known:
        results = [{**spec, "shape": list(shape)} for spec, shape in zip(results, known.outputs, strict=True)]
        scaled += sum(value.nbytes for value, spec in zip(outputs, results, strict=True) if _follows(spec["shape"]))
    return {
        "summary": inspect.cleandoc(module.Model.__doc__ or "").split("\n")[0],
        "init": [encoded(value) for value in positional],
        "keywords": {name: encoded(value) for name, value in keywords.items()},
        "mode": mode,
        "arguments": arguments,
        "inputs": inputs,
        "weights": [_spec(name, value) for name, value in (*weights, *tables)],
        "outputs": results,
        "rigid": [
            *(i for i, value in enumerate(tensors) if _is_rigid(value)),
            *(len(tensors) + len(weights) + i for i in range(len(tables))),
        ],
        "bytes": sum(value.nbytes for value in outputs) + sum(read.values()) - scaled,
        "batch": {"size": known.size, "arguments": known.inputs, "others": known.others} if known else None,
        "batch_bytes": scaled,
        "why_fixed": batch if isinstance(batch, str) else "",
    }


def _draws(module: Any) -> list[list[Any]]:
    """Two draws of get_inputs(), seen to have the same shapes."""
    draws = []
    for seed in (_STATE_SEED, _STATE_SEED + 1):
        with seeded(seed):
            draws.append(inputs_of(module))
    if sparse := [i for i, value in _tensors(draws[0]) if value.layout != torch.strided]:
        raise TaskError(f"argument {sparse[0]} is {draws[0][sparse[0]].layout}; wanted a dense tensor")
    shapes = [[(v.shape, v.dtype) if isinstance(v, Tensor) else encoded(v) for v in draw] for draw in draws]
    if shapes[0] != shapes[1]:
        raise TaskError("get_inputs() gives other shapes or constants each time; wanted one problem size")
    return draws


def _promised(module: Any) -> int:
    """Bytes of what get_inputs() would give, none of them taken; 0 where only drawing tells."""
    try:
        with torch.device("meta"):
            given = inputs_of(module)
    # What stands in for a tensor has no values, and a file may fail without them in any way.
    except Exception:  # noqa: BLE001
        return 0
    return sum(value.nbytes for value in given if isinstance(value, Tensor))


def _require_room(size: int, device: str) -> None:
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    if size * _KEPT_DRAWS > free:
        raise TaskError(
            f"its inputs and weights, or its outputs in float64, take {size / 1e9:.1f} GB, of which the judge keeps "
            f"{_KEPT_DRAWS} draws, and {free / 1e9:.1f} GB are free; wanted a smaller problem"
        )


def _require_nothing_hidden(module: Any, names: Sequence[str], mode: str, given: Sequence[Any], device: str) -> None:
    """TaskError where a Model constructed under another seed, with the same tensors, answers otherwise."""
    answers = []
    for seed in (_STATE_SEED, _STATE_SEED + 1):
        model = moved(construct(module, seed), device).train(mode == "train").requires_grad_(False)
        for place, value in zip(places(model, names), places(moved(construct(module), device), names), strict=True):
            place.data = value.data
        with torch.no_grad():
            answers.append(_answer(model, _on(given, device)))
    if not _agree(*answers):
        raise TaskError(
            "Model holds random values beside its parameters, buffers and tensor attributes, which no kernel can know; "
            "wanted them as buffers"
        )


def _require_same_shapes(model: torch.nn.Module, arguments: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    with torch.no_grad():
        shapes = [list(value.shape) for value in outputs_of(model(*arguments))]
    wanted = [list(value.shape) for value in outputs]
    if shapes != wanted:
        raise TaskError(
            f"Model.forward gave shapes {wanted} and, for other values, {shapes}; wanted the same each time"
        )


def _tensors(given: Sequence[Any]) -> list[tuple[int, Tensor]]:
    """The arguments that are tensors, with their positions."""
    return [(i, value) for i, value in enumerate(given) if isinstance(value, Tensor)]


def _follows(shape: Sequence[str]) -> bool:
    return any(AXIS in size for size in shape)


def _arguments(given: Sequence[Any]) -> list[dict[str, Any]]:
    arguments: list[dict[str, Any]] = []
    for value in given:
        if isinstance(value, Tensor):
            index = sum("index" in argument for argument in arguments)
            arguments.append({"index": index, "boolean": value.dtype == torch.bool})
        else:
            arguments.append({"value": encoded(value)})
    return arguments


def _names(module: Any, given: Sequence[Any]) -> list[str]:
    """What Model.forward calls the tensors that it is given."""
    parameters = list(inspect.signature(module.Model.forward).parameters.values())[1:]
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named += [f"input{i}" for i in range(len(named), len(given))]
    return [name for name, value in zip(named, given, strict=False) if isinstance(value, Tensor)]


def _spec(name: str, value: Tensor, batched: bool = False) -> dict[str, Any]:
    dtype = _dtype(value)
    if dtype not in ITEMSIZE:
        raise TaskError(f"{name or 'an output'} is {dtype}, wanted one of {', '.join(ITEMSIZE)} or bool")
    if not value.numel():
        raise TaskError(f"{name} has no elements: its shape is {list(value.shape)}")
    shape = [*map(str, value.shape)]
    bounds = {} if value.is_floating_point() else {"low": int(value.min()), "high": int(value.max())}
    return {"name": name, "shape": [AXIS, *shape[1:]] if batched else shape, "dtype": dtype, **bounds}


def _dtype(value: Tensor) -> str:
    return "uint8" if value.dtype == torch.bool else str(value.dtype).removeprefix("torch.")


# ---------------------------------------------------------------- what the model does


def _on(given: Sequence[Any], device: str) -> list[Any]:
    return [value.to(device, copy=True) if isinstance(value, Tensor) else value for value in given]


def _tried(module: Any, given: Sequence[Any], device: str) -> tuple[str, tuple[Tensor, ...], frozenset[str]]:
    """The mode in which the answer depends on inputs and weights alone, that answer, and which state a call changes.

    Train, as a model starts, is preferred to eval.
    """
    for mode in ("train", "eval"):
        model = moved(construct(module), device).train(mode == "train")
        before = {name: (value, value.clone()) for name, value in state(model)}
        arguments = _on(given, device)
        with torch.no_grad():
            first = _answer(model, arguments)
            if changed := _changed(given, arguments):
                raise TaskError(
                    f"Model.forward changes {', '.join(changed)} in place; wanted a function of its inputs: a copy is "
                    "to be changed, or nothing inplace=True"
                )
            own = frozenset(name for name, value in state(model) if not _is_as_before(value, before.get(name)))
            if _agree(first, _answer(model, _on(given, device))) and _is_indifferent(model, own, first, given, device):
                return mode, first, own
    raise TaskError("Model gives other answers to the same inputs, in eval mode too; wanted a function of its inputs")


def _is_as_before(value: Tensor, before: tuple[Tensor, Tensor] | None) -> bool:
    """Whether it is the same object with the same values."""
    return before is not None and value is before[0] and torch.equal(value, before[1])


def _is_indifferent(
    model: torch.nn.Module, changed: frozenset[str], first: Sequence[Tensor], given: Sequence[Any], device: str
) -> bool:
    """Whether the answer is the same whatever the `changed` buffers hold: they are statistics, and no state."""
    for name, value in model.named_buffers():
        if name in changed:
            value.data = 2 * value + 1
    return not changed or _agree(first, _answer(model, _on(given, device)))


def _answer(model: torch.nn.Module, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    result = model(*arguments)
    if not isinstance(result, Tensor) and not (
        isinstance(result, tuple | list) and result and all(isinstance(value, Tensor) for value in result)
    ):
        held = f" of {', '.join(type(value).__name__ for value in result)}" if isinstance(result, tuple | list) else ""
        raise TaskError(
            f"Model.forward returned a {type(result).__name__}{held}; wanted a tensor or a tuple of tensors"
        )
    answers = outputs_of(result)
    _require_room(sum(8 * value.numel() for value in answers), answers[0].device.type)
    if not all(value.numel() for value in answers):
        raise TaskError("Model.forward returns a tensor that has no elements")
    if any(bool(value.isnan().any()) for value in answers):
        raise TaskError("Model.forward returns NaN on get_inputs(); nothing can be compared with that")
    return answers


def _changed(given: Sequence[Any], arguments: Sequence[Any]) -> list[str]:
    """The arguments that are not what was given."""
    pairs = enumerate(zip(given, arguments, strict=True))
    return [
        f"argument {i}"
        for i, (old, new) in pairs
        if isinstance(old, Tensor) and not torch.equal(old, new.to(old.device))
    ]


def _agree(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Up to what atomics do in another order."""
    pairs = [(a.double(), b.double()) for a, b in zip(first, second, strict=True)]
    return all(torch.allclose(a, b, rtol=1e-2, atol=1e-2 * float(a.abs().nan_to_num(0, 0, 0).mean())) for a, b in pairs)


def _weights(model: torch.nn.Module, changed: frozenset[str]) -> list[tuple[str, Tensor]]:
    """Parameters, and those buffers that hold statistics: masks and tables stay as the constructor makes them."""
    statistics = [
        (name, value)
        for name, value in model.named_buffers()
        if name not in changed
        and value.is_floating_point()
        and value.numel() > 1
        and bool((value == value.flatten()[0]).all())
    ]
    return [*model.named_parameters(), *statistics]


def _tables(model: torch.nn.Module, others: Container[str]) -> list[tuple[str, Tensor]]:
    """Buffers and attributes that are neither changed by a call nor weights: masks, positions, a state.

    What a kernel's parameter cannot hold, such as complex numbers, it has to make itself.
    """
    known = ((name, value) for name, value in state(model) if name not in others)
    return [(name, value) for name, value in known if value.numel() and value.dim() and _dtype(value) in ITEMSIZE]


def _is_rigid(value: Tensor) -> bool:
    """Whether an input has a structure that moving its values about would break: zeros, symmetry, order, few values."""
    if value.numel() < 3 or value.dtype == torch.bool:
        return True
    if not value.is_floating_point():
        return bool((value.diff() >= 0).all())
    zeros = float((value == 0).float().mean())
    symmetric = value.dim() > 1 and value.shape[-1] == value.shape[-2] and torch.equal(value, value.mT)
    few = len(set(value.flatten()[:4096].tolist())) <= 8
    return zeros > 0.05 or symmetric or few


def _is_ordered(value: Tensor) -> bool:
    """Whether a structure runs along the first dimension, so that rows of two draws do not fit together."""
    square = value.dim() == 2 and value.shape[0] == value.shape[1]
    return value.dtype != torch.bool and _is_rigid(value) and (value.dim() == 1 or square)


def _bytes_read(module: Any, draws: Sequence[Sequence[Any]], mode: str, device: str) -> dict[int, int]:
    """Bytes on which the answer depends, by their gradients: no more than must be read, by argument, weights under -1.

    Integers, what a gradient does not reach, and what is read in other places from draw to draw because integers or
    masks say so, count nothing: a floor that is too low accuses nobody.
    """
    tensors = _tensors(draws[0])
    steered = any(not value.is_floating_point() for _, value in tensors)
    reached = [_reached(module, draw, mode, device) for draw in (draws if steered else draws[:1])]
    read = {-1: 0} | {i: 0 for i, _ in tensors}
    if not all(reached):
        return read  # An operator without a derivative.
    for (at, first, itemsize), *others in zip(*reached, strict=True):
        if all(torch.equal(first, other) for _, other, _ in others):
            read[at] += int(first.sum()) * itemsize
    return read


def _reached(module: Any, given: Sequence[Any], mode: str, device: str) -> list[tuple[int, Tensor, int]]:
    """By argument, weights under -1: where a gradient arrives, and how many bytes an element has."""
    model = moved(construct(module), device).train(mode == "train")
    arguments = [
        value.requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in _on(given, device)
    ]
    try:
        outputs = [out for out in outputs_of(model(*arguments)) if out.requires_grad]
        torch.autograd.backward(outputs, [torch.randn_like(out) for out in outputs])
    except RuntimeError:
        return []
    leaves = (*_tensors(arguments), *((-1, parameter) for parameter in model.parameters()))
    return [
        (at, torch.zeros_like(leaf, dtype=torch.bool) if leaf.grad is None else leaf.grad != 0, leaf.itemsize)
        for at, leaf in leaves
        if leaf.is_floating_point()
    ]


if __name__ == "__main__":
    # What there is to know of a file is the same on both.
    place = sys.argv[2] if torch.cuda.is_available() else "cpu"
    Path(sys.argv[3]).write_text(json.dumps(describe(Path(sys.argv[1]), place, sys.argv[4] == "kernels")))
