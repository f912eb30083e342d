"""Where everything in an extension comes from: candidates and their ancestors, verdicts, compiled code.

Not covered: the sources of ancestors and the exchanges with models, which the archive knows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agent.export.coverage import Library, Op, Part, Specialisation, Variant, Winner, levels, served
from agent.export.rendering import title
from agent.export.signature import schema
from sandbox.contract import Candidate, Judgement, Passed, Task, Timing, Workload
from sandbox.errors import BadInput
from sandbox.toolchain import NATIVE


def provenance(library: Library) -> dict[str, Any]:
    """Where everything in the tree comes from, as plain JSON values."""
    return {
        "package": library.package,
        "namespace": library.namespace,
        "target": library.target,
        "levels": list(levels(library.ops[0].parts[0].device)) if library.target == "cpu" else [],
        "tasks": {op.task.name: _task(op) for op in library.ops},
    }


def read(root: Path) -> dict[str, Any]:
    """The provenance of a composed tree; BadInput where `root` is none."""
    try:
        known: dict[str, Any] = json.loads((root / root.name / "provenance.json").read_text())
    except (OSError, ValueError) as exc:
        raise BadInput(f"{root} is no composed extension: {exc}") from exc
    return known


def _task(op: Op) -> dict[str, Any]:
    return {
        "task_version": op.task.version,
        "summary": op.task.summary,
        "schema": schema(op.task),
        "devices": [part.device.model_dump(mode="json") for part in op.parts],
        "served": served(op.task, op.variants),
        "workloads": [
            {"workload": name, **_award(name, part, winner)}
            for part in op.parts
            for name, winner in part.winners.items()
        ],
        "shapes": [_shape(op.task, part, shape) for part in op.parts for shape in (*part.shapes, *part.kept)],
        "candidates": {v.candidate.id: _origin(op, v) for v in op.variants},
    }


def _shape(task: Task, part: Part, shape: Workload) -> dict[str, Any]:
    """A shape beyond the task's workloads, what computes it, and what of PyTorch's own was faster."""
    winner = part.winners.get(shape.name)
    flags = {s.name: shape.scalars[s.name] for s in task.scalars if s.type == "int"}
    return {
        "workload": shape.name,
        "device": part.device.name,
        "arch": part.device.arch,
        "dtype": shape.dtype,
        "sizes": {**shape.axes, **flags},
        "candidate": winner.candidate.id if winner else None,
        "faster": faster(_timing(shape.name, winner)) if winner else "PyTorch",
    }


def faster(timing: Timing | None) -> str:
    """The fastest of PyTorch's own calls where it beats the kernel; empty where none does.

    torch.compile does not count: it is no call that a model in eager PyTorch makes.
    """
    if timing is None:
        return ""
    own = {name: b.median_ms for name, b in timing.baselines.items() if name == "eager" or name.startswith("library:")}
    best = min(own, key=own.__getitem__, default="")
    return best if best and own[best] < timing.candidate.median_ms else ""


def _timing(name: str, winner: Winner) -> Timing | None:
    verdict = winner.judgement.verdict if winner.judgement else None
    timings = verdict.timings if isinstance(verdict, Passed) else ()
    return next((timing for timing in timings if timing.workload == name), None)


def _award(name: str, part: Part, winner: Winner) -> dict[str, Any]:
    """What a workload's winner was measured at."""
    timing, judgement = _timing(name, winner), winner.judgement
    award: dict[str, Any] = {
        "candidate": winner.candidate.id,
        "judged": judgement is not None,
        "device": part.device.name,
        "arch": part.device.arch,
    }
    if judgement:
        award |= judgement.model_dump(mode="json", include={"judge_version", "judged_at", "versions"})
    if timing:
        award |= {
            "latency_ms": timing.candidate.median_ms,
            "latency_interval_ms": [timing.candidate.low_ms, timing.candidate.high_ms],
            "speedup": {name: b.median_ms / timing.candidate.median_ms for name, b in timing.baselines.items()},
            "roofline_share": timing.roofline_share,
        }
    return award


def figures(name: str, winner: Winner) -> dict[str, str]:
    """Latency and speedups on the workload, for people."""
    timing = _timing(name, winner)
    if timing is None:
        return {"latency": "–", "speedup": "–"}
    speedups = (f"{b.median_ms / timing.candidate.median_ms:.2f}× {name}" for name, b in timing.baselines.items())
    return {"latency": f"{timing.candidate.median_ms:.4g} ms", "speedup": ", ".join(speedups) or "–"}


def _origin(op: Op, variant: Variant) -> dict[str, Any]:
    candidate = variant.candidate
    winners = [
        (part.device.name, winner)
        for part in op.parts
        for winner in part.winners.values()
        if winner.candidate.id == candidate.id
    ]
    return {
        "source": f"kernels/{variant.id12}.{'cu' if op.task.target == 'cuda' else 'cpp'}",
        "title": title(variant),
        **_authorship(candidate),
        "lineage": {ancestor.id: _authorship(ancestor) for ancestor in winners[0][1].lineage},
        "tunables": variant.tunables,
        "wins": list(variant.wins),
        "judgements": {device: _judged(w.judgement) for device, w in winners if w.judgement},
        "specialisations": [_compiled(op, spec) for spec in variant.specialisations],
    }


def _authorship(candidate: Candidate) -> dict[str, Any]:
    return candidate.model_dump(mode="json", include={"operator", "proposer", "parents"})


def _judged(judgement: Judgement) -> dict[str, Any]:
    """The whole verdict on one device, less the rounds it was made of."""
    found = judgement.model_dump(mode="json", include={"judge_version", "judged_at", "versions"})
    verdict = judgement.verdict
    if isinstance(verdict, Passed):
        found |= verdict.model_dump(mode="json", include={"confirmed", "speedup", "faster_than", "deterministic"})
        found["checks"] = len(verdict.checks)
        found["timings"] = {timing.workload: _table(timing) for timing in verdict.timings}
    return found


def _table(timing: Timing) -> dict[str, Any]:
    """Milliseconds of the candidate and of every baseline: median, and its interval."""
    subjects = {"candidate": timing.candidate, **timing.baselines}
    return {name: [m.median_ms, m.low_ms, m.high_ms] for name, m in subjects.items()}


def _compiled(op: Op, spec: Specialisation) -> dict[str, Any]:
    artifacts = {i.arch: {"sha256": i.artifact.sha256, "judged": i.judged} for i in spec.images}
    compiled = {
        "dtype": spec.dtype,
        "statics": spec.statics,
        "bounds": spec.bounds,
        "flags": spec.flags,
        "macros": spec.macros,
        "artifacts": artifacts,
        "does_not_compile_for": spec.missing,
    }
    if op.task.target == "cpu":
        # What was judged was compiled for the CPU it was judged on; a wheel holds other code of the same source.
        left = [level for level in levels(op.parts[0].device) if level not in spec.missing]
        compiled |= {"judged_with": NATIVE, "levels_not_judged": left}
    return compiled
