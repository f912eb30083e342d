"""Which winner is compiled for which dtype and statics, so that every workload of a task is served by one.

Also the region each of them was proven in. Not covered: which of them a call takes; that is decided at run time
(templates/dispatch.cpp.j2).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from sandbox.contract import Artifact, Candidate, Device, Judgement, Record, Target, Task, Workload
from sandbox.errors import BadInput
from sandbox.plan import Plan, macros, plan_of
from sandbox.toolchain import LEVELS, CompileFailed, Toolchain

ARCHES = ("sm_80", "sm_86", "sm_89", "sm_90a")
"""What a cuda extension is compiled for besides the judged architecture."""
_NAMES_CPU = re.compile(r"intrin\.h|__builtin_ia32|\basm\b|__asm|#\s*error|__attribute__\s*\(\(\s*target")


class Winner(Record):
    """The best candidate for a workload, with the verdict that says so."""

    candidate: Candidate
    judgement: Judgement | None = None
    lineage: tuple[Candidate, ...] = ()
    """Its ancestors, parents before their children; empty where nobody looked them up."""


class Part(Record):
    """The winners of one task on one device."""

    task: Task
    device: Device
    """What they were judged on."""
    winners: dict[str, Winner]
    """By the name of the workload."""
    shapes: tuple[Workload, ...] = ()
    """Beyond the task's workloads: each has a winner, which was proven there."""
    kept: tuple[Workload, ...] = ()
    """Shapes that PyTorch computes whatever region they lie in: it was faster, or no kernel passed."""


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
    bounds: dict[str, tuple[int, int]] = {}
    """Where it was proven: least and greatest value of each axis that is not static."""
    flags: dict[str, tuple[int, ...]] = {}
    """The values each int scalar that is not static was proven for."""
    images: tuple[Image, ...]
    missing: dict[str, str] = {}
    """Architectures, on cpu levels, it does not compile for, with the compiler's first line."""


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


class Entry(Record):
    """A winner's line in the dispatch table."""

    workload: Workload
    candidate: str
    arch: str
    """What it was judged on."""


class Op(Record):
    """A task with everything that serves it."""

    task: Task
    parts: tuple[Part, ...]
    """One for each device that winners were judged on."""
    variants: tuple[Variant, ...]

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(
            Entry(workload=workload, candidate=part.winners[workload.name].candidate.id, arch=part.device.arch)
            for part in self.parts
            for workload in (*self.task.workloads, *part.shapes)
            if workload.name in part.winners
        )


class Library(Record):
    """What one package is written from."""

    package: str
    namespace: str
    ops: tuple[Op, ...]

    @property
    def target(self) -> Target:
        return self.ops[0].task.target


def ops(parts: Sequence[Part], toolchain: Toolchain) -> tuple[Op, ...]:
    """Every task of the parts, once, compiled for what the winners of all its parts need."""
    names = dict.fromkeys(part.task.name for part in parts)
    return tuple(_op([part for part in parts if part.task.name == name], toolchain) for name in names)


def check_parts(parts: Sequence[Part]) -> None:
    """BadInput where the parts do not go together or a winner does not belong."""
    if not parts:
        raise BadInput("nothing to compose: no tasks given")
    for (name, device), count in Counter((part.task.name, part.device.name) for part in parts).items():
        if count > 1:
            raise BadInput(f"task {name} is given {count} times for {device}")
    for part in parts:
        first = next(p for p in parts if p.task.name == part.task.name)
        if part.task.target != parts[0].task.target:
            both = f"{parts[0].task.name} for {parts[0].task.target} and {part.task.name} for {part.task.target}"
            raise BadInput(f"got {both}, wanted tasks of one target")
        if part.task.version != first.task.version:
            both = f"{first.task.version} and {part.task.version}"
            raise BadInput(f"got versions {both} of task {part.task.name}, wanted one")
        check_winners(part)


def _op(parts: Sequence[Part], toolchain: Toolchain) -> Op:
    merged: dict[str, Variant] = {}
    for part in parts:
        for variant in cover(part, toolchain):
            known = merged.get(variant.candidate.id)
            merged[variant.candidate.id] = _both(known, variant) if known else variant
    return Op(task=parts[0].task, parts=tuple(parts), variants=tuple(merged.values()))


def _both(first: Variant, second: Variant) -> Variant:
    """One candidate that won on two devices: everything that either needs."""
    made = [(spec.dtype, spec.statics) for spec in first.specialisations]
    again = {made.index(key): spec for spec in second.specialisations if (key := (spec.dtype, spec.statics)) in made}
    common = [_images(spec, again[i]) if i in again else spec for i, spec in enumerate(first.specialisations)]
    fresh = [spec for spec in second.specialisations if (spec.dtype, spec.statics) not in made]
    wins = tuple(dict.fromkeys((*first.wins, *second.wins)))
    return first.model_copy(update={"wins": wins, "specialisations": (*common, *fresh)})


def _images(first: Specialisation, second: Specialisation) -> Specialisation:
    """The same source with the same macros is the same code; judged is what was judged on either device."""
    judged = {image.arch for image in (*first.images, *second.images) if image.judged}
    images = {image.arch: image for image in (*second.images, *first.images)}
    marked = [image.model_copy(update={"judged": arch in judged}) for arch, image in images.items()]
    missing = {arch: why for arch, why in {**second.missing, **first.missing}.items() if arch not in images}
    widest = {
        axis: (min(low, second.bounds[axis][0]), max(high, second.bounds[axis][1]))
        for axis, (low, high) in first.bounds.items()
    }
    values = {name: tuple(sorted({*found, *second.flags[name]})) for name, found in first.flags.items()}
    changes = {"images": tuple(marked), "missing": missing, "bounds": widest, "flags": values}
    return first.model_copy(update=changes)


def check_winners(part: Part) -> None:
    """BadInput where a winner does not belong to the task or did not pass."""
    task, winners = part.task, part.winners
    versions = {w.name: task.version for w in task.workloads} | {w.name: task.on(w).version for w in part.shapes}
    if not winners:
        raise BadInput(f"nothing to compose for task {task.name}: no winners given")
    for name, winner in winners.items():
        candidate, judgement = winner.candidate, winner.judgement
        got = f"winner {candidate.id[:12]} of workload {name!r}"
        if name not in versions:
            raise BadInput(f"{got}: task {task.name} has no such workload; it has {', '.join(sorted(versions))}")
        if (candidate.task, candidate.target) != (task.name, task.target):
            raise BadInput(f"{got} is for {candidate.task} on {candidate.target}, wanted {task.name} on {task.target}")
        if judgement and (judgement.candidate, judgement.task_version) != (candidate.id, versions[name]):
            raise BadInput(f"{got}: its judgement is of another candidate or another version of the task")
        if judgement and judgement.verdict.status != "Passed":
            raise BadInput(f"{got}: its verdict is {judgement.verdict.status}, wanted Passed")


def cover(part: Part, toolchain: Toolchain) -> tuple[Variant, ...]:
    """Compile each winner for the workloads it won, then the nearest that compiles for those nobody serves yet."""
    task, winners = part.task, part.winners
    workloads = {w.name: w for w in (*task.workloads, *task.held_out, *part.shapes)}
    builds = {w.candidate.id: _Builds(part, w, toolchain) for w in winners.values()}
    for name, winner in winners.items():
        try:
            builds[winner.candidate.id].add(workloads[name])
        except CompileFailed as exc:
            raise BadInput(f"winner {winner.candidate.id[:12]} does not compile for {name}:\n{exc.log}") from exc
    for workload in (w for w in workloads.values() if w.name not in winners):
        names = nearest(workload, [workloads[name] for name in winners])
        ranked = dict.fromkeys(winners[name].candidate.id for name in names)
        if not any(builds[key].serves(workload) for key in ranked):
            _add_to_first([builds[key] for key in ranked], workload)
    return tuple(build.variant(_wins(winners, key)) for key, build in builds.items())


class _Builds:
    """What one winner has been compiled for so far."""

    def __init__(self, part: Part, winner: Winner, toolchain: Toolchain) -> None:
        self.part, self.winner, self.toolchain = part, winner, toolchain
        self.task, self.device = part.task, part.device
        self.plan, self.tunables = plan_of(winner.candidate, part.task)
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
        elsewhere = self._elsewhere if self.task.target == "cuda" else self._levels
        others, missing = elsewhere(definitions)
        values = {**workload.axes, **workload.scalars}
        self.made.append(
            Specialisation(
                dtype=workload.dtype,
                statics={name: int(values[name]) for name in self.plan.static},
                macros=definitions,
                bounds=bounds(self.part, self.winner.candidate.id, self.plan, workload.dtype),
                flags=flags(self.part, self.winner.candidate.id, self.plan, workload.dtype),
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

    def _levels(self, definitions: dict[str, str]) -> tuple[list[Image], dict[str, str]]:
        """The levels for which there is no code. Only a source that names the CPU can fail where another compiled."""
        missing = {}
        for level in levels(self.device) if _NAMES_CPU.search(self.winner.candidate.source) else ():
            try:
                self.toolchain.build(self.winner.candidate.source, "cpu", definitions, level)
            except CompileFailed as exc:
                missing[level] = _first_error(exc)
        return [], missing

    def _elsewhere(self, definitions: dict[str, str]) -> tuple[list[Image], dict[str, str]]:
        """Cubins for the other architectures and PTX, and the architectures for which there is none."""
        source, images, missing = self.winner.candidate.source, [], {}
        archs = other_arches(self.plan, self.device.arch)
        with ThreadPoolExecutor(len(ARCHES)) as pool:
            built = list(pool.map(lambda arch: _built(self.toolchain, source, definitions, arch), archs))
        for arch, found in zip(archs, built, strict=True):
            if isinstance(found, CompileFailed):
                missing[arch] = _first_error(found)
            else:
                images.append(Image(arch=arch, artifact=found, judged=False))
        # The PTX of an `a` variant runs nowhere else.
        portable = [arch for arch in (self.device.arch, *(i.arch for i in images)) if arch[-1].isdigit()]
        if portable:
            lowest = min(portable, key=capability)
            artifact = self.toolchain.ptx(source, definitions, lowest)
            images.append(Image(arch=lowest.replace("sm_", "compute_"), artifact=artifact, judged=False))
        return images, missing


def _built(toolchain: Toolchain, source: str, definitions: dict[str, str], arch: str) -> Artifact | CompileFailed:
    try:
        return toolchain.build(source, "cuda", definitions, arch)
    except CompileFailed as exc:
        return exc


def levels(device: Device) -> tuple[str, ...]:
    """What the kernels of a wheel are compiled for, worst first."""
    return LEVELS if device.arch == "x86_64" else ("baseline",)


def bounds(part: Part, candidate: str, plan: Plan, dtype: str) -> dict[str, tuple[int, int]]:
    """The region that verdicts prove for a dtype: what lies between the workloads, and the shapes that it won."""
    seen = _proven(part, candidate, dtype)
    axes = [axis for axis in part.task.axes if axis not in plan.static]
    return {axis: (min(w.axes[axis] for w in seen), max(w.axes[axis] for w in seen)) for axis in axes}


def flags(part: Part, candidate: str, plan: Plan, dtype: str) -> dict[str, tuple[int, ...]]:
    seen = _proven(part, candidate, dtype)
    names = [s.name for s in part.task.scalars if s.type == "int" and s.name not in plan.static]
    return {name: tuple(sorted({int(w.scalars[name]) for w in seen})) for name in names}


def _proven(part: Part, candidate: str, dtype: str) -> list[Workload]:
    won = [shape for shape in part.shapes if part.winners[shape.name].candidate.id == candidate]
    return [w for w in (*part.task.workloads, *part.task.held_out, *won) if w.dtype == dtype]


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


def nearest(workload: Workload, others: Sequence[Workload]) -> list[str]:
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
