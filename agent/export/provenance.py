"""Where everything in an extension comes from: candidates, verdicts, compiled code.

Not covered: the lineage behind a candidate's parents, which the archive knows.
"""

from __future__ import annotations

from typing import Any

from agent.export.coverage import Specialisation, Variant, Winner, served
from agent.export.rendering import title
from sandbox.contract import Device, Passed, Task, Timing


def provenance(
    task: Task, package: str, variants: tuple[Variant, ...], winners: dict[str, Winner], device: Device
) -> dict[str, Any]:
    """Where everything in the tree comes from, as plain JSON values."""
    return {
        "package": package,
        "task": task.name,
        "task_version": task.version,
        "target": task.target,
        "device": device.model_dump(mode="json"),
        "served": served(task, variants),
        "workloads": {name: _award(name, winner) for name, winner in winners.items()},
        "candidates": {v.candidate.id: _origin(task, v) for v in variants},
    }


def _timing(name: str, winner: Winner) -> Timing | None:
    verdict = winner.judgement.verdict if winner.judgement else None
    timings = verdict.timings if isinstance(verdict, Passed) else ()
    return next((timing for timing in timings if timing.workload == name), None)


def _award(name: str, winner: Winner) -> dict[str, Any]:
    """What a workload's winner was measured at."""
    timing, judgement = _timing(name, winner), winner.judgement
    award: dict[str, Any] = {"candidate": winner.candidate.id, "judged": judgement is not None}
    if judgement:
        award |= judgement.model_dump(mode="json", include={"device", "judge_version", "judged_at", "versions"})
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


def _origin(task: Task, variant: Variant) -> dict[str, Any]:
    candidate = variant.candidate
    return {
        "source": f"kernels/{variant.id12}.{'cu' if task.target == 'cuda' else 'cpp'}",
        "title": title(variant),
        "operator": candidate.operator,
        "proposer": candidate.proposer,
        "parents": list(candidate.parents),
        "tunables": variant.tunables,
        "wins": list(variant.wins),
        "specialisations": [_compiled(spec) for spec in variant.specialisations],
    }


def _compiled(spec: Specialisation) -> dict[str, Any]:
    artifacts = {i.arch: {"sha256": i.artifact.sha256, "judged": i.judged} for i in spec.images}
    return {
        "dtype": spec.dtype,
        "statics": spec.statics,
        "macros": spec.macros,
        "artifacts": artifacts,
        "does_not_compile_for": spec.missing,
    }
