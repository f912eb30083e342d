"""A fixed task with kernels of every fate, so that prompts can be compared word for word."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prompts.records import Context, Exhibit, Foreign, Idea, Operator, PartExhibit, Plan
from sandbox.contract import (
    JUDGE_VERSION,
    BuildFailed,
    Candidate,
    Counter,
    Device,
    Dtype,
    Incorrect,
    Interval,
    Judgement,
    KernelCounters,
    KernelResources,
    Measurement,
    Passed,
    Profile,
    ScalarSpec,
    Target,
    Task,
    TensorSpec,
    Timing,
    Verdict,
    Workload,
)

DEVICES = {
    "sm_90a": Device(
        name="NVIDIA H100 80GB HBM3",
        target="cuda",
        arch="sm_90a",
        sm_count=132,
        smem_optin=232448,
        l2_bytes=52428800,
        bandwidth_gbs=3352,
        tflops={"float32": 67, "float16": 989.4, "bfloat16": 989.4},
    ),
    "sm_86": Device(
        name="NVIDIA A10",
        target="cuda",
        arch="sm_86",
        sm_count=72,
        smem_optin=101376,
        l2_bytes=6291456,
        bandwidth_gbs=600,
    ),
    "sm_120": Device(name="NVIDIA GeForce RTX 5090", target="cuda", arch="sm_120", sm_count=170, smem_optin=101376),
    "cpu": Device(name="Some CPU (8 cores)", target="cpu", arch="x86_64", threads=8, bandwidth_gbs=40.5),
}

CUDA_SOURCE = """\
// 1: a block per row, two passes.
// launch rownorm: grid(N) block(THREADS)
// static: D
#include <cuda_fp16.h>
#ifndef THREADS
#define THREADS 128  // tune: 64 128 256
#endif
extern "C" __global__ void rownorm(scalar_t* out, const scalar_t* x, const scalar_t* weight, int64_t N, int64_t D,
                                   int flip, float eps, void* workspace) {
    // {{ not a template }}
}
"""
CPU_SOURCE = """\
// 1: a row at a time.
// static: D
#ifndef ROWS
#define ROWS 8  // tune: 4 8 16
#endif
extern "C" void rownorm(float* out, const float* x, const float* weight, int64_t N, int64_t D, int flip, float eps,
                        void* workspace) {
    // {{ not a template }}
}
"""


def workload(n: int, d: int, flip: int, dtype: Dtype) -> Workload:
    return Workload(axes={"N": n, "D": d}, scalars={"flip": flip, "eps": 1e-5}, dtype=dtype)


def task(target: Target) -> Task:
    wide: Dtype = "float16" if target == "cuda" else "float32"
    return Task(
        name="rownorm",
        version="1",
        summary="RMS norm over the last dimension",
        target=target,
        axes=("N", "D"),
        outputs=(TensorSpec(name="out", shape=("N", "D")),),
        inputs=(TensorSpec(name="x", shape=("N", "D")), TensorSpec(name="weight", shape=("D",))),
        scalars=(ScalarSpec(name="flip", type="int"), ScalarSpec(name="eps", type="float")),
        workloads=(workload(512, 1024, 0, wide), workload(8192, 4096, 1, "float32")),
        held_out=(workload(1237, 4099, 1, "float32"), workload(8192, 271, 0, "float32")),
        bytes_moved="2*N*D*itemsize",
        flops="4*N*D",
        folder=Path(__file__).parent / "data",
    )


def candidate(target: Target, note: str = "", **tunables: int) -> Candidate:
    source = CUDA_SOURCE if target == "cuda" else CPU_SOURCE
    return Candidate(
        task="rownorm",
        target=target,
        source=source.replace("1:", f"1{note}:"),
        tunables=tunables,
        operator="propose",
        proposer="test",
    )


def exhibit(made: Candidate, verdict: Verdict | None) -> Exhibit:
    if verdict is None:
        return Exhibit(candidate=made, judgement=None)
    judgement = Judgement(
        candidate=made.id,
        task="rownorm",
        task_version="1",
        target=made.target,
        device="a device",
        judge_version=JUDGE_VERSION,
        verdict=verdict,
        seconds=1.0,
        judged_at="2026-01-01T00:00:00+00:00",
    )
    return Exhibit(candidate=made, judgement=judgement)


def measured(ms: float) -> Measurement:
    return Measurement(rounds_ms=(ms,), median_ms=ms, low_ms=ms, high_ms=ms, samples=10)


def passed(target: Target, scale: float = 1.0) -> Passed:
    timings = tuple(
        Timing(
            workload=known.name,
            candidate=measured(ms * scale),
            baselines={"eager": measured(0.08), "library:a": measured(0.05), "library:b": measured(0.04)},
            roofline_share=share / scale,
        )
        for known, ms, share in zip(
            (*task(target).workloads, task(target).held_out[0]), (0.02, 0.1, 1), (0.1, 0.85, 0.5), strict=True
        )
    )
    kernels = (
        KernelResources(kernel="rownorm", registers=40, spill_bytes=0, smem_bytes=128),
        KernelResources(kernel="rownorm", registers=255, spill_bytes=64, smem_bytes=128),
    )
    counters = KernelCounters(
        kernel="rownorm",
        counters=(Counter(name="DRAM throughput", value=81.234, unit="%"), Counter(name="hits", value=3)),
    )
    return Passed(
        checks=(),
        timings=timings,
        speedup={
            "eager": Interval(ratio=2.51, low=2.4, high=2.6),
            "library": Interval(ratio=1.01, low=0.9, high=float("inf")),
            "library:a": Interval(ratio=1.3, low=1.2, high=1.4),
        },
        latency_ms=0.0447 * scale,
        resources=kernels if target == "cuda" else (),
        profile=Profile(tool="ncu", workload=timings[0].workload, kernels=(counters,)) if target == "cuda" else None,
        deterministic=target == "cuda",
    )


def failed(target: Target) -> Verdict:
    if target == "cuda":
        evidence = (
            "out: relative L2 error of the worst row 0.7 (PyTorch's own 0.0001, allowed 0.0003) in row 1236 of 1237"
        )
        return Incorrect(workload=task("cuda").held_out[0].name, distribution="normal", rule="error", evidence=evidence)
    log = (
        "kernel.cpp: In function 'void rownorm(float*)':\n"
        "kernel.cpp:271:17: error: static assertion failed: odd rows\n"
        "  271 |     // {{ not a template }}\n"
        "kernel.cpp:9:17: note: the comparison reduces to '(4099 == 4096)', widest(271)"
    )
    return BuildFailed(log=log)


PLAN = Plan(
    bottleneck="two passes over x",
    change="keep the row in registers",
    why="halves the reads",
    expected_speedup=1.6,
    memory="registers",
    tensor_cores=False,
)


FOREIGN: dict[Target, Foreign] = {
    target: Foreign(
        task="softmax",
        summary="softmax of each row",
        candidate=Candidate(task="softmax", target=target, source=source, operator="seed", proposer="seed"),
        speedup=2.345,
    )
    for target, source in (
        ("cuda", '// launch softmax: grid(N) block(128)\nextern "C" __global__ void softmax() { /* ``` */ }\n'),
        ("cpu", 'extern "C" void softmax() { /* ``` */ }\n'),
    )
}


def parts(target: Target) -> tuple[PartExhibit, ...]:
    """The same task twice, as if it were two."""
    shown = exhibit(candidate(target, "a"), passed(target)), exhibit(candidate(target, "b"), passed(target, 1.5))
    return tuple(PartExhibit(task=task(target), exhibit=each) for each in shown)


def context(operator: Operator, arch: str, plan: Plan | None = None) -> Context:
    device = DEVICES[arch]
    target = device.target
    first, second = candidate(target, "a"), candidate(target, "b", **{"THREADS" if target == "cuda" else "ROWS": 64})
    parents = {
        "translate": (),
        "fuse": (),
        "repair": (exhibit(first, failed(target)),),
        "crossover": (exhibit(first, passed(target)), exhibit(second, passed(target, 1.5))),
    }.get(operator, (exhibit(first, passed(target)),))
    hidden = task(target).held_out[0].name
    ideas = (
        Idea(plan=PLAN, candidate="c" * 64, parent=first.id, outcome="slower: 0.8x"),
        Idea(
            plan=PLAN.model_copy(update={"change": "unroll by four"}),
            candidate="d" * 64,
            parent=first.id,
            outcome=f"Incorrect: {hidden}: error in row 1237",
        ),
    )
    return Context(
        task=task(target),
        device=device,
        operator=operator,
        parents=parents,
        inspirations=(exhibit(candidate(target, "c"), None),) if operator == "rewrite" else (),
        foreign=(FOREIGN[target],) if operator in ("translate", "rewrite") else (),
        ideas=ideas if operator in ("rewrite", "edit") else (),
        parts=parts(target) if operator == "fuse" else (),
        glue=("`h` [N, D] goes from one part to the next.",) if operator == "fuse" else (),
        plan=plan,
        notes=f"Odd rows matter, as {hidden} shows." if operator == "simplify" else "",
    )


@pytest.fixture
def contexts() -> Callable[..., Context]:
    """`contexts(operator, arch, plan=None)`."""
    return context


@pytest.fixture
def judged() -> Callable[[Target, Verdict], Exhibit]:
    """A kernel with a verdict."""
    return lambda target, verdict: exhibit(candidate(target), verdict)
