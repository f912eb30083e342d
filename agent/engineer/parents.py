"""Which kernel is improved next: islands of lineages, elites on each, a draw that favours good and little-tried ones.

Half of the draws take the best of all. In the others a parent's weight is sigmoid(10 (score - median) / MAD) /
(1 + children): ShinkaEvolve, arXiv 2509.19349. Everything is read off the history, so a resumed search stands where it
stood. Not covered: what is done with the parent (bandit).
"""

from __future__ import annotations

import hashlib
import math
import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.engineer.niches import best_by_cell, cell
from agent.engineer.retrieval import LEAST_KINSHIP, Related
from agent.engineer.scores import Scored, best, scored
from agent.steps import Judged
from sandbox.contract import Device, Task
from sandbox.statistics import LEAST_GAIN

ISLANDS = 2
MIGRATE_EVERY = 10
"""Candidates that passed, over all islands, between two migrations."""
EXPLOITATION = 0.5
"""Share of the draws that take the best of all: a budget of tens of evaluations is soon gone on turns."""
STEEPNESS = 10.0
LEAST_SPREAD = math.log(LEAST_GAIN)
"""Stands in for a smaller MAD: scores nearer to each other than the judge can tell apart weigh about the same."""


@dataclass(frozen=True)
class Choice:
    parent: Scored
    island: int
    """Where the child is bred; tell `islands` in `bred_on`."""


# ---------------------------------------------------------------- islands


def homes(history: Sequence[Judged], count: int, bred_on: Mapping[str, int] | None = None) -> dict[str, int]:
    """The island of every candidate: where it was bred, if that is known, else its first parent's.

    Candidates without parents are dealt out in turn; one whose parent is not in the history goes by its parent's hash.
    """
    found: dict[str, int] = {}
    roots = 0
    for candidate, _ in history:
        if candidate.id in found:
            continue
        parent = candidate.parents[0] if candidate.parents else None
        if bred_on is not None and candidate.id in bred_on:
            found[candidate.id] = bred_on[candidate.id] % count
        elif parent is not None:
            found[candidate.id] = found.get(parent, _by_hash(parent, count))
        else:
            found[candidate.id] = roots % count
            roots += 1
    return found


def _by_hash(name: str, count: int) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % count


def islands(
    history: Sequence[Judged],
    count: int = ISLANDS,
    migrate_every: int = MIGRATE_EVERY,
    bred_on: Mapping[str, int] | None = None,
) -> list[list[Scored]]:
    """The candidates on each island, those that came by migration among them.

    After every `migrate_every` candidates that passed, the best of each island is copied to the next one, in a ring.
    Without `bred_on` a migrant's children return to the island of its line.
    """
    home = homes(history, count, bred_on)
    members: list[dict[str, Scored]] = [{} for _ in range(count)]
    for accepted, entry in enumerate(scored(history), start=1):
        members[home[entry.candidate.id]][entry.candidate.id] = entry
        if accepted % migrate_every == 0:
            _migrate(members)
    return [list(island.values()) for island in members]


def _migrate(members: list[dict[str, Scored]]) -> None:
    travellers = [best(island.values()) for island in members]
    for origin, traveller in enumerate(travellers):
        if traveller is not None:
            members[(origin + 1) % len(members)].setdefault(traveller.candidate.id, traveller)


# ---------------------------------------------------------------- parents


def children(history: Sequence[Judged]) -> Counter[str]:
    """How many candidates each one is a parent of, those that failed included."""
    judged = {candidate.id: candidate for candidate, _ in history}
    return Counter(parent for candidate in judged.values() for parent in set(candidate.parents))


def weights(scores: Sequence[float], offspring: Sequence[int]) -> list[float]:
    """Of each parent in the draw, not normalised; at least one is above 0."""
    if not scores:
        return []
    median = statistics.median(scores)
    spread = max(statistics.median(abs(score - median) for score in scores), LEAST_SPREAD)
    return [
        _sigmoid(STEEPNESS * (score - median) / spread) / (1 + born)
        for score, born in zip(scores, offspring, strict=True)
    ]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def choose(
    members: Sequence[Sequence[Scored]],
    born: Mapping[str, int],
    task: Task,
    device: Device,
    rng: random.Random,
) -> Choice | None:
    """The best of all, or a parent among the elites of an island drawn evenly; None where nothing has passed.

    The best of an island is always an elite. `born` is `children(history)`, with those on their way if there are any.
    """
    inhabited = [number for number, island in enumerate(members) if island]
    if not inhabited:
        return None
    if rng.random() < EXPLOITATION:
        leaders = {number: max(members[number], key=lambda entry: entry.score) for number in inhabited}
        leading = max(inhabited, key=lambda number: leaders[number].score)
        return Choice(leaders[leading], leading)
    island = rng.choice(inhabited)
    elites = list(best_by_cell(members[island], task, device).values())
    weighed = weights([entry.score for entry in elites], [born.get(entry.candidate.id, 0) for entry in elites])
    return Choice(rng.choices(elites, weighed)[0], island)


def mate(
    members: Sequence[Sequence[Scored]],
    parent: Scored,
    born: Mapping[str, int],
    task: Task,
    device: Device,
    rng: random.Random,
    related: Sequence[Related] = (),
) -> Judged | None:
    """Whom to cross `parent` with: an elite of another cell, from any island, or of a task much like this one.

    None where there is neither. Weighed by children, and kernels of other tasks by similarity, but not by score: a mate
    is wanted for what it does otherwise, be it slower as a whole.
    """
    everyone = list({entry.candidate.id: entry for island in members for entry in island}.values())
    own = cell(parent, task, device)
    others = [entry for niche, entry in best_by_cell(everyone, task, device).items() if niche != own]
    abroad = [entry for entry in related if entry.similarity >= LEAST_KINSHIP]
    pool = [(entry.candidate, entry.judgement) for entry in others]
    pool += [(entry.candidate, entry.judgement) for entry in abroad]
    likeness = [*(1.0 for _ in others), *(entry.similarity for entry in abroad)]
    weighed = [like / (1 + born.get(mate.id, 0)) for (mate, _), like in zip(pool, likeness, strict=True)]
    return rng.choices(pool, weighed)[0] if pool else None
