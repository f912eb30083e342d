"""What PyTorch needs to know of an operator besides its kernels: fallback, gradient, autocast.

All three go by the task's own definition in PyTorch. Not covered: fake tensors, whose shapes each operator writes for
itself (operators.py), and gradients of gradients.
"""

from __future__ import annotations

import ctypes
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Operator(NamedTuple):
    """An operator's signature: tensors, then scalars."""

    namespace: str
    name: str
    tensors: tuple[str, ...]
    changed: tuple[str, ...]
    """Tensors that are changed in place."""
    typed: tuple[str, ...]
    """Tensors that share the dtype of the call; the others have one of their own."""
    scalars: dict[str, Any]
    """Their defaults, None where there is none."""
    dtypes: tuple[torch.dtype, ...]
    """What kernels were compiled for."""

    @property
    def qualified(self) -> str:
        return f"{self.namespace}::{self.name}"

    def split(self, arguments: Sequence[Any]) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """The tensors, and the scalars by name; the dispatcher leaves out what equals its default."""
        count = len(self.tensors)
        given = zip(self.scalars, arguments[count:], strict=False)
        return tuple(arguments[:count]), {**self.scalars, **dict(given)}


_told: set[str] = set()


def register(library: ctypes.CDLL, op: Operator) -> None:
    """Everything for one operator whose schemas the library has defined."""
    compute = reference(op.name)
    register_fallback(library, op, compute)
    if op.changed:
        refuse_gradients(op)
    else:
        register_gradient(op, compute)
    register_autocast(op)


def reference(name: str) -> Callable[..., Any]:
    """The task's own definition in PyTorch; it is read at the first call."""

    def call(*tensors: Tensor, **scalars: Any) -> Any:
        try:
            module = importlib.import_module(f".references.{name}", __package__)
        except ModuleNotFoundError as exc:
            raise RuntimeError(f"{name} is not defined in PyTorch alone here: {exc}") from exc
        return module.reference(*tensors, **scalars)

    return call


# ---------------------------------------------------------------- fallback


def register_fallback(library: ctypes.CDLL, op: Operator, compute: Callable[..., Any]) -> None:
    """PyTorch computes what no kernel here serves, and says so once."""

    def fallback(*arguments: Any) -> Any:
        tensors, scalars = op.split(arguments)
        try:
            tell(library, op)
            results = compute(*tensors, **scalars)
        except Exception as exc:
            # The call came through C++, which passes on that something failed, but not what.
            library.warpsmith_fail(f"{type(exc).__name__}: {exc}".encode())
            raise
        made = fresh(listed(results), tensors)
        return tuple(made) if len(made) > 1 else made[0] if made else None

    torch.library.impl(f"{op.qualified}_reference", ("cpu", "cuda"), fallback)


def tell(library: ctypes.CDLL, op: Operator) -> None:
    """Warn once for each operator; a reference that somebody called himself is no fallback."""
    why = library.warpsmith_reason().decode()
    library.warpsmith_settle()
    if why and op.qualified not in _told:
        _told.add(op.qualified)
        warnings.warn(f"{op.name}: {why}; PyTorch computes it instead (said once)", stacklevel=3)


def listed(results: Any) -> list[Tensor]:
    return [] if results is None else [results] if isinstance(results, Tensor) else list(results)


def fresh(results: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """The results contiguous and each in memory of its own, as operators must return them."""
    taken, made = {tensor.untyped_storage().data_ptr() for tensor in given}, []
    for result in results:
        flat = result.contiguous()
        own = flat.clone() if flat.untyped_storage().data_ptr() in taken else flat
        taken.add(own.untyped_storage().data_ptr())
        made.append(own)
    return made


# ---------------------------------------------------------------- gradient


def register_gradient(op: Operator, compute: Callable[..., Any]) -> None:
    """The backward recomputes the forward in PyTorch; it is an operator of its own, so that compilers see one node."""
    again = getattr(getattr(torch.ops, op.namespace), f"{op.name}_backward").default

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors, scalars = op.split(inputs)
        ctx.save_for_backward(*tensors)
        ctx.scalars = tuple(scalars.values())
        ctx.floating = [result.is_floating_point() for result in listed(output)]

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needs = [bool(need) for need in ctx.needs_input_grad[: len(op.tensors)]]
        given = [grad for grad, floating in zip(grads, ctx.floating, strict=True) if floating]
        found = iter(again(given, ctx.saved_tensors, *ctx.scalars, needs))
        return (*(next(found) if need else None for need in needs), *(None for _ in ctx.scalars))

    def gradients(grads: list[Tensor], tensors: list[Tensor], *rest: Any) -> list[Tensor]:
        *values, needs = rest
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_(need) for t, need in zip(tensors, needs, strict=True)]
            results = [
                r
                for r in listed(compute(*leaves, **dict(zip(op.scalars, values, strict=True))))
                if r.is_floating_point()
            ]
            pairs = [(r, grad) for r, grad in zip(results, grads, strict=True) if r.requires_grad]
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            found = torch.autograd.grad(
                [r for r, _ in pairs], wanted, [grad for _, grad in pairs], allow_unused=True, materialize_grads=True
            )
        return fresh(found, [*grads, *tensors])

    def shapes(grads: list[Tensor], tensors: list[Tensor], *rest: Any) -> list[Tensor]:
        return [t.new_empty(t.shape) for t, need in zip(tensors, rest[-1], strict=True) if need]

    torch.library.impl(f"{op.qualified}_backward", ("cpu", "cuda"), gradients)
    torch.library.register_fake(f"{op.qualified}_backward", shapes)
    torch.library.register_autograd(op.qualified, backward, setup_context=keep)


def refuse_gradients(op: Operator) -> None:
    """What changes its arguments in place has no gradient, and says so rather than giving a wrong one."""
    forward = getattr(getattr(torch.ops, op.namespace), op.name).default

    def call(*arguments: Any) -> Any:
        if torch.is_grad_enabled():
            refuse(arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return forward(*arguments)

    def refuse(arguments: tuple[Any, ...]) -> None:
        asking = [name for name, t in zip(op.tensors, op.split(arguments)[0], strict=True) if t.requires_grad]
        if asking:
            place = " and ".join(op.changed)
            raise RuntimeError(
                f"{op.name}: {asking[0]} requires grad, but {place} change in place and there is no gradient; "
                "call it under torch.no_grad()"
            )

    torch.library.impl(op.qualified, "Autograd", call)


# ---------------------------------------------------------------- autocast


def register_autocast(op: Operator) -> None:
    """Under autocast the tensors of one call get one dtype, where there are kernels for it that of autocast."""
    forward = getattr(getattr(torch.ops, op.namespace), op.name).default

    def on(device: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            tensors, _ = op.split(arguments)
            dtype = common_dtype(op, tensors, device)
            cast = [
                t.to(dtype) if name in op.typed and name not in op.changed else t
                for name, t in zip(op.tensors, tensors, strict=True)
            ]
            with torch.autocast(device, enabled=False):
                return forward(*cast, *arguments[len(cast) :])

        return call

    torch.library.impl(op.qualified, "AutocastCPU", on("cpu"))
    torch.library.impl(op.qualified, "AutocastCUDA", on("cuda"))


def common_dtype(op: Operator, tensors: Sequence[Tensor], device: str) -> torch.dtype:
    """That of what changes in place, else of autocast if it is served, else the widest of the tensors."""
    found = {name: t.dtype for name, t in zip(op.tensors, tensors, strict=True) if name in op.typed}
    if op.changed:
        return next((found[name] for name in op.changed if name in found), next(iter(found.values())))
    widest = next(iter(found.values()))
    for dtype in found.values():
        widest = torch.promote_types(widest, dtype)
    wish = torch.get_autocast_dtype(device)
    return wish if wish in op.dtypes and widest != torch.float64 else widest
