"""A dry run shows the first prompts and a cost by a stated rule; it needs no key and leaves nothing behind."""

from decimal import Decimal
from pathlib import Path

import pytest

from agent import session, tasks
from agent.config import Budget, RunConfig
from agent.models.endpoint import Endpoint, Price
from agent.preview import KERNEL_TOKENS, PLAN_TOKENS, tokens
from archive import Archive
from sandbox import devices
from sandbox.errors import BadInput
from tests.agent.test_graph import ScriptedJudge

PRICE = Price(input=Decimal(10), cached=Decimal(1), output=Decimal(100))
FAR = Endpoint(name="far", model="m", base_url="https://far.example/v1", key_env="NO_SUCH_KEY", price=PRICE)
UNHEARD = Endpoint(name="unheard", model="x", base_url="https://far.example/v1", key_env="NO_SUCH_KEY")


def asked(task: Path | str, tmp_path: Path, **given: object) -> RunConfig:
    fixed = {"target": "cpu", "archive": str(tmp_path / "a.db"), "models": (FAR, UNHEARD)}
    return RunConfig.model_validate({"task": str(task), **fixed, **given})


def test_first_seed_stands_in_where_nothing_was_judged(tmp_path: Path, toy_folder: Path) -> None:
    found = session.preview(asked(toy_folder, tmp_path))
    plan, code = found.prompts
    assert (found.operator, plan.purpose, code.purpose) == ("rewrite", "plan rewrite", "rewrite")
    assert "// 1: one loop." in plan.messages[1].content
    assert "Not judged yet." in plan.messages[1].content
    assert "the first seed stands in" in found.why
    assert not (tmp_path / "a.db").exists()


def test_cost_is_that_of_the_rule(tmp_path: Path, toy_folder: Path) -> None:
    found = session.preview(asked(toy_folder, tmp_path, budget=Budget(evals=9, usd=0.5)))
    plan, code = found.prompts
    assert plan.input_tokens == sum(tokens(message.content) for message in plan.messages)
    assert (plan.output_tokens, code.output_tokens) == (PLAN_TOKENS, tokens(tasks.seeds(_toy(toy_folder))[0].source))
    usd = (
        Decimal(10 * (plan.input_tokens + code.input_tokens) + 100 * (plan.output_tokens + code.output_tokens)) / 10**6
    )
    far, unheard = found.estimates
    assert (far.attempt_usd, far.attempts, far.run_usd) == (usd, 6, 6 * usd)
    assert far.attempt_most_usd is not None
    assert far.attempt_most_usd > usd
    assert (unheard.attempt_usd, unheard.run_usd) == (None, None)
    poor = session.preview(asked(toy_folder, tmp_path, budget=Budget(evals=9, usd=float(2 * usd)))).estimates[0]
    assert (poor.attempts, poor.run_usd) == (2, 2 * usd)


def test_parent_is_drawn_among_seeds_that_were_judged_here(tmp_path: Path, toy_folder: Path) -> None:
    task, device = _toy(toy_folder), devices.detect("cpu")
    judge = ScriptedJudge(lambda candidate: (6.0, 6.0))
    with Archive.open(tmp_path / "a.db") as archive:
        for seed in tasks.seeds(task)[1:2]:
            archive.add(seed)
            archive.record(judge.judge(task, seed).model_copy(update={"device": device.name}))
        before = archive.export(tmp_path / "before.jsonl")
    found = session.preview(asked(toy_folder, tmp_path))
    assert found.parent == tasks.seeds(task)[1].id
    assert "1.33× eager" in found.prompts[0].messages[1].content
    with Archive.open(tmp_path / "a.db") as archive:
        assert archive.export(tmp_path / "after.jsonl") == before


def test_task_without_seeds_shows_its_translation(tmp_path: Path, toy_folder: Path) -> None:
    for kernel in (toy_folder / "cpu").iterdir():
        kernel.unlink()
    found = session.preview(asked(toy_folder, tmp_path, models=(), command="my-agent --print"))
    (translate,) = found.prompts
    assert (found.operator, found.parent, translate.output_tokens) == ("translate", None, KERNEL_TOKENS)
    assert [(each.model, each.price) for each in found.estimates] == [("my-agent", None)]


def test_dry_run_without_a_model_is_bad_input(tmp_path: Path, toy_folder: Path) -> None:
    with pytest.raises(BadInput, match="give --model NAME"):
        session.preview(asked(toy_folder, tmp_path, models=()))


def _toy(folder: Path) -> tasks.Task:
    return tasks.load(str(folder), "cpu")
