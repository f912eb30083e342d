"""What exchanges say of attempts, also where several were under way at once."""

from typing import Any

from agent.engineer import memory
from agent.engineer.bandit import Arm
from archive import Exchange
from sandbox.contract import Candidate


def exchange(operator: str, attempt: int | None, candidate: str | None = None, usd: float = 1.0) -> Exchange:
    given = {"run": "r", "model": "m", "operator": operator, "attempt": attempt, "candidate": candidate, "usd": usd}
    return Exchange(request="{}", reply="{}", seconds=1.0, **given)


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 6)


def test_plan_and_code_of_an_attempt_are_one_observation_however_they_interleave(judged: Any) -> None:
    parent = judged("parent", 0.1)
    one, other = judged("one", 0.2, [parent[0].id]), judged("other", 0.4, [parent[0].id])
    exchanges = [
        exchange("plan rewrite", 1, one[0].id),
        exchange("plan edit", 2, other[0].id),
        exchange("edit", 2, other[0].id, usd=3.0),
        exchange("rewrite", 1, one[0].id),
        exchange("plan rewrite", 3),
    ]
    found = memory.observations(exchanges, [parent, one, other])
    assert [(o.arm.operator, _rounded(o.score), _rounded(o.parent), o.cost) for o in found] == [
        ("edit", 0.4, 0.1, 4.0),
        ("rewrite", 0.2, 0.1, 2.0),
        ("rewrite", None, None, 1.0),
    ]


def test_attempt_whose_candidate_was_not_judged_is_pending(judged: Any) -> None:
    one, other = judged("one", 0.2), judged("other", 0.4)
    exchanges = [exchange("edit", 1, one[0].id), exchange("edit", 2, other[0].id)]
    assert memory.waiting(exchanges, [one]) == [other[0].id]
    assert memory.pending(exchanges, [one]) == [Arm(model="m", operator="edit")]
    assert len(memory.observations(exchanges, [one])) == 1


def test_candidates_wait_in_the_order_in_which_they_were_written(judged: Any) -> None:
    one, other = judged("one", 0.2), judged("other", 0.4)
    exchanges = [
        exchange("plan edit", 1, one[0].id),
        exchange("plan edit", 2, other[0].id),
        exchange("edit", 2, other[0].id),
        exchange("edit", 1, one[0].id),
    ]
    assert memory.waiting(exchanges, []) == [other[0].id, one[0].id]


def test_exchanges_without_an_attempt_stand_alone_and_foreign_ones_do_not_count(kernel: Any) -> None:
    made: Candidate = kernel("int one;")
    exchanges = [exchange("plan edit", None), exchange("edit", None), exchange("embroider", 7, made.id)]
    assert len(memory.observations(exchanges, [])) == 2
    assert memory.numbers(exchanges) == {7}
