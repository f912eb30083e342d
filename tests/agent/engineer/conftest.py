"""Tasks, candidates and judgements, made up."""

import math
from collections.abc import Callable, Sequence

import pytest

from sandbox.contract import (
    BuildFailed,
    Candidate,
    Counter,
    Device,
    Judgement,
    KernelCounters,
    KernelResources,
    Measurement,
    Passed,
    Profile,
    Task,
    TensorSpec,
    Timing,
    Workload,
)

KERNEL = """\
// launch k: grid(1) block(32){smem}
{head}
extern "C" __global__ void k() {{ {body} }}
"""


def _task(name: str = "toy", target: str = "cuda", **fields: object) -> Task:
    given = {
        "version": "1",
        "summary": "a + b",
        "axes": ("N",),
        "outputs": (TensorSpec(name="out", shape=("N",)),),
        "inputs": (TensorSpec(name="a", shape=("N",)), TensorSpec(name="b", shape=("N",))),
        "workloads": (Workload(axes={"N": 1024}), Workload(axes={"N": 4096})),
        "bytes_moved": "3*N*itemsize",
        "flops": "N",
        "folder": "/nowhere",
    }
    return Task.model_validate({"name": name, "target": target, **given, **fields})


def _kernel(body: str = "", parents: Sequence[str] = (), smem: str = "", head: str = "", **fields: object) -> Candidate:
    source = KERNEL.format(body=body, smem=f" smem({smem})" if smem else "", head=head)
    given = {"task": "toy", "target": "cuda", "source": source, "parents": tuple(parents)}
    return Candidate.model_validate({**given, "operator": "seed", "proposer": "test", **fields})


def _measured(ms: float) -> Measurement:
    return Measurement(rounds_ms=(ms,), median_ms=ms, low_ms=ms, high_ms=ms, samples=1)


def _judgement(
    candidate: Candidate,
    score: float | None,
    shares: Sequence[float | None] = (None, None),
    smem_bytes: int | None = None,
    profile: Profile | None = None,
    **fields: object,
) -> Judgement:
    """Passed with this score on every workload; None is a failed build."""
    verdict: object = BuildFailed(log="error: no")
    if score is not None:
        timings = tuple(
            Timing(
                workload=workload.name,
                candidate=_measured(math.exp(-score)),
                baselines={"eager": _measured(1.0)},
                roofline_share=share,
            )
            for workload, share in zip(_task().workloads, shares, strict=True)
        )
        own = (
            ()
            if smem_bytes is None
            else (KernelResources(kernel="k", registers=1, spill_bytes=0, smem_bytes=smem_bytes),)
        )
        verdict = Passed(checks=(), timings=timings, speedup={}, latency_ms=1.0, resources=own, profile=profile)
    given = {"candidate": candidate.id, "task": candidate.task, "task_version": "1", "target": candidate.target}
    rest = {"device": "d", "verdict": verdict, "seconds": 1.0, "judged_at": "2026-01-01T00:00:00Z"}
    return Judgement.model_validate({**given, **rest, **fields})


def _profile(*kernels: dict[str, float], tool: str = "ncu") -> Profile:
    counted = tuple(
        KernelCounters(kernel="k", counters=tuple(Counter(name=n, value=v) for n, v in each.items()))
        for each in kernels
    )
    return Profile.model_validate({"tool": tool, "kernels": counted})


@pytest.fixture(scope="session")
def make_task() -> Callable[..., Task]:
    return _task


@pytest.fixture(scope="session")
def kernel() -> Callable[..., Candidate]:
    return _kernel


@pytest.fixture(scope="session")
def judgement() -> Callable[..., Judgement]:
    return _judgement


@pytest.fixture(scope="session")
def judged() -> Callable[..., tuple[Candidate, Judgement]]:
    """A kernel whose body is `name`, and its judgement."""

    def make(
        name: str, score: float | None, parents: Sequence[str] = (), **fields: object
    ) -> tuple[Candidate, Judgement]:
        candidate = _kernel(f"int {name};", parents)
        return candidate, _judgement(candidate, score, **fields)

    return make


@pytest.fixture(scope="session")
def profile() -> Callable[..., Profile]:
    return _profile


@pytest.fixture(scope="session")
def gpu() -> Device:
    return Device(
        name="g",
        target="cuda",
        arch="sm_90a",
        sm_count=132,
        smem_optin=232448,
        bandwidth_gbs=1000.0,
        tflops={"float32": 10.0},
    )
