"""Which winner is compiled for which dtype and statics, so that every workload of the task is served by one.

Not covered: which of them a call takes; that is decided at run time (templates/dispatch.cpp.j2).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from sandbox.contract import Artifact, Candidate, Device, Judgement, Record, Task, Workload
from sandbox.errors import BadInput
from sandbox.plan import Plan, macros, plan_of
from sandbox.toolchain import CompileFailed, Toolchain

ARCHES = ("sm_80", "sm_86", "sm_90a")
"""What a cuda extension is compiled for besides the judged architecture."""


class Winner(Record):
    """The best candidate for a workload, with the verdict that says so."""

    candidate: Candidate
    judgement: Judgement | None = None


class Image(Record):
    """One compiled form of a specialisation."""

    arch: str
    """`sm_90a`, or `compute_80` for PTX, or the machine name of a CPU."""
    artifact: Artifact
    judged: bool
    """Whether this is what the verdict was given on."""


class Specialisation(Record):
    """A candidate compiled for one dtype and one value of each static name."""

    dtype: str
    statics: dict[str, int]
    macros: dict[str, str]
    images: tuple[Image, ...]
    missing: dict[str, str] = {}
    """Architectures it does not compile for, with the compiler's first line."""


class Variant(Record):
    """A candidate of the extension with everything it was compiled for."""

    candidate: Candidate
    judgement: Judgement | None
    plan: Plan
    tunables: dict[str, int]
    wins: tuple[str, ...]
    """Names of the workloads it is the winner of."""
    specialisations: tuple[Specialisation, ...]

    @property
    def id12(self) -> str:
        return self.candidate.id[:12]


def check_winners(task: Task, winners: Mapping[str, Winner]) -> None:
    """BadInput where a winner does not belong to the task or did not pass."""
    known = {w.name for w in task.workloads}
    if not winners:
        raise BadInput(f"nothing to compose for task {task.name}: no winners given")
    for name, winner in winners.items():
        candidate, judgement = winner.candidate, winner.judgement
        got = f"winner {candidate.id[:12]} of workload {name!r}"
        if name not in known:
            raise BadInput(f"{got}: task {task.name} has no such workload; it has {', '.join(sorted(known))}")
        if (candidate.task, candidate.target) != (task.name, task.target):
            raise BadInput(f"{got} is for {candidate.task} on {candidate.target}, wanted {task.name} on {task.target}")
        if judgement and (judgement.candidate, judgement.task_version) != (candidate.id, task.version):
            raise BadInput(f"{got}: its judgement is of another candidate or another version of the task")
        if judgement and judgement.verdict.status != "Passed":
            raise BadInput(f"{got}: its verdict is {judgement.verdict.status}, wanted Passed")


def cover(task: Task, winners: Mapping[str, Winner], toolchain: Toolchain, device: Device) -> tuple[Variant, ...]:
    """Compile each winner for the workloads it won, then the nearest that compiles for those nobody serves yet."""
    workloads = {w.name: w for w in (*task.workloads, *task.held_out)}
    builds = {w.candidate.id: _Builds(task, w, toolchain, device) for w in winners.values()}
    for name, winner in winners.items():
        try:
            builds[winner.candidate.id].add(workloads[name])
        except CompileFailed as exc:
            raise BadInput(f"winner {winner.candidate.id[:12]} does not compile for {name}:\n{exc.log}") from exc
    for workload in (w for w in workloads.values() if w.name not in winners):
        nearest = _nearest(workload, [workloads[name] for name in winners])
        ranked = dict.fromkeys(winners[name].candidate.id for name in nearest)
        if not any(builds[key].serves(workload) for key in ranked):
            _add_to_first([builds[key] for key in ranked], workload)
    return tuple(build.variant(_wins(winners, key)) for key, build in builds.items())


class _Builds:
    """What one winner has been compiled for so far."""

    def __init__(self, task: Task, winner: Winner, toolchain: Toolchain, device: Device) -> None:
        self.task, self.winner, self.toolchain, self.device = task, winner, toolchain, device
        self.plan, self.tunables = plan_of(winner.candidate, task)
        self.made: list[Specialisation] = []

    def definitions(self, workload: Workload) -> dict[str, str]:
        return macros(self.task, self.plan, workload, self.tunables)

    def serves(self, workload: Workload) -> bool:
        return any(spec.macros == self.definitions(workload) for spec in self.made)

    def add(self, workload: Workload) -> None:
        """Compile for the device at hand, or CompileFailed; on cuda then for the others where it can be."""
        if self.serves(workload):
            return
        source, definitions, arch = self.winner.candidate.source, self.definitions(workload), self.device.arch
        artifact = self.toolchain.build(source, self.task.target, definitions, arch)
        image = Image(arch=arch, artifact=artifact, judged=self._was_judged())
        others, missing = self._elsewhere(definitions) if self.task.target == "cuda" else ([], {})
        values = {**workload.axes, **workload.scalars}
        self.made.append(
            Specialisation(
                dtype=workload.dtype,
                statics={name: int(values[name]) for name in self.plan.static},
                macros=definitions,
                images=(image, *others),
                missing=missing,
            )
        )

    def variant(self, wins: tuple[str, ...]) -> Variant:
        return Variant(
            candidate=self.winner.candidate,
            judgement=self.winner.judgement,
            plan=self.plan,
            tunables=self.tunables,
            wins=wins,
            specialisations=tuple(self.made),
        )

    def _was_judged(self) -> bool:
        return self.winner.judgement is not None and self.winner.judgement.device == self.device.name

    def _elsewhere(self, definitions: dict[str, str]) -> tuple[list[Image], dict[str, str]]:
        """Cubins for the other architectures and PTX, and the architectures for which there is none."""
        source, images, missing = self.winner.candidate.source, [], {}
        for arch in other_arches(self.plan, self.device.arch):
            try:
                artifact = self.toolchain.build(source, "cuda", definitions, arch)
                images.append(Image(arch=arch, artifact=artifact, judged=False))
            except CompileFailed as exc:
                missing[arch] = _first_error(exc)
        # The PTX of an `a` variant runs nowhere else.
        portable = [arch for arch in (self.device.arch, *(i.arch for i in images)) if arch[-1].isdigit()]
        if portable:
            lowest = min(portable, key=capability)
            artifact = self.toolchain.ptx(source, definitions, lowest)
            images.append(Image(arch=lowest.replace("sm_", "compute_"), artifact=artifact, judged=False))
        return images, missing


def capability(arch: str) -> int:
    """`sm_90a` and `compute_90` give 90."""
    return int(arch.rpartition("_")[2].rstrip("af"))


def served(task: Task, variants: Iterable[Variant]) -> list[str]:
    """The workloads, search and held-out, that some specialisation was compiled for."""
    return [
        workload.name
        for workload in (*task.workloads, *task.held_out)
        if any(
            spec.macros == macros(task, variant.plan, workload, variant.tunables)
            for variant in variants
            for spec in variant.specialisations
        )
    ]


def other_arches(plan: Plan, arch: str) -> list[str]:
    # Clusters and tensor maps came with sm_90; what compiles for less could not be launched there.
    needs_90 = bool(plan.tensormaps) or any(launch.cluster for launch in plan.launches)
    return [other for other in ARCHES if other != arch and (capability(other) >= 90 or not needs_90)]


def _nearest(workload: Workload, others: list[Workload]) -> list[str]:
    """Names of the others, nearest in log-space first, those of another dtype last."""

    def distance(other: Workload) -> float:
        axes = sum(math.log(max(workload.axes[a], 1) / max(other.axes[a], 1)) ** 2 for a in workload.axes)
        return axes + 1000 * (workload.dtype != other.dtype)

    return [other.name for other in sorted(others, key=distance)]


def _wins(winners: Mapping[str, Winner], key: str) -> tuple[str, ...]:
    return tuple(name for name, winner in winners.items() if winner.candidate.id == key)


def _add_to_first(builds: list[_Builds], workload: Workload) -> None:
    """A workload that no winner compiles for stays unserved, and the extension says so where it is called."""
    for build in builds:
        try:
            build.add(workload)
        except CompileFailed:
            continue
        return


def _first_error(failure: CompileFailed) -> str:
    lines = (line for line in failure.log.splitlines() if "error" in line)
    return next(lines, failure.log.strip().partition("\n")[0])
