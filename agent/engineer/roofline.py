"""What a task asks of a device: bytes, operations, and which of the two takes longer at peak rates.

The model is the roofline of Williams, Waterman and Patterson (CACM 52(4), 2009). Not covered: caches, so a task whose
data fits into L2 may run faster than its floor.
"""

from __future__ import annotations

import math
import statistics
from typing import Literal

from sandbox.contract import Device, Target, Task, Workload
from sandbox.expressions import parse_expr
from sandbox.plan import environment

RIDGE: dict[Target, float] = {"cuda": 100.0, "cpu": 10.0}
"""Operations per byte above which arithmetic limits, where a device's peaks are unknown."""


def intensity(task: Task, workload: Workload, device: Device) -> float:
    """Operations per byte that must move; 0 operations count as one."""
    known = environment(task, workload, {}, device)
    flops, moved = (parse_expr(text).evaluate(known) for text in (task.flops, task.bytes_moved))
    return max(flops, 1) / max(moved, 1)


def mean_intensity(task: Task, device: Device) -> float:
    """Geometric mean over the search workloads."""
    return math.exp(statistics.fmean(math.log(intensity(task, w, device)) for w in task.workloads))


def ridge(workload: Workload, device: Device) -> float:
    """Operations per byte at which the device's peak rates take equally long."""
    rate = device.tflops.get(workload.dtype)
    return rate * 1e3 / device.bandwidth_gbs if rate and device.bandwidth_gbs else RIDGE[device.target]


def bound(task: Task, device: Device) -> Literal["memory", "compute"]:
    """What limits a perfect kernel, over the search workloads together."""
    above = statistics.fmean(math.log(intensity(task, w, device) / ridge(w, device)) for w in task.workloads)
    return "compute" if above > 0 else "memory"
