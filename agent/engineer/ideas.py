"""What was tried on a lineage and what came of it, so that no plan which failed there is tried again.

A lineage is a candidate with all its ancestors; an idea belongs to it that was tried on any of them, or that made one
of them. Not covered: ideas on other lineages, where the same change may well work.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from agent.engineer.records import Idea, Plan
from agent.engineer.scores import score
from agent.engineer.tokens import tokens
from agent.words import ratio
from archive.lineage import Edges, ancestors
from sandbox.contract import Judgement

NEAR = 0.8
"""Jaccard similarity of two plans' words from which on they are the same idea."""

_GAIN = re.compile(r"(\d+(?:\.\d+)?)x over its parent")


# ---------------------------------------------------------------- what came of an idea


def outcome(judgement: Judgement, parent_score: float | None) -> str:
    """An idea's outcome in words. Says nothing of workloads: one that failed may be held out."""
    own = score(judgement)
    if own is None:
        verdict = judgement.verdict
        rule = verdict.rule if verdict.status in ("Incorrect", "Cheated") else ""
        return f"{verdict.status}: {rule}" if rule else verdict.status
    if parent_score is None:
        return f"passed, {ratio(math.exp(own))}x eager"
    gain = ratio(math.exp(own - parent_score))
    return f"{gain}x over its parent" if float(gain) >= 1 else f"slower: {gain}x"


def failed(idea: Idea) -> bool:
    """Whether the idea's candidate did not pass, or was slower than its parent."""
    gain = _GAIN.match(idea.outcome)
    if gain is not None:
        return float(gain[1]) < 1
    return not idea.outcome.startswith("passed")


# ---------------------------------------------------------------- which ideas are closed


def of_lineage(ideas: Sequence[Idea], candidate: str, edges: Edges) -> list[Idea]:
    """The ideas tried on the candidate or its ancestors, in the order given, and those that made them."""
    line = set(ancestors(candidate, edges))
    return [idea for idea in ideas if idea.candidate in line or idea.parent in line]


def closed(ideas: Sequence[Idea], candidate: str, edges: Edges) -> list[Idea]:
    """The lineage's ideas that failed and did not work out later, after a repair say. `ideas` are in order of time."""
    own = of_lineage(ideas, candidate, edges)
    return [
        idea
        for at, idea in enumerate(own)
        if failed(idea) and not any(not failed(later) and same(later.plan, idea.plan) for later in own[at + 1 :])
    ]


def refused(plan: Plan, ideas: Sequence[Idea], candidate: str, edges: Edges) -> Idea | None:
    """The closed idea that the plan for `candidate` repeats, the nearest of several; None where it is new."""
    nearest = max(closed(ideas, candidate, edges), key=lambda idea: similarity(plan, idea.plan), default=None)
    return nearest if nearest is not None and same(plan, nearest.plan) else None


def same(one: Plan, other: Plan) -> bool:
    return similarity(one, other) >= NEAR


def similarity(one: Plan, other: Plan) -> float:
    """Jaccard similarity of what the plans change; why they do so does not count."""
    a, b = _tokens(one), _tokens(other)
    return len(a & b) / len(a | b)


def _tokens(plan: Plan) -> frozenset[str]:
    """What the plan changes, in words and in its choices: never empty."""
    return frozenset([*tokens(plan.change), f"memory:{plan.memory}", f"tensor cores:{plan.tensor_cores}"])
