"""The usual way to judge a kernel, as KernelBench goes about it: load_inline, a fresh process, allclose, CUDA events.

    python -m bench.usual build|evaluate JOB.json     prints one JSON object

One workload only, normal inputs, five comparisons at 1e-2 with PyTorch in the same dtype, three calls to warm up, a
hundred timings. Whatever is not compared by that is not noticed. Runs candidate code with all the rights of its user.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sandbox.contract import Target, Task, Workload

TRIALS = 5
TIMINGS = 100
WARM_UP = 3
TOLERANCE = 1e-2


class Job(BaseModel):
    """One candidate for the usual way."""

    name: str
    task: Task
    workload: Workload
    source: str
    workspace_bytes: int
    folder: Path
    """Where the extension is built."""


class Outcome(BaseModel):
    status: str
    detail: str = ""
    build_s: float = 0.0
    """Compiling and loading; where it was built before, loading alone."""
    check_s: float = 0.0
    time_s: float = 0.0
    latency_ms: float | None = None


def load(job: Job) -> Any:
    """The module that load_inline gives; it builds only where the folder does not hold it yet."""
    from torch.utils import cpp_extension

    from bench.inline import CPU_FLAGS, CUDA_FLAGS, DECLARATION

    cuda = job.task.target == "cuda"
    job.folder.mkdir(parents=True, exist_ok=True)
    return cpp_extension.load_inline(
        name=job.name,
        cpp_sources=DECLARATION if cuda else job.source,
        cuda_sources=job.source if cuda else None,
        functions=["run"],
        extra_cuda_cflags=CUDA_FLAGS,
        extra_cflags=CPU_FLAGS if not cuda else None,
        extra_ldflags=["-fopenmp"] if not cuda else None,
        build_directory=str(job.folder),
        with_cuda=cuda,
    )


def build(job: Job) -> Outcome:
    started = time.perf_counter()
    try:
        load(job)
    except (RuntimeError, ImportError, OSError) as exc:
        return Outcome(status="BuildFailed", detail=str(exc)[-300:], build_s=time.perf_counter() - started)
    return Outcome(status="Built", build_s=time.perf_counter() - started)


def evaluate(job: Job) -> Outcome:
    """Build or load, compare, time."""
    import torch

    started = time.perf_counter()
    try:
        module = load(job)
    except (RuntimeError, ImportError, OSError) as exc:
        return Outcome(status="BuildFailed", detail=str(exc)[-300:], build_s=time.perf_counter() - started)
    build_s, started = time.perf_counter() - started, time.perf_counter()
    found = Outcome(status="Passed", build_s=build_s)
    try:
        wrong = _compare(job, module)
        found.check_s, started = time.perf_counter() - started, time.perf_counter()
        if wrong:
            return found.model_copy(update={"status": "Incorrect", "detail": wrong})
        found.latency_ms = _latency_ms(job, module)
        found.time_s = time.perf_counter() - started
    except (RuntimeError, torch.AcceleratorError) as exc:
        return found.model_copy(update={"status": "LaunchFailed", "detail": str(exc)[:300]})
    return found


def _compare(job: Job, module: Any) -> str:
    import torch

    reference = _reference(job.task)
    for trial in range(TRIALS):
        given = _inputs(job, trial)
        tensors = _buffers(job, given)
        with torch.no_grad():
            wanted = reference(*(tensor.clone() for tensor in given), **job.workload.scalars)
        _call(job, module, tensors)()
        _synchronise(job.task.target)
        changed = len(job.task.outputs) + len(job.task.inouts)
        for got, want in zip(tensors[:changed], _results(wanted), strict=True):
            if not torch.allclose(got, want, atol=TOLERANCE, rtol=TOLERANCE):
                return f"trial {trial}: {float((got - want).abs().max())} off at most"
    return ""


def _latency_ms(job: Job, module: Any) -> float:
    call = _call(job, module, _buffers(job, _inputs(job, 0)))
    for _ in range(WARM_UP):
        call()
    _synchronise(job.task.target)
    return sum(_timed(job.task.target, call) for _ in range(TIMINGS)) / TIMINGS


def _timed(target: Target, call: Callable[[], None]) -> float:
    import torch

    if target == "cpu":
        started = time.perf_counter()
        call()
        return (time.perf_counter() - started) * 1e3
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop))


def _call(job: Job, module: Any, tensors: list[Any]) -> Callable[[], None]:
    import torch

    device = "cuda" if job.task.target == "cuda" else "cpu"
    workspace = torch.empty(job.workspace_bytes, dtype=torch.uint8, device=device)
    axes = [job.workload.axes[axis] for axis in job.task.axes]
    scalars = [float(job.workload.scalars[scalar.name]) for scalar in job.task.scalars]
    return lambda: module.run(tensors, axes, scalars, workspace)


def _inputs(job: Job, trial: int) -> list[Any]:
    """In-outs and inputs."""
    from sandbox.referee.inputs import draw

    return draw(job.task, job.workload, "normal", trial, "cuda" if job.task.target == "cuda" else "cpu")


def _buffers(job: Job, given: list[Any]) -> list[Any]:
    """Tensors in parameter order, outputs fresh."""
    import torch

    from sandbox.referee.inputs import DTYPES
    from sandbox.signature import dtype_of, shape_of

    device = "cuda" if job.task.target == "cuda" else "cpu"
    outputs = [
        torch.empty(shape_of(spec, job.workload), dtype=DTYPES[dtype_of(spec, job.workload)], device=device)
        for spec in job.task.outputs
    ]
    return [*outputs, *(tensor.clone() for tensor in given)]


def _reference(task: Task) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location("reference", task.folder / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reference  # type: ignore[no-any-return]


def _results(wanted: Any) -> tuple[Any, ...]:
    return wanted if isinstance(wanted, tuple) else (wanted,)


def _synchronise(target: Target) -> None:
    import torch

    if target == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "evaluate"])
    parser.add_argument("job", type=Path)
    options = parser.parse_args()
    # What compilers print belongs to no answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    outcome = (build if options.what == "build" else evaluate)(Job.model_validate_json(options.job.read_text()))
    answer.write(json.dumps(outcome.model_dump()))
    answer.flush()
    # An extension that broke the CUDA context would crash the interpreter on its way out.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
