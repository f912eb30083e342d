"""What an ask is about: a task on a device, at hand or elsewhere, and the run of the archive that it belongs to.

All asks for one task, version, target and device share a run, which is never finished and cannot be resumed: whoever
likes may answer later. Not covered: which kernel an ask shows (choice).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent import fitness, tasks
from agent.config import RunConfig
from agent.proposers import ASKING
from agent.steps import Judged
from archive import Archive, Run
from sandbox.contract import Candidate, Device, Task
from sandbox.errors import BadInput


@dataclass(frozen=True)
class Setting:
    archive: Archive
    config: RunConfig
    task: Task
    device: Device


def setting_of(archive: Archive, config: RunConfig, device: Device) -> Setting:
    """The setting of the configured task on a device. BadInput where there is no such task."""
    return Setting(archive, config, tasks.load(config.task, device.target), device)


def run_of(setting: Setting) -> Run:
    """The run that asks of this setting belong to, started where there is none yet."""
    known = [run for run in asking_runs(setting.archive) if _same(run, setting.task, setting.device)]
    return known[0] if known else _started(setting)


def asking_runs(archive: Archive) -> list[Run]:
    """The runs that asks belong to, the newest first."""
    return [run for run in archive.runs() if run.config.get("proposer") == ASKING]


def task_of(run: Run, path: str | None = None) -> Task:
    """The task that a run's asks are about, from `path` where it lies elsewhere on this machine.

    BadInput where it is not there, or has changed since.
    """
    task = tasks.load(path or str(run.config["task"]), run.target)
    if (task.name, task.version) != (run.task, run.task_version):
        raise BadInput(
            f"the ask was for {run.task} {run.task_version}, which is now {task.name} {task.version}: ask again"
        )
    return task


def _same(run: Run, task: Task, device: Device) -> bool:
    return (run.task, run.task_version, run.target, run.device) == (task.name, task.version, task.target, device.name)


def _started(setting: Setting) -> Run:
    config, task = setting.config, setting.task
    where = config.task if config.task in tasks.available() else str(Path(config.task).expanduser().resolve())
    asked = config.model_copy(update={"task": where, "target": task.target, "proposer": ASKING})
    run = Run(
        task=task.name,
        task_version=task.version,
        target=task.target,
        device=setting.device.name,
        config=asked.model_dump(mode="json"),
        rng_seed=config.seed,
    )
    setting.archive.start_run(run)
    return run


# ---------------------------------------------------------------- what is known


def history(setting: Setting) -> list[Judged]:
    """What was judged for the task on the device, by whomever, in order of time; of the newest judge that was seen."""
    judged = setting.archive.judgements(setting.task.name, setting.task.target, setting.device.name)
    own = [(c, j) for c, j in judged if j.task_version == setting.task.version]
    newest = max((j.judge_version for _, j in own), default=0)
    return [(c, j) for c, j in own if j.judge_version == newest]


def seeds(setting: Setting, judged: Sequence[Judged]) -> list[Candidate]:
    """The task's seed kernels that suit the device and were not judged on it."""
    taken = {candidate.id for candidate, _ in judged}
    found = tasks.seeds(setting.task, required=False)
    unsuitable = fitness.passed_over(setting.task, found, setting.device)
    return [seed for seed in found if seed.note not in unsuitable and seed.id not in taken]
