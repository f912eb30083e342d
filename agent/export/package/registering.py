"""What PyTorch needs to know of an operator besides its kernels: the way back to PyTorch.

Not covered: fake tensors, whose shapes each operator writes for itself (operators.py).
"""

from __future__ import annotations

import ctypes
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch

_told: set[str] = set()


def reference(name: str) -> Callable[..., Any]:
    """The task's own definition in PyTorch; it is read at the first call."""

    def call(*arguments: Any, **scalars: Any) -> Any:
        module = importlib.import_module(f".references.{name}", __package__)
        return module.reference(*arguments, **scalars)

    return call


def register_fallback(
    library: ctypes.CDLL, namespace: str, name: str, scalars: tuple[str, ...], compute: Callable[..., Any]
) -> None:
    """PyTorch computes what no kernel here serves, and says so once."""

    def fallback(*arguments: Any) -> Any:
        tensors, values = split(arguments, scalars)
        try:
            tell(library, name)
            return fresh(compute(*tensors, **values), tensors)
        except Exception as exc:
            # The call came through C++, which passes on that something failed, but not what.
            library.warpsmith_fail(f"{type(exc).__name__}: {exc}".encode())
            raise

    torch.library.impl(f"{namespace}::{name}_reference", "CompositeExplicitAutograd")(fallback)


def split(arguments: tuple[Any, ...], scalars: tuple[str, ...]) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """The tensors, and the scalars by name."""
    count = len(arguments) - len(scalars)
    return arguments[:count], dict(zip(scalars, arguments[count:], strict=True))


def tell(library: ctypes.CDLL, name: str) -> None:
    why = library.warpsmith_reason().decode()
    library.warpsmith_settle()
    if why and name not in _told:
        _told.add(name)
        warnings.warn(f"{name}: {why}; PyTorch computes it instead, here and wherever else it must", stacklevel=3)


def fresh(results: Any, tensors: tuple[torch.Tensor, ...]) -> Any:
    """The results contiguous and in memory of their own, as the kernels return them."""
    if results is None:
        return None
    if isinstance(results, torch.Tensor):
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        flat = results.contiguous()
        return flat.clone() if flat.untyped_storage().data_ptr() in given else flat
    return tuple(fresh(result, tensors) for result in results)
