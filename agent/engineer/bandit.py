"""Which model is asked, and to do what: a bandit whose arms are pairs of model and operator.

An arm's worth is half what it gains and half how cheap it is:

    reward  r_i  = max(0, score - max(baseline, parent's score))        0 where nothing came of it
    gain    g_a  = mean of r_i over the arm, weighted 0.95^age, over the largest such reward of all arms
    bonus   b_a  = sqrt(2 ln t / n_a)                                   UCB1
    price   p_a  = mean cost of a try - 0.1 (dearest - cheapest try) b_a, at least the cheapest try
    worth        = (g_a + b_a) / 2 + (lowest price of an arm / p_a) / 2

Age counts later observations of any arm; n_a and t count tries, those still on their way included. After ShinkaEvolve
(arXiv 2509.19349 and its AsymmetricUCB), without its random choices and its exponential scale; UCB1 is of Auer,
Cesa-Bianchi and Fischer (2002). Not covered: how long an arm takes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from pydantic import Field

from agent.engineer.records import Operator
from sandbox.contract import Record

DECAY = 0.95
COST_WEIGHT = 0.5
COST_OPTIMISM = 0.1
_COST_FLOOR = 0.01
"""Added to every price, in mean costs, so that a free try does not make all others infinitely dear."""


class Arm(Record):
    model: str
    operator: Operator


class Observation(Record):
    """One try of an arm, and what came of it."""

    arm: Arm
    score: float | None
    """None where there is none: the model failed to reply, or its candidate did not pass."""
    parent: float | None
    """The parent's score."""
    cost: float = Field(ge=0)
    """In any one unit, such as USD; paid for failures too."""


def reward(observation: Observation, baseline: float) -> float:
    """By how much the score exceeds the baseline and the parent."""
    if observation.score is None:
        return 0.0
    least = baseline if observation.parent is None else max(baseline, observation.parent)
    return max(0.0, observation.score - least)


def choose(
    arms: Sequence[Arm], observations: Sequence[Observation], baseline: float = 0.0, pending: Sequence[Arm] = ()
) -> Arm:
    """The arm to try next: one never tried, else the worthiest; the first of equals. `arms` must not be empty.

    `observations` are in order of time, and may hold arms that are no longer on offer. `baseline` is a score; 0 is
    eager's. `pending` are tries on their way.
    """
    tries = Counter([*(entry.arm for entry in observations), *pending])
    untried = next((arm for arm in arms if not tries[arm]), None)
    if untried is not None:
        return untried
    worths = worth(arms, observations, baseline, pending)
    return max(arms, key=lambda arm: worths[arm])


def worth(
    arms: Sequence[Arm], observations: Sequence[Observation], baseline: float = 0.0, pending: Sequence[Arm] = ()
) -> dict[Arm, float]:
    """Of each arm that has been tried, or is pending."""
    tries = Counter([*(entry.arm for entry in observations), *pending])
    tried = [arm for arm in arms if tries[arm]]
    bonus = {arm: math.sqrt(2 * math.log(max(tries.total(), 2)) / tries[arm]) for arm in tried}
    gains, cheapness = _gains(tried, observations, baseline), _cheapness(tried, observations, bonus)
    return {arm: (1 - COST_WEIGHT) * (gains[arm] + bonus[arm]) + COST_WEIGHT * cheapness[arm] for arm in tried}


def _gains(arms: Sequence[Arm], observations: Sequence[Observation], baseline: float) -> dict[Arm, float]:
    """Mean rewards from 0 to 1."""
    ages = range(len(observations) - 1, -1, -1)
    weighted = [
        (o.arm, DECAY**age, DECAY**age * reward(o, baseline)) for o, age in zip(observations, ages, strict=True)
    ]
    means = {arm: _mean([(w, r) for of, w, r in weighted if of == arm]) for arm in arms}
    largest = max([*means.values(), *(r for _, _, r in weighted)], default=0.0)
    return {arm: mean / largest if largest else 0.0 for arm, mean in means.items()}


def _mean(weighted: Sequence[tuple[float, float]]) -> float:
    return sum(r for _, r in weighted) / sum(w for w, _ in weighted) if weighted else 0.0


def _cheapness(arms: Sequence[Arm], observations: Sequence[Observation], bonus: dict[Arm, float]) -> dict[Arm, float]:
    """Optimistic price of the cheapest arm over each arm's own, up to 1; 1 for all where nothing costs anything."""
    costs = [entry.cost for entry in observations]
    floor = _COST_FLOOR * sum(costs) / max(len(costs), 1)
    if not floor:
        return dict.fromkeys(arms, 1.0)
    cheapest, spread = min(costs), max(costs) - min(costs)
    prices = {}
    for arm in arms:
        own = [entry.cost for entry in observations if entry.arm == arm]
        expected = sum(own) / len(own) if own else cheapest
        prices[arm] = max(expected - COST_OPTIMISM * spread * bonus[arm], cheapest) + floor
    lowest = min(prices.values())
    return {arm: lowest / price for arm, price in prices.items()}
