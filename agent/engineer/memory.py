"""What the exchanges of a run and its verdicts say of earlier attempts: for the bandit, for plans, for the end.

An attempt is one or more requests for a plan, whose operator is named `plan …`, and for code; they share a number, and
name the candidate that came of them. Not covered: attempts of other runs.
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
    """What came of each attempt, in the order in which they ended. One whose candidate was not judged is pending."""
    known = {candidate.id: (candidate, judgement) for candidate, judgement in judged}
    found: list[Observation] = []
    for attempt in _attempts(exchanges):
        made = _made(attempt)
        arm = _arm(attempt)
        if arm is None or (made is not None and made not in known):
            continue
        own, parent = _scores(made, known)
        found.append(Observation(arm=arm, score=own, parent=parent, cost=sum(e.usd or 0.0 for e in attempt)))
    return found


def pending(exchanges: Sequence[Exchange], judged: Sequence[Judged]) -> list[Arm]:
    """The arms of attempts whose candidates were not judged yet."""
    ahead = set(waiting(exchanges, judged))
    return [arm for attempt in _attempts(exchanges) if _made(attempt) in ahead and (arm := _arm(attempt))]


def waiting(exchanges: Sequence[Exchange], judged: Sequence[Judged]) -> list[str]:
    """The candidates that came of the exchanges and were not judged yet, the first that was written first."""
    known = {candidate.id for candidate, _ in judged}
    made = [_made(attempt) for attempt in _attempts(exchanges)]
    return [candidate for candidate in dict.fromkeys(made) if candidate is not None and candidate not in known]


def numbers(exchanges: Sequence[Exchange]) -> set[int]:
    """Of the attempts that are on record."""
    return {exchange.attempt for exchange in exchanges if exchange.attempt is not None}


def _attempts(exchanges: Sequence[Exchange]) -> list[list[Exchange]]:
    """The exchanges of each attempt, in the order in which the attempts ended; one without a number stands alone."""
    ended: dict[int, list[Exchange]] = {}
    for at, exchange in enumerate(exchanges):
        key = -1 - at if exchange.attempt is None else exchange.attempt
        ended[key] = [*ended.pop(key, []), exchange]
    return list(ended.values())


def _made(attempt: Sequence[Exchange]) -> str | None:
    return next((exchange.candidate for exchange in attempt if exchange.candidate), None)


def _arm(attempt: Sequence[Exchange]) -> Arm | None:
    """None where an attempt is none of the engineer's."""
    last = attempt[-1]
    operator = _OPERATORS.get(last.operator.removeprefix(PLANNING))
    return Arm(model=last.model, operator=operator) if operator else None


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
