"""Makes asks: the prompt that a model would get, recorded in the archive, for whoever answers it with `tell`.

Not covered: how one is printed (document), and what becomes of the answer (telling).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from agent.asking import choice, lessons
from agent.asking.choice import Errand, Known
from agent.asking.setting import Setting, run_of
from agent.engineer import contexts, retrieval
from agent.engineer.records import Context, Message, Operator
from agent.engineer.retrieval import Related
from archive import Ask, Run
from archive.records import canonical
from prompts.render import render_ask
from sandbox.contract import Candidate, Record, Target
from sandbox.signature import prototype

LESSONS = 20
"""The newest that a prompt shows."""


class Prompt(Record):
    """An ask, with all that is needed to answer it."""

    ask: str
    run: str
    task: str
    target: Target
    device: str
    operator: Operator
    parents: tuple[str, ...]
    prototype: str
    """Of the function that a kernel must define, as in C."""
    messages: tuple[Message, ...]


def make(
    setting: Setting, count: int, operator: Operator | None = None, given: Sequence[Candidate] = ()
) -> list[Prompt]:
    """`count` asks, on record; each knows of those before it, so that they differ."""
    run = run_of(setting)
    return [_one(setting, run, operator, given) for _ in range(count)]


def _one(setting: Setting, run: Run, operator: Operator | None, given: Sequence[Candidate]) -> Prompt:
    found = choice.known(setting, run)
    rng = random.Random(f"{setting.config.seed} {found.asked}")
    related = retrieval.on_record(setting.task, setting.archive, setting.device)
    errand = choice.choose(setting, found, operator, given, rng, related)
    messages = render_ask(context(setting, found, errand, related), rng, setting.config.prompts)
    # A seed that nobody has judged is not in the archive yet.
    parents = tuple(setting.archive.add(exhibit.candidate) for exhibit in errand.parents)
    ask = Ask(
        run=run.id,
        operator=errand.operator,
        parents=parents,
        request=canonical([message.model_dump() for message in messages]),
    )
    setting.archive.record_ask(ask)
    return Prompt(
        ask=ask.id,
        run=run.id,
        task=setting.task.name,
        target=setting.task.target,
        device=setting.device.name,
        operator=errand.operator,
        parents=parents,
        prototype=declaration(setting),
        messages=tuple(messages),
    )


def context(setting: Setting, found: Known, errand: Errand, related: Sequence[Related]) -> Context:
    """What the prompt for an errand draws on."""
    task, device, archive = setting.task, setting.device, setting.archive
    own = [exhibit.candidate.id for exhibit in errand.parents]
    learnt = lessons.of_lineage(found.judged, own, archive.edges())
    shown = contexts.context(task, device, errand.operator, errand.parents, found.judged, related=related)
    return shown.model_copy(update={"lessons": tuple(lesson.line for lesson in learnt[-LESSONS:])})


def declaration(setting: Setting) -> str:
    """The kernel's prototype as a source has it."""
    task = setting.task
    return f'extern "C" {"__global__ " if task.target == "cuda" else ""}{prototype(task, task.name)}'
