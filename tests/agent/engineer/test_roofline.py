"""What a task asks of a device."""

import pytest

from agent import tasks
from agent.engineer import roofline
from sandbox import devices


@pytest.mark.parametrize(
    ("task", "wanted"),
    [("vector_add", "memory"), ("layernorm", "memory"), ("kv_cache", "memory"), ("attention", "compute")],
)
def test_bound_of_the_built_in_tasks_on_hopper(task, wanted) -> None:
    assert roofline.bound(tasks.load(task, "cuda"), devices.cross("sm_90")) == wanted


def test_intensity_is_operations_per_byte(make_task, gpu) -> None:
    task = make_task(flops="12*N")
    assert [roofline.intensity(task, w, gpu) for w in task.workloads] == [1.0, 1.0]
    assert roofline.mean_intensity(task, gpu) == pytest.approx(1.0)


def test_ridge_is_where_peaks_take_equally_long(make_task, gpu) -> None:
    workload = make_task().workloads[0]
    assert roofline.ridge(workload, gpu) == 10.0
    unknown = gpu.model_copy(update={"tflops": {}})
    assert roofline.ridge(workload, unknown) == roofline.RIDGE["cuda"]
    assert roofline.bound(make_task(flops="12*11*N"), gpu) == "compute"
    assert roofline.bound(make_task(flops="12*11*N"), unknown) == "memory"


def test_task_that_counts_no_operations_is_bound_by_memory(make_task, gpu) -> None:
    assert roofline.bound(make_task(flops="0"), gpu) == "memory"
