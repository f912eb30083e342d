"""Sweeps the tunables that sources declare. Needs no key, costs nothing, invents no new structure.

Every seed is tried once with its defaults. After that each source whose seed passed is an arm of a bandit: the next
trial goes to the highest upper confidence bound over log speedup (UCB1: Auer, Cesa-Bianchi, Fischer 2002, with the best
value of an arm in place of its mean, as one good variant is all that is wanted), and Optuna's TPE picks its tunables.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from agent.fitness import misfit
from agent.proposers import History
from sandbox import plan
from sandbox.contract import Candidate, Device, Passed, Task, Verdict, candidate_id

EXPLORATION = 1.0
"""Weight of the bandit's bonus, in natural-log speedup: a source twice as slow as the best still gets a few trials."""
STARTUP_TRIALS = 6
"""Trials of a source drawn at random before TPE models it."""
FAILURE_PENALTY = 1.0
"""A variant that did not pass counts as e times slower than the slowest that did."""
ATTEMPTS = 24
"""Draws from TPE before the first untried combination is taken instead."""


@dataclass(frozen=True)
class _Arm:
    """A source, its search space and what is known of it."""

    seed: Candidate
    tunables: tuple[plan.Tunable, ...]
    trials: tuple[tuple[Mapping[str, int], Verdict], ...]

    @property
    def best(self) -> float:
        """Log speedup of the fastest variant."""
        return max(-_log_cost(v) for _, v in self.trials if isinstance(v, Passed))


class Tuner:
    """Proposes seeds, then tuned variants of them; a pure function of the history and `rng_seed`."""

    def __init__(self, task: Task, seeds: Sequence[Candidate], device: Device, rng_seed: int) -> None:
        self.task, self.seeds, self.device, self.rng_seed = task, tuple(seeds), device, rng_seed
        self.plans = {seed.id: plan.parse(seed.source, task) for seed in seeds}

    def propose(self, history: History, n: int) -> list[Candidate]:
        """Up to `n` candidates that are not in the history; fewer, or none, where every space is exhausted."""
        taken = {candidate.id for candidate, _ in history}
        batch = [seed for seed in self.seeds if seed.id not in taken][:n]
        if batch or any(seed.id not in taken for seed in self.seeds):
            return batch
        return self._variants(history, taken, n)

    def stop(self) -> None:
        """Nothing is ever under way."""

    def _variants(self, history: History, taken: set[str], n: int) -> list[Candidate]:
        arms = [arm for seed in self.seeds if (arm := self._arm(seed, history))]
        planned = {arm.seed.id: 0 for arm in arms}
        batch: list[Candidate] = []
        while arms and len(batch) < n:
            arm = _most_promising(arms, planned)
            tunables = self._next(arm, taken, planned[arm.seed.id])
            if tunables is None:
                arms.remove(arm)
                continue
            variant = _variant(arm.seed, tunables)
            planned[arm.seed.id] += 1
            taken.add(variant.id)
            batch.append(variant)
        return batch

    def _arm(self, seed: Candidate, history: History) -> _Arm | None:
        """The seed's arm; None where the seed did not pass or has nothing to tune."""
        own = [(c, v) for c, v in history if c.source == seed.source]
        passed = any(c.id == seed.id and isinstance(v, Passed) for c, v in own)
        tunables = self.plans[seed.id].tunables
        if not passed or not tunables:
            return None
        return _Arm(seed=seed, tunables=tunables, trials=tuple((c.tunables, v) for c, v in own))

    def _next(self, arm: _Arm, taken: set[str], ahead: int) -> dict[str, int] | None:
        """Untried tunables that TPE likes, else the first untried ones, else None. `ahead` are planned already."""
        sampler = optuna.samplers.TPESampler(seed=self._sampler_seed(arm, ahead), n_startup_trials=STARTUP_TRIALS)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=sampler)
        study.add_trials(_past(arm))
        space = _distributions(arm)
        for _ in range(ATTEMPTS):
            params = study.ask(space).params
            tunables = {t.name: sorted(t.choices)[params[t.name]] for t in arm.tunables}
            if self._fresh(arm, tunables, taken):
                return tunables
        return next((t for t in _grid(arm.tunables) if self._fresh(arm, t, taken)), None)

    def _sampler_seed(self, arm: _Arm, ahead: int) -> int:
        return random.Random(f"{self.rng_seed}/{arm.seed.id}/{len(arm.trials) + ahead}").getrandbits(32)

    def _fresh(self, arm: _Arm, tunables: dict[str, int], taken: set[str]) -> bool:
        return candidate_id(arm.seed.source, arm.seed.target, tunables) not in taken and self._allowed(arm, tunables)

    def _allowed(self, arm: _Arm, tunables: dict[str, int]) -> bool:
        """Whether the source's constraints hold and every launch fits the device."""
        return not misfit(self.task, self.plans[arm.seed.id], tunables, self.device)


def _most_promising(arms: Sequence[_Arm], planned: Mapping[str, int]) -> _Arm:
    total = sum(len(arm.trials) + planned[arm.seed.id] for arm in arms)

    def bound(arm: _Arm) -> float:
        tried = len(arm.trials) + planned[arm.seed.id]
        return arm.best + EXPLORATION * math.sqrt(math.log(total + 1) / tried)

    return max(arms, key=bound)


def _log_cost(passed: Passed) -> float:
    """ln of the latency over eager's, which was measured side by side and so cancels whatever else the machine did."""
    return -math.log(passed.speedup["eager"].ratio)


def _variant(seed: Candidate, tunables: dict[str, int]) -> Candidate:
    return Candidate(
        task=seed.task,
        target=seed.target,
        source=seed.source,
        tunables=tunables,
        parents=(seed.id,),
        operator="tune",
        proposer="tuner",
        note=f"{seed.note}: " + " ".join(f"{name}={value}" for name, value in tunables.items()),
    )


def _distributions(arm: _Arm) -> dict[str, BaseDistribution]:
    """Positions in the sorted choices, so that TPE knows 32 to lie between 16 and 64."""
    return {t.name: IntDistribution(0, len(t.choices) - 1) for t in arm.tunables}


def _past(arm: _Arm) -> list[FrozenTrial]:
    """The arm's judged variants as finished trials, with the log cost as what is minimised."""
    slowest = max(_log_cost(v) for _, v in arm.trials if isinstance(v, Passed))
    space = _distributions(arm)
    return [
        create_trial(
            state=TrialState.COMPLETE,
            params={t.name: sorted(t.choices).index(tunables[t.name]) for t in arm.tunables},
            distributions=space,
            value=_log_cost(v) if isinstance(v, Passed) else slowest + FAILURE_PENALTY,
        )
        for tunables, v in arm.trials
    ]


def _grid(tunables: Sequence[plan.Tunable]) -> Iterator[dict[str, int]]:
    names = [t.name for t in tunables]
    for values in itertools.product(*(t.choices for t in tunables)):
        yield dict(zip(names, values, strict=True))
