"""Device layer for torch sources: tensors over the arena, `forward` called on them, results copied into its outputs.

The candidate owns this process; the checks here are for clear messages, and the judge believes none of them.
Not covered: how a text becomes callable (torch_build.py, torch_forms.py), and any clock: that of the judge decides.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from sandbox.worker import torch_build, wire
from sandbox.worker.torch_build import BuildFailure, said
from sandbox.worker.torch_forms import Extension, LaunchFailure, Module, short

_DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "int32", "int64", "uint8")}


OWN = "own"
"""What a profile calls the time that was spent in none of torch's operators."""


@dataclass(frozen=True)
class Call:
    """A call on one set of buffers, and where its results go."""

    function: Callable[[], Any]
    outputs: tuple[Tensor, ...]


class TorchCalls:
    """Loads a torch source and calls it; addresses are plain integers."""

    failures: tuple[type[Exception], ...] = (BuildFailure, LaunchFailure)

    def __init__(self, target: str) -> None:
        self.target = target
        self.subjects: dict[str, Extension | Module] = {}
        self.owned: dict[int, Tensor] = {}
        torch_build.prepare_environment()
        if target == "cuda":
            torch.zeros(1, device="cuda")  # Makes torch's context the current one, before anybody waits for it.

    def attach(self, descriptor: int, size: int) -> int:
        """Map the arena; its address."""
        if self.target == "cuda":
            from sandbox.worker import vmm

            return vmm.attach(descriptor, size)
        self.arena = wire.mapped(descriptor, writable=True)
        return ctypes.addressof(ctypes.c_char.from_buffer(self.arena))

    def load(self, request: dict[str, Any], descriptor: int) -> None:
        """Make the source behind `descriptor` callable; BuildFailure or LaunchFailure where it cannot be."""
        with os.fdopen(descriptor, "rb") as file:
            file.seek(0)
            text = file.read().decode()
        shape = request.get("module")
        if request["form"] == "extension":
            self.subjects[request["key"]] = Extension(torch_build.extension(text, self.target), shape)
        else:
            self.subjects[request["key"]] = Module(torch_build.module(text), shape, self.target)

    def prepare(self, request: dict[str, Any], pointers: list[int], workspace: int) -> Call:
        """One call, ready to be repeated. Torch sources take in-outs, inputs and scalars; they have no workspace."""
        tensors = [
            self._tensor(at, tensor["shape"], tensor["dtype"])
            for at, tensor in zip(pointers, request["tensors"], strict=True)
        ]
        scalars = [value for kind, value in request["scalars"] if kind != "axis"]
        outputs = request["outputs"]
        function = self.subjects[request["key"]].on(tensors[outputs:], scalars)
        return Call(function, tuple(tensors[:outputs]))

    def _tensor(self, address: int, shape: Sequence[int], dtype: str) -> Tensor:
        """A tensor over memory that is not torch's."""
        size = math.prod(shape) * _DTYPES[dtype].itemsize
        if self.target == "cuda":
            raw = torch.as_tensor(_Span(address, size), device="cuda")
        else:
            raw = torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=torch.uint8)
        return raw.view(_DTYPES[dtype]).reshape(tuple(shape))

    def run(self, calls: list[Call]) -> None:
        """Make the calls one after another; LaunchFailure where one raises or returns what does not fit."""
        with torch.no_grad():
            for call in calls:
                try:
                    results = call.function()
                    _deliver(results, call.outputs)
                except LaunchFailure:
                    raise
                except Exception as exc:
                    raise LaunchFailure(said(exc)) from exc

    def time(self, calls: list[Call], flush: bool) -> list[float]:
        """Make the calls; nothing is measured here, where the candidate could have changed every clock."""
        self.run(calls)
        return []

    def synchronise(self) -> None:
        """Wait for every stream of the device."""
        if self.target == "cuda":
            try:
                torch.cuda.synchronize()
            except RuntimeError as exc:
                raise LaunchFailure(said(exc)) from exc

    def profile(self, calls: list[Call]) -> dict[str, float]:
        """Seconds by kernel on cuda; on cpu by operator of torch, with the candidate's own code under OWN.

        For a label, never for a verdict: the candidate could have changed the profiler.
        """
        self.run(calls[:1])
        self.synchronise()
        try:
            return _cuda_profile(calls) if self.target == "cuda" else _cpu_profile(calls)
        except Exception as exc:
            raise LaunchFailure(f"could not be profiled: {said(exc)}") from exc

    # ------------------------------------------------------------ buffers of their own, for a sanitizer

    def allocate(self, size: int) -> int:
        """A buffer of its own."""
        buffer = torch.empty(max(1, size), dtype=torch.uint8, device=self.target)
        self.owned[buffer.data_ptr()] = buffer
        return buffer.data_ptr()

    def free(self, address: int) -> None:
        del self.owned[address]

    def copy(self, target: int, source: int, size: int) -> None:
        if size:
            self._tensor(target, [size], "uint8").copy_(self._tensor(source, [size], "uint8"))


def _cpu_profile(calls: list[Call]) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU]) as seen, torch.no_grad(), record_function(OWN):
        for call in calls:
            call.function()
    return {event.key: event.self_cpu_time_total / 1e6 for event in seen.key_averages()}


def _cuda_profile(calls: list[Call]) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen, torch.no_grad():
        for call in calls:
            call.function()
        torch.cuda.synchronize()
    kernels = (event for event in seen.key_averages() if event.device_type.name == "CUDA")
    # Copies and fills are nobody's kernels.
    return {event.key: event.self_device_time_total / 1e6 for event in kernels if not event.key.startswith("Mem")}


class _Span:
    """Device memory as every CUDA library in Python takes it."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def _deliver(results: Any, outputs: tuple[Tensor, ...]) -> None:
    """Copy what `forward` returned to where the judge reads."""
    found = (results,) if isinstance(results, Tensor) else results
    if not isinstance(found, tuple | list) or len(found) != len(outputs):
        got = f"{len(found)} values" if isinstance(found, tuple | list) else type(found).__name__
        raise LaunchFailure(f"forward returned {got}, wanted {_count(len(outputs), 'tensor')}")
    for number, (result, output) in enumerate(zip(found, outputs, strict=True)):
        _require(result, output, f"result {number}" if len(outputs) > 1 else "the result")
        output.copy_(result.reshape(output.shape))


def _require(result: Any, output: Tensor, what: str) -> None:
    """Plain tensors only: a subclass could be a promise to compute something later."""
    if type(result) not in (Tensor, torch.nn.Parameter) or result.layout != torch.strided:
        raise LaunchFailure(f"{what} is a {type(result).__name__}, wanted a plain strided torch.Tensor")
    got, wanted = tuple(result.shape), tuple(output.shape)
    if got != wanted and not (wanted == (1,) and got == ()):
        raise LaunchFailure(f"{what} has shape {list(got)}, wanted {list(wanted)}")
    if result.dtype != output.dtype and not (result.dtype == torch.bool and output.dtype == torch.uint8):
        raise LaunchFailure(f"{what} is {short(result.dtype)}, wanted {short(output.dtype)}")
    if result.device.type != output.device.type:
        raise LaunchFailure(f"{what} is on {result.device.type}, wanted it on {output.device.type}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
