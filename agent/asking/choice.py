"""What is asked for next: the operator and the kernels it starts from, by the search's own policy over the archive.

A kernel that somebody was asked for and that did not pass is repaired first; then a parent is drawn among the elites,
and the bandit picks the operator. Asks that wait for their answers count as tries. Where nothing has passed yet, one
starts from a seed that nobody has judged, or from the reference. Not covered: what a prompt says of it (prompts).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from agent.asking.setting import Setting, history, seeds
from agent.engineer import bandit, memory, parents
from agent.engineer.bandit import Arm
from agent.engineer.contexts import exhibit
from agent.engineer.records import PARENTS, Exhibit, Operator
from agent.engineer.retrieval import Related
from agent.steps import Judged
from archive import Ask, Exchange, Run
from archive.lineage import ancestors
from sandbox.contract import Candidate, Passed
from sandbox.errors import BadInput

REPAIRS = 2
"""Repairs of a repair, unless a parent is named."""
WAITING = 8
"""Asks without an answer that count as tries; older ones have been given up, for all one knows."""
IMPROVING: tuple[Operator, ...] = ("rewrite", "edit", "crossover", "simplify")
WRITTEN = ("translate", "propose", "repair", "crossover")
"""Operators of candidates that an engineer wrote."""
ANYBODY = "anybody"
"""Stands for the model in the bandit: who answers is not known when an ask is made."""


@dataclass(frozen=True)
class Known:
    """Everything that a choice rests on."""

    judged: list[Judged]
    answers: list[Exchange]
    waiting: list[Ask]
    """The newest that nobody has answered."""
    asked: int
    """How many asks there have been."""


@dataclass(frozen=True)
class Errand:
    operator: Operator
    parents: tuple[Exhibit, ...]


def known(setting: Setting, run: Run) -> Known:
    """What the archive says now."""
    answers = setting.archive.exchanges(run.id)
    answered = {exchange.request for exchange in answers}
    asks = setting.archive.asks(run.id)
    waiting = [ask for ask in asks if request_of(ask.id) not in answered]
    return Known(history(setting), answers, waiting[-WAITING:], len(asks))


def request_of(ask: str) -> str:
    """How the exchange that answers an ask names it."""
    return f'{{"ask":"{ask}"}}'


def choose(
    setting: Setting,
    found: Known,
    operator: Operator | None,
    given: Sequence[Candidate],
    rng: random.Random,
    related: Sequence[Related] = (),
) -> Errand:
    """The next errand; `operator` and the parents `given` are kept to. BadInput where there is none of that kind."""
    if operator == "fuse":
        raise BadInput(f"an ask fuses nothing: got 'fuse', wanted translate, repair, {', '.join(IMPROVING)}")
    if given:
        return _of_given(setting, found, operator, given)
    if operator == "translate":
        return Errand("translate", ())
    if operator in (None, "repair"):
        if broken := _broken(setting, found, anyone=operator == "repair"):
            return Errand("repair", (Exhibit(candidate=broken[0], judgement=broken[1]),))
        if operator == "repair":
            raise BadInput("nothing to repair: every kernel that failed was repaired or is being repaired")
    members = parents.islands(found.judged)
    born = parents.children(found.judged) + Counter(parent for ask in found.waiting for parent in ask.parents)
    choice = parents.choose(members, born, setting.task, setting.device, rng)
    if choice is None:
        return _of_seeds(setting, found, operator, rng)
    mate = parents.mate(members, choice.parent, born, setting.task, setting.device, rng, related)
    picked = operator or _picked([o for o in IMPROVING if o != "crossover" or mate], found)
    parent = Exhibit(candidate=choice.parent.candidate, judgement=choice.parent.judgement)
    if picked != "crossover":
        return Errand(picked, (parent,))
    if mate is None:
        raise BadInput(
            "nothing to cross: all kernels that passed are of one kind, and the archive has none of a task much like "
            "this one; wanted two kinds, or two --parent ID"
        )
    return Errand(picked, (parent, exhibit(mate, related)))


def _of_given(setting: Setting, found: Known, operator: Operator | None, given: Sequence[Candidate]) -> Errand:
    """Named parents; without an operator, what becomes them."""
    last = {candidate.id: judgement for candidate, judgement in found.judged}
    for parent in given:
        if (parent.task, parent.target) != (setting.task.name, setting.task.target):
            wanted = f"{setting.task.name} · {setting.task.target}"
            raise BadInput(f"parent {parent.id[:10]} is a kernel of {parent.task} · {parent.target}, wanted {wanted}")
    exhibits = tuple(Exhibit(candidate=parent, judgement=last.get(parent.id)) for parent in given)
    failed = exhibits[0].judgement is not None and not isinstance(exhibits[0].judgement.verdict, Passed)
    usual: list[Operator] = (
        ["crossover"] if len(given) > 1 else ["repair"] if failed else ["rewrite", "edit", "simplify"]
    )
    picked = operator or _picked(usual, found)
    if len(given) != PARENTS[picked]:
        raise BadInput(f"operator {picked!r} got {len(given)} parents, wanted {PARENTS[picked]}")
    return Errand(picked, exhibits)


def _of_seeds(setting: Setting, found: Known, operator: Operator | None, rng: random.Random) -> Errand:
    untried = seeds(setting, found.judged)
    if not untried and operator not in (None, "translate"):
        raise BadInput(f"nothing to {operator}: no kernel has passed on {setting.device.name}, and no seed is left")
    if not untried:
        return Errand("translate", ())
    picked = operator or _picked(["rewrite", "edit", "simplify"], found)
    if PARENTS[picked] > len(untried):
        raise BadInput(f"operator {picked!r} wants {PARENTS[picked]} kernels, and there is {len(untried)} seed")
    drawn = rng.sample(untried, PARENTS[picked])
    return Errand(picked, tuple(Exhibit(candidate=seed, judgement=None) for seed in drawn))


def _picked(operators: Sequence[Operator], found: Known) -> Operator:
    """By what earlier answers achieved; each is tried once first."""
    observed = memory.observations(found.answers, found.judged)
    anybodys = [entry.model_copy(update={"arm": _arm(entry.arm.operator), "cost": 0.0}) for entry in observed]
    pending = [_arm(operator) for ask in found.waiting for operator in operators if operator == ask.operator]
    return bandit.choose([_arm(operator) for operator in operators], anybodys, pending=pending).operator


def _arm(operator: Operator) -> Arm:
    return Arm(model=ANYBODY, operator=operator)


def _broken(setting: Setting, found: Known, anyone: bool) -> Judged | None:
    """The newest kernel that did not pass and that nobody repairs yet; of those told here, or of `anyone`."""
    told = {exchange.candidate for exchange in found.answers}
    last = {candidate.id: (candidate, judgement) for candidate, judgement in found.judged}
    begun = {ask.parents[0] for ask in found.waiting if ask.operator == "repair"}
    begun |= {candidate.parents[0] for candidate, _ in last.values() if candidate.operator == "repair"}
    edges = setting.archive.edges()
    for candidate, judgement in reversed(last.values()):
        own = candidate.id in told or (anyone and candidate.operator in WRITTEN)
        if not own or isinstance(judgement.verdict, Passed) or candidate.id in begun:
            continue
        line = [last[name][0] for name in ancestors(candidate.id, edges) if name in last]
        if sum(ancestor.operator == "repair" for ancestor in line) < REPAIRS or anyone:
            return candidate, judgement
    return None
