"""What the exchanges of a run and its verdicts say of earlier attempts: for the bandit, for plans, for the end.

An attempt is one or more requests for a plan, whose operator is named `plan …`, and for code; those of an attempt that
came to something name its candidate. Not covered: attempts of other runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from agent.engineer import ideas as outcomes
from agent.engineer.bandit import Arm, Observation
from agent.engineer.records import Idea, Operator, Plan
from agent.engineer.reply import read_plan
from agent.engineer.scores import score
from agent.models.endpoint import Reply
from agent.steps import Judged
from archive import Exchange

PLANNING = "plan "
"""Before the operator of a request for a plan."""
_OPERATORS: dict[str, Operator] = {operator: operator for operator in get_args(Operator)}


def observations(exchanges: Sequence[Exchange], judged: Sequence[Judged]) -> list[Observation]:
    """Every request for code, and every plan that led to none, in order of time. The cost is that of the attempt."""
    known = {candidate.id: (candidate, judgement) for candidate, judgement in judged}
    found: list[Observation] = []
    planned = 0.0
    for at, exchange in enumerate(exchanges):
        operator = _OPERATORS.get(exchange.operator.removeprefix(PLANNING))
        if operator is None:
            continue
        planning = exchange.operator.startswith(PLANNING)
        cost = exchange.usd or 0.0
        follows = exchanges[at + 1] if at + 1 < len(exchanges) else None
        if planning and follows is not None and (follows.operator, follows.model) == (operator, exchange.model):
            planned = cost
            continue
        own, parent = _scores(exchange.candidate, known)
        arm = Arm(model=exchange.model, operator=operator)
        found.append(Observation(arm=arm, score=own, parent=parent, cost=cost + (0.0 if planning else planned)))
        planned = 0.0
    return found


def _scores(made: str | None, known: Mapping[str, Judged]) -> tuple[float | None, float | None]:
    """Of a candidate and of its first parent."""
    if made is None or made not in known:
        return None, None
    candidate, judgement = known[made]
    parent = known.get(candidate.parents[0]) if candidate.parents else None
    return score(judgement), score(parent[1]) if parent else None


def ideas(exchanges: Sequence[Exchange], judged: Sequence[Judged]) -> list[Idea]:
    """The plans that became candidates, oldest first, and what came of them."""
    return list(_ideas(exchanges, {candidate.id: (candidate, judgement) for candidate, judgement in judged}))


def _ideas(exchanges: Sequence[Exchange], known: Mapping[str, Judged]) -> Iterator[Idea]:
    for exchange in exchanges:
        made = known.get(exchange.candidate or "")
        if not exchange.operator.startswith(PLANNING) or exchange.reply is None or made is None:
            continue
        plan = read_plan(Reply.model_validate_json(exchange.reply).text)
        candidate, judgement = made
        if isinstance(plan, Plan):
            parent = candidate.parents[0] if candidate.parents else None
            outcome = outcomes.outcome(judgement, _scores(candidate.id, known)[1])
            yield Idea(plan=plan, candidate=candidate.id, parent=parent, outcome=outcome)


def fruitless(exchanges: Sequence[Exchange]) -> int:
    """How many requests have come to nothing since the last that became a candidate."""
    count = 0
    for exchange in reversed(exchanges):
        if exchange.candidate is not None:
            break
        count += 1
    return count


def spending(exchanges: Sequence[Exchange], judged: Sequence[Judged]) -> list[float]:
    """USD that had been spent in all when each candidate was judged."""
    return [sum(e.usd or 0.0 for e in exchanges if e.at <= judgement.judged_at) for _, judgement in judged]
