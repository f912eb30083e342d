"""Which kernels of an archive go into a wheel: for every task, device and workload the fastest that stands.

Not covered: how a package is written and built of them (compose, export), and judging anything.
"""

from __future__ import annotations

import keyword
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from agent import compose, fusion, proving, shapes, steps, tasks
from agent.compose import Part, Winner
from agent.export import hub as hubs
from agent.export import wheel as wheels
from agent.proving import Proof
from agent.shapes import Shape
from agent.steps import Judged, Winners
from archive import Archive, standing
from sandbox import devices, statistics
from sandbox.contract import JUDGE_VERSION, Device, Interval, Passed, Record, Target, Task, Workload
from sandbox.errors import BadInput, TaskError
from sandbox.launch import Sandbox
from sandbox.toolchain import Toolchain

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


class Award(Record):
    """One workload of a task on a device, and the kernel that goes into the package for it."""

    task: str
    workload: str
    device: str
    candidate: str
    note: str
    latency_ms: float
    speedup: dict[str, Interval]
    """Over each baseline, paired by round."""
    confirmed: bool
    judge_version: int

    @property
    def doubts(self) -> str:
        """What keeps the numbers from being what a winner's are; empty where nothing does."""
        old = self.judge_version < JUDGE_VERSION
        version = f"judged with version {self.judge_version} of the judge, this is {JUDGE_VERSION}" if old else ""
        return "; ".join(part for part in ("" if self.confirmed else "not confirmed", version) if part)


class Remark(Record):
    """What is to be known of a further shape: PyTorch keeps it, or has something faster."""

    task: str
    workload: str
    device: str
    text: str


class Exported(Record):
    """What was written."""

    package: str
    project: Path
    """Folder with everything that the wheel is built of."""
    wheel: Path | None = None
    wheel_bytes: int = 0
    hub: Path | None = None
    """Folder in the layout of Hugging Face's kernels."""
    awards: tuple[Award, ...]
    remarks: tuple[Remark, ...] = ()
    left_out: dict[str, str] = {}
    ok: bool | None = None
    """Whether the wheel's own `verify` passed on this machine; None where it was not asked."""
    message: str = ""


class Chosen(Record):
    """What is to be exported."""

    parts: tuple[Part, ...]
    awards: tuple[Award, ...]
    remarks: tuple[Remark, ...] = ()
    left_out: dict[str, str] = {}
    """Tasks of the archive that were not asked for by name and cannot be exported, and why."""


def choose(
    archive: Archive,
    target: Literal["auto", "cuda", "cpu"],
    wanted: Sequence[str] = (),
    on: Sequence[str] = (),
    further: Sequence[Shape] = (),
    sandbox: Sandbox = "auto",
    report: Callable[[str], None] = print,
) -> Chosen:
    """The winners of the wanted tasks (names or paths), of every task with a kernel that passed where none is named.

    On `further` shapes too, which are judged where the archive has no verdict yet.

    `on` are devices by name or its beginning. Without them: every GPU that has judged, the last of those with one
    architecture; of CPUs this one, else the one that judged last. BadInput says what there is where nothing fits.
    """
    judged = [(c, j) for c, j in archive.judgements() if c.form == "kernel"]
    chosen_target = _target(judged, target)
    judged = [(c, j) for c, j in judged if j.target == chosen_target]
    left_out: dict[str, str] = {}
    found = [_task(archive, name, chosen_target) for name in wanted]
    if not wanted:
        found, left_out = _all_tasks(archive, judged, chosen_target)
    known = {task.name for task in found}
    found += [
        _task(archive, name, chosen_target) for name in dict.fromkeys(s.task for s in further) if name not in known
    ]
    asked = {task.name: _workloads(task, further) for task in found}
    parts: list[Part] = []
    awards: list[Award] = []
    remarks: list[Remark] = []
    for task in found:
        own = [(c, j) for c, j in judged if (j.task, j.task_version) == (task.name, task.version)]
        for device in _devices(task, own, on):
            stand = _standing([(c, j) for c, j in own if j.device == device.name])
            proofs, disproved = (
                proving.prove(archive, task, device, stand, asked[task.name], sandbox, report)
                if asked[task.name]
                else ([], set())
            )
            won = _winners([(c, j) for c, j in stand if c.id not in disproved], task)
            part = _part(archive, task, device, won, proofs)
            parts.append(part)
            awards += _awards(part)
            remarks += [
                Remark(task=task.name, workload=proof.workload.name, device=device.name, text=proof.why)
                for proof in proofs
                if proof.why
            ]
    return Chosen(parts=tuple(parts), awards=tuple(awards), remarks=tuple(remarks), left_out=left_out)


def check_name(name: str) -> None:
    """BadInput where a package cannot be called so."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise BadInput(f"--name {name!r}: wanted lower-case letters, digits and single underscores, such as my_kernels")


def export(
    chosen: Chosen, toolchain: Toolchain, out: Path, name: str, wheel: bool = True, hub: bool = False, licence: str = ""
) -> Exported:
    """Write the project, build the wheel of it, and have the wheel verify itself here.

    `licence` is the text that goes into the package's LICENSE; without it, that says that none was chosen.
    """
    composed = compose.compose(chosen.parts, toolchain, out, name)
    if licence:
        (composed.root / composed.package / "LICENSE").write_text(licence)
    exported = Exported(
        package=composed.package,
        project=composed.root,
        awards=chosen.awards,
        remarks=chosen.remarks,
        left_out=chosen.left_out,
    )
    if not wheel:
        return exported
    built = wheels.build_wheel(composed.root, out)
    ok, message = wheels.verify_wheel(built, composed.package)
    return exported.model_copy(
        update={
            "wheel": built,
            "wheel_bytes": built.stat().st_size,
            "hub": hubs.write(composed, built, chosen.parts[0].task.target, out) if hub else None,
            "ok": ok,
            "message": message,
        }
    )


# ---------------------------------------------------------------- tasks


def _target(judged: Sequence[Judged], target: Literal["auto", "cuda", "cpu"]) -> Target:
    """The one asked for; else that of this machine, or the other where nothing has passed for it."""
    if target != "auto":
        return target
    passed = {j.target for _, j in judged if isinstance(j.verdict, Passed)}
    order: tuple[Target, ...] = ("cpu", "cuda") if "missing" in devices.asked_driver() else ("cuda", "cpu")
    found = next((each for each in order if each in passed), None)
    if found is None:
        raise BadInput("no kernel has passed in this archive: search for one with `warpsmith run --task NAME`")
    return found


def _task(archive: Archive, name_or_path: str, target: Target) -> Task:
    """A task by name or path; one that is not built in, where a run of this archive found it."""
    known = _places(archive)
    place = known.get(name_or_path, name_or_path) if name_or_path not in tasks.available() else name_or_path
    task = tasks.load(place, target)
    if task.module is not None:
        raise TaskError(
            f"task {task.name!r} is made of a PyTorch file: its reference runs within Warpsmith only and cannot be "
            "shipped; wanted a task folder or a FlashInfer definition"
        )
    return task


def _workloads(task: Task, further: Sequence[Shape]) -> list[Workload]:
    """The shapes given for the task, each once, that are no search workloads of it anyway."""
    own = {workload.name for workload in task.workloads}
    found = {w.name: w for w in (shapes.workload(task, shape) for shape in further if shape.task == task.name)}
    return [workload for name, workload in found.items() if name not in own]


def _places(archive: Archive) -> dict[str, str]:
    """Where tasks lay when they were searched for, the last place of each name."""
    return {run.task: str(run.config.get("task", run.task)) for run in reversed(archive.runs())}


def _all_tasks(archive: Archive, judged: Sequence[Judged], target: Target) -> tuple[list[Task], dict[str, str]]:
    """Every task with a kernel that passed, and why some are left out."""
    found: list[Task] = []
    left_out: dict[str, str] = {}
    for name in sorted({j.task for _, j in judged if isinstance(j.verdict, Passed)}):
        try:
            task = _task(archive, name, target)
        except BadInput as exc:
            left_out[name] = str(exc)
            continue
        if any(j.task_version == task.version and isinstance(j.verdict, Passed) for _, j in judged if j.task == name):
            found.append(task)
        else:
            left_out[name] = f"it has changed since its kernels were judged: it is now {task.version}"
    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items()) or "no kernel has passed on it"
        raise BadInput(f"nothing to export for target {target!r}: {reasons}")
    return found, left_out


# ---------------------------------------------------------------- devices


def _devices(task: Task, judged: Sequence[Judged], on: Sequence[str]) -> list[Device]:
    """The devices whose winners are taken. BadInput where no kernel of the task passed on any that was asked for."""
    passed = dict.fromkeys(j.device for _, j in reversed(judged) if isinstance(j.verdict, Passed))
    names = [name for name in passed if not on or any(name.lower().startswith(given.lower()) for given in on)]
    if not names:
        there = ", ".join(passed) or "none"
        asked = f" on {', '.join(on)}" if on and passed else ""
        raise BadInput(
            f"no kernel of task {task.name!r} has passed for target {task.target!r}{asked}; devices with one: {there}"
        )
    if task.target == "cpu":
        return [_cpu(task, names, on)]
    known = {device.arch: device for device in reversed([_gpu(name) for name in names])}
    return list(known.values())


def _gpu(name: str) -> Device:
    """The GPU at hand, or one of which only the name is known."""
    if "missing" not in devices.asked_driver() and (here := devices.detect("cuda")).name == name:
        return here
    return devices.elsewhere(name, "cuda")


def _cpu(task: Task, names: Sequence[str], on: Sequence[str]) -> Device:
    """One CPU: a package cannot tell one from another, only what instructions it knows."""
    here = devices.cpu()
    if here.name in names:
        return here
    if on and len(names) > 1:
        raise BadInput(
            f"{' or '.join(on)!r} fits {len(names)} CPUs of task {task.name!r}: {'; '.join(names)}; wanted one"
        )
    return devices.elsewhere(names[0], "cpu").model_copy(update={"arch": platform.machine()})


# ---------------------------------------------------------------- winners


def _standing(judged: Sequence[Judged]) -> list[Judged]:
    return [(c, j) for c, j in standing(list(judged)) if fusion.kept(j)]


def _winners(stand: Sequence[Judged], task: Task) -> Winners:
    """By workload the fastest confirmed candidate; where none is confirmed, the fastest that passed."""
    return steps.winners(stand, task) or steps.fastest(stand, task)


def _part(archive: Archive, task: Task, device: Device, won: Mapping[str, Judged], proofs: Sequence[Proof]) -> Part:
    proven = {p.workload.name: (p.candidate, p.judgement) for p in proofs if p.candidate and p.judgement}
    winners = {
        name: Winner(candidate=c, judgement=j, lineage=tuple(archive.lineage(c.id)[:-1]))
        for name, (c, j) in {**won, **proven}.items()
    }
    return Part(
        task=task,
        device=device,
        winners=winners,
        shapes=tuple(p.workload for p in proofs if p.workload.name in proven),
        kept=tuple(p.workload for p in proofs if p.workload.name not in proven),
    )


def _awards(part: Part) -> Iterator[Award]:
    for workload, winner in part.winners.items():
        candidate, judgement = winner.candidate, winner.judgement
        assert judgement is not None
        passed = judgement.verdict
        assert isinstance(passed, Passed)
        timing = next(timing for timing in passed.timings if timing.workload == workload)
        yield Award(
            task=part.task.name,
            workload=workload,
            device=part.device.name,
            candidate=candidate.id,
            note=candidate.note,
            latency_ms=timing.candidate.median_ms,
            speedup=statistics.speedups([timing]),
            confirmed=passed.confirmed,
            judge_version=judgement.judge_version,
        )
