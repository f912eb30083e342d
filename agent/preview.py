"""What a run would ask first and what it might cost, without asking a model or judging a candidate.

Verdicts of the seed kernels are taken from the archive where it has them for this device. Not covered: repairs, sweeps
of tunables, which cost evaluations and no money, and tokens that a model spends on thinking.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from agent.config import RunConfig
from agent.engineer import parents
from agent.engineer.contexts import context
from agent.engineer.records import Context, Exhibit, Message, Operator, Plan
from agent.engineer.retrieval import Related
from agent.models.endpoint import Price, Usage
from agent.models.prices import cost, reserve
from agent.steps import Judged
from prompts.render import render_code, render_plan
from sandbox.contract import Candidate, Device, Record, Task

CHARACTERS_PER_TOKEN = 4
PLAN_TOKENS = 300
KERNEL_TOKENS = 2000
"""Of a kernel whose parent is not known."""
RULE = (
    f"a token for every {CHARACTERS_PER_TOKEN} characters; {PLAN_TOKENS} tokens for a plan, for a kernel as many as "
    f"its parent has, or {KERNEL_TOKENS}; nothing cached, no thinking"
)
STAND_IN = Plan(
    bottleneck="(what the plan says)",
    change="(what the plan says)",
    why="(what the plan says)",
    expected_speedup=1.0,
    memory="direct",
    tensor_cores=False,
)
"""In place of the model's plan, which is not known before it was asked."""


class Prompt(Record):
    """A request as it would be made."""

    purpose: str
    messages: tuple[Message, ...]
    input_tokens: int
    output_tokens: int
    """Estimated, as the tokens above."""


class Estimate(Record):
    """What one model would cost, were it the only one that is asked."""

    model: str
    price: Price | None
    """None where it is not known; then the sums are None, too."""
    attempt_usd: Decimal | None
    attempt_most_usd: Decimal | None
    """The worst case, as it is set aside: a token for every byte, and every token that a reply may have."""
    attempts: int
    """That fit into both budgets, at the estimate."""
    run_usd: Decimal | None


class Preview(Record):
    task: str
    target: str
    device: str
    operator: Operator
    parent: str | None
    why: str
    """Why this parent."""
    prompts: tuple[Prompt, ...]
    estimates: tuple[Estimate, ...]
    rule: str = RULE
    budget_usd: float
    budget_evals: int


class Rate(Record):
    """A model by name, its price and the most tokens of its replies."""

    model: str
    price: Price | None
    max_tokens: int


def preview(
    config: RunConfig,
    task: Task,
    device: Device,
    seeds: Sequence[Candidate],
    judged: Sequence[Judged],
    related: Sequence[Related],
    rates: Sequence[Rate],
) -> Preview:
    """The first attempt after the seeds. `judged` are those seeds whose verdict is known."""
    rng = random.Random(f"{config.seed} 1")
    parent, why = _parent(task, device, seeds, judged, rng)
    # The bandit tries untried arms in their order, and this is the first.
    operator: Operator = "rewrite" if parent else "translate"
    shown = context(task, device, operator, (parent,) if parent else (), judged, related=related)
    prompts = _prompts(shown, rng, config.prompts)
    attempts = config.budget.evals - len(seeds)
    return Preview(
        task=task.name,
        target=task.target,
        device=device.name,
        operator=operator,
        parent=parent.candidate.id if parent else None,
        why=why,
        prompts=prompts,
        estimates=tuple(_estimate(rate, prompts, max(attempts, 0), config.budget.usd) for rate in rates),
        budget_usd=config.budget.usd,
        budget_evals=config.budget.evals,
    )


def _parent(
    task: Task, device: Device, seeds: Sequence[Candidate], judged: Sequence[Judged], rng: random.Random
) -> tuple[Exhibit | None, str]:
    """Whom the policy would improve first, and why; None where nothing is known to pass and there is no seed."""
    choice = parents.choose(parents.islands(judged), parents.children(judged), task, device, rng)
    if choice is not None:
        known = f"{len(judged)} of {len(seeds)} seeds were judged here before"
        return Exhibit(candidate=choice.parent.candidate, judgement=choice.parent.judgement), f"drawn: {known}"
    if not seeds:
        return None, "the task has no seed kernel"
    return Exhibit(candidate=seeds[0], judgement=None), "the first seed stands in: none was judged here before"


def _prompts(shown: Context, rng: random.Random, folder: Path | None) -> tuple[Prompt, ...]:
    if shown.operator == "translate":
        return (_prompt("translate", render_code(shown, folder), KERNEL_TOKENS),)
    plan = _prompt(f"plan {shown.operator}", render_plan(shown, rng, folder), PLAN_TOKENS)
    asked = render_code(shown.model_copy(update={"plan": STAND_IN}), folder)
    return plan, _prompt(shown.operator, asked, tokens(shown.parents[0].candidate.source))


def _prompt(purpose: str, messages: list[Message], output_tokens: int) -> Prompt:
    given = sum(tokens(message.content) for message in messages)
    return Prompt(purpose=purpose, messages=tuple(messages), input_tokens=given, output_tokens=output_tokens)


def tokens(text: str) -> int:
    """Estimated, by the rule."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def _estimate(rate: Rate, prompts: Sequence[Prompt], most_attempts: int, budget_usd: float) -> Estimate:
    if rate.price is None:
        nothing = dict.fromkeys(("attempt_usd", "attempt_most_usd", "run_usd"))
        return Estimate(model=rate.model, price=None, attempts=most_attempts, **nothing)
    used = [Usage(input_tokens=prompt.input_tokens, output_tokens=prompt.output_tokens) for prompt in prompts]
    attempt = sum((cost(usage, rate.price).usd for usage in used), Decimal(0))
    most = sum((reserve(prompt.messages, rate.max_tokens, rate.price) for prompt in prompts), Decimal(0))
    paid = min(most_attempts, int(Decimal(str(budget_usd)) / attempt)) if attempt else most_attempts
    return Estimate(
        model=rate.model,
        price=rate.price,
        attempt_usd=attempt,
        attempt_most_usd=most,
        attempts=paid,
        run_usd=paid * attempt,
    )
