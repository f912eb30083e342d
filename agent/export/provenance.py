"""Where everything in an extension comes from: candidates, verdicts, compiled code.

Not covered: the lineage behind a candidate's parents, which the archive knows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.export.coverage import Library, Op, Part, Specialisation, Variant, Winner, served
from agent.export.rendering import title
from agent.export.signature import schema
from sandbox.contract import Passed, Task, Timing
from sandbox.errors import BadInput


def provenance(library: Library, levels: Sequence[str] = ()) -> dict[str, Any]:
    """Where everything in the tree comes from, as plain JSON values."""
    return {
        "package": library.package,
        "namespace": library.namespace,
        "target": library.target,
        "levels": list(levels),
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
        "candidates": {v.candidate.id: _origin(op.task, v) for v in op.variants},
    }


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
        "bounds": spec.bounds,
        "flags": spec.flags,
        "macros": spec.macros,
        "artifacts": artifacts,
        "does_not_compile_for": spec.missing,
    }
