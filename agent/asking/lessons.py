"""What was changed on a lineage and what came of it: read off candidates and verdicts, whoever made them."""

from __future__ import annotations

from collections.abc import Sequence

from agent.engineer.ideas import outcome
from agent.engineer.scores import score
from agent.steps import Judged
from archive.lineage import Edges, ancestors
from sandbox.contract import Record


class Lesson(Record):
    """A candidate that was made of another."""

    candidate: str
    parents: tuple[str, ...]
    operator: str
    proposer: str
    change: str
    """As whoever made it says, else its operator."""
    outcome: str
    """In words, such as `1.12x over its parent`, `slower: 0.8x`, `Incorrect: error`."""

    @property
    def line(self) -> str:
        return f"{self.change} → {self.outcome}"


def of_all(judged: Sequence[Judged]) -> list[Lesson]:
    """Of every candidate with parents, in order of their first judgement, by their last one."""
    last = {candidate.id: (candidate, judgement) for candidate, judgement in judged}
    scores = {name: score(judgement) for name, (_, judgement) in last.items()}
    return [
        Lesson(
            candidate=candidate.id,
            change=candidate.note or candidate.operator,
            outcome=outcome(judgement, scores.get(candidate.parents[0])),
            **candidate.model_dump(include={"parents", "operator", "proposer"}),
        )
        for candidate, judgement in last.values()
        if candidate.parents
    ]


def of_lineage(judged: Sequence[Judged], candidates: Sequence[str], edges: Edges) -> list[Lesson]:
    """Those of the candidates, of their ancestors, and of what else was made of any of these."""
    line = {name for candidate in candidates for name in ancestors(candidate, edges)}
    return [lesson for lesson in of_all(judged) if lesson.candidate in line or line & set(lesson.parents)]
