"""Which kernel of an archive is right, and fastest, on shapes beyond a task's workloads: the judge says, once.

A verdict on a shape is one of the task on that shape alone (`Task.on`), in the archive like any other; what it holds is
not judged again. Not covered: confirming (a verdict here rests on as few rounds as in a search), and new candidates.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence

from agent import session, steps
from agent.export.coverage import nearest
from agent.export.provenance import faster
from agent.steps import Judged
from archive import Archive
from sandbox import devices, launch, statistics
from sandbox.contract import Candidate, Device, Judgement, Passed, Record, Task, Timing, Workload
from sandbox.errors import BadInput
from sandbox.judge import Judge
from sandbox.launch import Sandbox

TRIED = 2
"""Candidates for each shape: those that are fastest on the nearest of the task's workloads."""
WRONG = ("Incorrect", "Cheated")


class Proof(Record):
    """What the verdicts on one shape come to, on one device."""

    workload: Workload
    candidate: Candidate | None = None
    """The fastest that passed; None where PyTorch keeps the shape."""
    judgement: Judgement | None = None
    why: str = ""
    """Why PyTorch keeps it, or where something of PyTorch's own is faster than the kernel."""


def prove(
    archive: Archive,
    task: Task,
    device: Device,
    standing: Sequence[Judged],
    shapes: Sequence[Workload],
    sandbox: Sandbox = "auto",
    report: Callable[[str], None] = print,
) -> tuple[list[Proof], set[str]]:
    """What becomes of each shape, and the candidates that were found wrong on one inside the task's own region.

    `standing` are the candidates to choose from with their verdicts on the task. What has no verdict yet is judged,
    which takes the device itself: BadInput where it is another machine's.
    """
    chosen = {shape.name: likeliest(standing, task, shape) for shape in shapes}
    candidates = list({c.id: c for found in chosen.values() for c in found}.values())
    _judge_missing(archive, task, device, candidates, shapes, sandbox, report)
    judged = {shape.name: _verdicts(archive, task, device, candidates, shape) for shape in shapes}
    disproved = {
        candidate.id
        for shape in shapes
        for candidate, judgement in judged[shape.name]
        if judgement.verdict.status in WRONG and inside(task, shape)
    }
    return [
        _proof(shape, [(c, j) for c, j in judged[shape.name] if c.id not in disproved]) for shape in shapes
    ], disproved


def likeliest(standing: Sequence[Judged], task: Task, shape: Workload) -> list[Candidate]:
    """The candidates that are fastest on the nearest workload, best first."""
    near = nearest(shape, task.workloads)[0]
    return [candidate for candidate, _ in sorted(standing, key=lambda judged: steps.cost(judged[1], near))[:TRIED]]


def inside(task: Task, shape: Workload) -> bool:
    """Whether every axis lies between the least and the greatest of the task's workloads in that dtype."""
    own = [w.axes for w in (*task.workloads, *task.held_out) if w.dtype == shape.dtype]
    return all(min(w[a] for w in own) <= shape.axes[a] <= max(w[a] for w in own) for a in task.axes)


# ---------------------------------------------------------------- verdicts


def _judge_missing(
    archive: Archive,
    task: Task,
    device: Device,
    candidates: Sequence[Candidate],
    shapes: Sequence[Workload],
    sandbox: Sandbox,
    report: Callable[[str], None],
) -> None:
    """Judge what the archive has no verdict on. Candidates that lack the same shapes are judged on them together."""
    groups: dict[tuple[str, ...], list[Candidate]] = {}
    for candidate in candidates:
        if lacking := tuple(s.name for s in shapes if _verdict(archive, task, device, candidate, s) is None):
            groups.setdefault(lacking, []).append(candidate)
    if not groups:
        return
    _require_here(task, device, next(iter(groups))[0])
    launcher, why = launch.choose(sandbox, device)
    with contextlib.closing(launcher), session.toolchain(launcher) as tools, Judge(device, tools, launcher) as judge:
        for lacking, group in groups.items():
            report(f"judging {len(group)} kernels of {task.name} on {len(lacking)} shapes · sandbox: {why}")
            _judge(archive, judge, task, group, [shape for shape in shapes if shape.name in lacking])


def _judge(
    archive: Archive, judge: Judge, task: Task, candidates: Sequence[Candidate], shapes: Sequence[Workload]
) -> None:
    """All shapes at once, since opening a task takes longer than a verdict; who fails on one, again on the others."""
    known = {candidate.id: candidate for candidate in candidates}
    left: dict[tuple[str, ...], list[Candidate]] = {}
    for judgement in judge.judge_all(task.on(*shapes), candidates):
        settled = [shape for shape in shapes if len(shapes) == 1 or _is_about(judgement, shape)]
        for shape in settled:
            archive.record(_of_one(task, judgement, shape))
        rest = [shape.name for shape in shapes if shape not in settled]
        # A build that fails does not say for which shape.
        for names in [rest] if settled else [[name] for name in rest]:
            if names:
                left.setdefault(tuple(names), []).append(known[judgement.candidate])
    for wanted, group in left.items():
        _judge(archive, judge, task, group, [shape for shape in shapes if shape.name in wanted])


def _is_about(judgement: Judgement, shape: Workload) -> bool:
    """Whether a judgement on several shapes says all there is to say of this one."""
    return isinstance(judgement.verdict, Passed) or getattr(judgement.verdict, "workload", None) == shape.name


def _of_one(task: Task, judgement: Judgement, shape: Workload) -> Judgement:
    """The part of a judgement on several shapes that is about one of them."""
    verdict = judgement.verdict
    if isinstance(verdict, Passed):
        timings = tuple(timing for timing in verdict.timings if timing.workload == shape.name)
        own = {
            "checks": tuple(check for check in verdict.checks if check.workload == shape.name),
            "timings": timings,
            "speedup": statistics.speedups(timings),
            "latency_ms": timings[0].candidate.median_ms,
        }
        verdict = verdict.model_copy(update=own)
    return judgement.model_copy(update={"task_version": task.on(shape).version, "verdict": verdict})


def _verdict(archive: Archive, task: Task, device: Device, candidate: Candidate, shape: Workload) -> Judgement | None:
    return archive.judged(candidate.id, task.on(shape).version, task.target, device.name)


def _verdicts(
    archive: Archive, task: Task, device: Device, candidates: Sequence[Candidate], shape: Workload
) -> list[Judged]:
    found = ((candidate, _verdict(archive, task, device, candidate, shape)) for candidate in candidates)
    return [(candidate, judgement) for candidate, judgement in found if judgement]


def _require_here(task: Task, device: Device, lacking: str) -> None:
    if device.target == "cpu":
        here = devices.cpu().name
    else:
        here = "" if "missing" in devices.asked_driver() else devices.detect("cuda").name
    if here != device.name:
        raise BadInput(
            f"task {task.name!r} has no verdict on {lacking} for {device.name}, and this machine has "
            f"{here or 'no GPU'}: export on that device once, or leave the shape out"
        )


# ---------------------------------------------------------------- what they come to


def _proof(shape: Workload, judged: Sequence[Judged]) -> Proof:
    passed = [(c, j) for c, j in judged if isinstance(j.verdict, Passed)]
    if not passed:
        counts = Counter(j.verdict.status for _, j in judged)
        said = ", ".join(f"{status} {count}" for status, count in counts.items()) or "none was tried"
        return Proof(workload=shape, why=f"PyTorch keeps it: no kernel passed ({said})")
    candidate, judgement = min(passed, key=lambda each: steps.cost(each[1], shape.name))
    timing = _timing(judgement)
    ratio = {name: b.median_ms / timing.candidate.median_ms for name, b in timing.baselines.items()}
    if ratio["eager"] < 1:
        return Proof(
            workload=shape, why=f"PyTorch keeps it: {candidate.id[:12]} is {ratio['eager']:.3f} times as fast as eager"
        )
    best = faster(timing)
    why = f"layers keep PyTorch's {best}: the kernel is {ratio[best]:.3f} times as fast" if best else ""
    return Proof(workload=shape, candidate=candidate, judgement=judgement, why=why)


def _timing(judgement: Judgement) -> Timing:
    assert isinstance(judgement.verdict, Passed)
    return judgement.verdict.timings[0]
