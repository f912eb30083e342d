"""Kernels are twins where the same code runs in the same launches, and only there. NVRTC needs no GPU for that."""

from collections.abc import Iterator

import pytest

from agent import tasks
from sandbox import devices
from sandbox.contract import Task
from sandbox.duplicates import compiled
from sandbox.plan import macros, parse, settle
from sandbox.toolchain import Toolchain

HOPPER = devices.cross("sm_90")
KERNEL = """\
// launch vector_add: grid(cdiv(N, 256)) block(256)
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#ifndef AHEAD
#define AHEAD 1  // tune: 1 2 4
#endif
extern "C" __global__ void vector_add(
    scalar_t* out, const scalar_t* a, const scalar_t* b, int64_t N, void* workspace) {
    const int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (i < N) out[i] = (float)a[i] + (float)b[i];
}
"""


@pytest.fixture(scope="module")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toolchain]:
    pytest.importorskip("cuda.bindings.nvrtc")
    with Toolchain(tmp_path_factory.mktemp("builds")) as opened:
        yield opened


@pytest.fixture(scope="module")
def task() -> Task:
    return tasks.load("vector_add", "cuda")


def mark(toolchain: Toolchain, task: Task, source: str, **given: int) -> str:
    plan = parse(source, task)
    tunables = settle(plan, given)
    built = {
        workload.name: toolchain.build(source, "cuda", macros(task, plan, workload, tunables), HOPPER.arch)
        for workload in (*task.workloads, *task.held_out)
    }
    return compiled(task, plan, tunables, built, HOPPER)


@pytest.mark.parametrize(
    "same",
    [
        KERNEL.replace("(float)a[i] + (float)b[i]", "((float)(a[i])) + ((float)(b[i]))"),
        KERNEL.replace("const int64_t i =", "const int64_t at =").replace("[i]", "[at]").replace("(i <", "(at <"),
        KERNEL.replace("cdiv(N, 256)", "(N + 255) // 256"),
    ],
    ids=["parentheses", "names", "the plan in other words"],
)
def test_texts_that_compile_to_the_same_code_are_twins(toolchain: Toolchain, task: Task, same: str) -> None:
    assert same != KERNEL
    assert mark(toolchain, task, same) == mark(toolchain, task, KERNEL)


def test_tunable_that_changes_no_code_makes_a_twin(toolchain: Toolchain, task: Task) -> None:
    assert mark(toolchain, task, KERNEL, AHEAD=4) == mark(toolchain, task, KERNEL)


@pytest.mark.parametrize(
    "other",
    [
        KERNEL.replace("(float)a[i] + (float)b[i]", "(float)a[i] - (float)b[i]"),
        KERNEL.replace("block(256)", "block(128)").replace("N, 256", "N, 128"),
        KERNEL.replace("block(256)", "block(256) smem(1024)"),
    ],
    ids=["arithmetic", "launch", "shared memory"],
)
def test_other_code_or_another_launch_is_no_twin(toolchain: Toolchain, task: Task, other: str) -> None:
    assert mark(toolchain, task, other) != mark(toolchain, task, KERNEL)


def test_launch_beyond_the_device_has_no_twin(toolchain: Toolchain, task: Task) -> None:
    assert mark(toolchain, task, KERNEL.replace("block(256)", "block(2048)")) == ""
