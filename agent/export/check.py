"""The child of verify.py: imports an extension, calls it, compares with eager PyTorch. Knows nothing but torch.

Reads a request as JSON from standard input, writes the answer as JSON to the path given.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    request = json.load(sys.stdin)
    sys.path.insert(0, request["root"])
    start = time.perf_counter()
    operator = getattr(importlib.import_module(request["package"]), request["function"])
    built_s = time.perf_counter() - start
    ran = request["target"] == "cpu" or torch.cuda.is_available()
    reference = load(request["reference"]).reference
    checks = [check(operator, reference, request, w) for w in request["workloads"]] if ran else []
    Path(sys.argv[1]).write_text(json.dumps({"built_s": built_s, "ran": ran, "checks": checks}))


def load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(operator: Any, reference: Any, request: dict[str, Any], workload: dict[str, Any]) -> dict[str, Any]:
    """One workload: the operator and eager PyTorch on copies of the same data."""
    tensors = [draw(tensor, request["target"]) for tensor in workload["tensors"]]
    changed = [tensor["changed"] for tensor in workload["tensors"]]
    try:
        wanted = run(reference, tensors, changed, workload["scalars"])
    except torch.cuda.OutOfMemoryError as exc:
        note = f"not compared, eager PyTorch ran out of memory: {exc}".partition("\n")[0]
        return {"workload": workload["name"], "error": None, "ok": True, "note": note}
    if not all(bool(value.isfinite().all()) for value in wanted):
        note = "not compared, eager PyTorch overflows on the inputs drawn"
        return {"workload": workload["name"], "error": None, "ok": True, "note": note}
    try:
        got = run(operator, tensors, changed, workload["scalars"])
        worst = max(error(a, b) for a, b in zip(got, wanted, strict=True))
    except RuntimeError as exc:
        return {"workload": workload["name"], "error": None, "ok": False, "note": str(exc)}
    return {"workload": workload["name"], "error": worst, "ok": worst <= workload["tolerance"], "note": ""}


def draw(tensor: dict[str, Any], device: str) -> torch.Tensor:
    dtype = getattr(torch, tensor["dtype"])
    if tensor["low"] is not None:
        return torch.randint(tensor["low"], tensor["high"] + 1, tensor["shape"], dtype=dtype, device=device)
    values = torch.randn(tensor["shape"], dtype=torch.float32, device=device)
    if tensor["weight"] and len(tensor["shape"]) > 1:
        # As trained matrices are: products keep their variance, and float16 does not overflow.
        values /= tensor["shape"][-1] ** 0.5
    return values.to(dtype)


def run(function: Any, tensors: list[torch.Tensor], changed: list[bool], scalars: dict[str, Any]) -> list[torch.Tensor]:
    """The outputs, then what became of the in-outs."""
    copies = [tensor.clone() if is_changed else tensor for tensor, is_changed in zip(tensors, changed, strict=True)]
    with torch.no_grad():
        result = function(*copies, **scalars)
    outputs = [] if result is None else list(result) if isinstance(result, tuple) else [result]
    return outputs + [copy for copy, is_changed in zip(copies, changed, strict=True) if is_changed]


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest relative L2 error of a row; rows near zero are measured against a hundredth of the typical row."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise RuntimeError(f"got {list(got.shape)} {got.dtype}, wanted {list(wanted.shape)} {wanted.dtype}")
    if not got.is_floating_point():
        return 0.0 if torch.equal(got, wanted) else float("inf")
    if not bool(torch.isfinite(got).all()):
        return float("inf")
    a, b = (x.double().reshape(-1, x.shape[-1] if x.dim() else 1) for x in (got, wanted))
    lengths = b.norm(dim=1)
    floor = max(float(lengths.square().mean().sqrt()) / 100, 1e-30)
    return float(((a - b).norm(dim=1) / lengths.clamp_min(floor)).max())


if __name__ == "__main__":
    main()
