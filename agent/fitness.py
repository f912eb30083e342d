"""Whether a kernel may run on a device at all: its constraints hold there, and every launch fits.

Asked before anything is compiled, so that an A10 passes a seed for Hopper over rather than judge it a bad kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sandbox import plan
from sandbox.contract import Candidate, Device, Task
from sandbox.errors import PlanError


def misfit(task: Task, own: plan.Plan, tunables: Mapping[str, int], device: Device) -> str:
    """Why a plan with these tunables cannot be used on the device, as a few words; empty where it can."""
    try:
        values = plan.settle(own, tunables)
        for workload in task.workloads:
            known = plan.environment(task, workload, values, device)
            for constraint in own.constraints:
                if not constraint.evaluate(known):
                    condition = f"tune-if {constraint.text} (line {constraint.line})"
                    return f"{condition} does not hold on {device.name} for {workload.name}"
            plan.resolve(own, task, workload, values, device)
    except PlanError as exc:
        return str(exc)
    return ""


def passed_over(task: Task, seeds: Sequence[Candidate], device: Device) -> dict[str, str]:
    """The seeds whose defaults do not suit the device: why, by file name."""
    reasons = {seed.note: misfit(task, plan.parse(seed.source, task), seed.tunables, device) for seed in seeds}
    return {note: why for note, why in reasons.items() if why}
