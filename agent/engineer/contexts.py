"""What a prompt may draw on: the parents, the best of other kinds, kernels of other tasks, and what failed before.

Not covered: how it is put into words (prompts).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.engineer import ideas
from agent.engineer.niches import elites
from agent.engineer.records import Context, Exhibit, Foreign, Idea, Operator
from agent.engineer.retrieval import Related
from agent.engineer.scores import score
from agent.steps import Judged
from archive.lineage import Edges
from sandbox.contract import Device, Task

INSPIRATIONS = 2
FOREIGN = 2
"""Kernels of other tasks."""
_INVENTING: tuple[Operator, ...] = ("translate", "rewrite")
"""Operators that are free to take another structure, and so are shown what other tasks do."""


def context(
    task: Task,
    device: Device,
    operator: Operator,
    parents: Sequence[Exhibit],
    judged: Sequence[Judged],
    tried: Sequence[Idea] = (),
    edges: Edges | None = None,
    related: Sequence[Related] = (),
) -> Context:
    """For an operator on these parents; `tried` are the run's ideas, `edges` its lineage."""
    own = {parent.candidate.id for parent in parents}
    ranked = sorted(elites(judged, task, device).values(), key=lambda entry: -entry.score)
    others = [entry for entry in ranked if entry.candidate.id not in own][:INSPIRATIONS]
    return Context(
        task=task,
        device=device,
        operator=operator,
        parents=tuple(parents),
        inspirations=tuple(Exhibit(candidate=e.candidate, judgement=e.judgement) for e in others),
        foreign=tuple(_foreign(each) for each in related[:FOREIGN]) if operator in _INVENTING else (),
        ideas=tuple(ideas.of_lineage(tried, parents[0].candidate.id, edges or {})) if parents else (),
    )


def exhibit(judged: Judged, related: Sequence[Related]) -> Exhibit:
    """Of a parent, with the task that it was judged on where that is one of the `related`."""
    candidate, judgement = judged
    version = judgement.task_version
    others = [r.task for r in related if (r.candidate.id, r.judgement.task_version) == (candidate.id, version)]
    return Exhibit(candidate=candidate, judgement=judgement, elsewhere=others[0] if others else None)


def _foreign(found: Related) -> Foreign:
    return Foreign(
        task=found.task.name,
        summary=found.task.summary,
        candidate=found.candidate,
        speedup=math.exp(score(found.judgement) or 0.0),
    )
