"""Where a run's configuration comes from."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from agent.config import load
from sandbox.errors import BadInput


def test_defaults_need_nothing() -> None:
    config = load({})
    assert (config.target, config.proposer, config.out) == ("auto", "auto", Path("warpsmith-out"))
    assert config.archive.endswith("warpsmith/archive.db")


def test_flags_beat_environment_beat_dotenv_beat_toml_beat_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("warpsmith.toml").write_text('task = "toml"\nseed = 1\nout = "toml"\ntarget = "cpu"\n[budget]\nevals = 1\n')
    Path(".env").write_text("WARPSMITH_TASK=dotenv\nWARPSMITH_SEED=2\nWARPSMITH_OUT=dotenv\n")
    monkeypatch.setenv("WARPSMITH_TASK", "environment")
    monkeypatch.setenv("WARPSMITH_SEED", "3")
    config = load({"task": "flag", "seed": None})
    assert (config.task, config.seed, config.out, config.target) == ("flag", 3, Path("dotenv"), "cpu")
    assert config.budget.evals == 1


def test_budgets_are_merged_key_by_key(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("warpsmith.toml").write_text("[budget]\nevals = 7\nseconds = 8\nusd = 9\n")
    monkeypatch.setenv("WARPSMITH_BUDGET_SECONDS", "80")
    budget = load({"budget_usd": 0.0}).budget
    assert (budget.evals, budget.seconds, budget.usd) == (7, 80.0, 0.0)


def test_other_lines_of_dotenv_are_left_alone() -> None:
    Path(".env").write_text("OPENAI_API_KEY=secret\nBUDGET=x\n")
    assert "secret" not in load({}).model_dump_json()


def test_unknown_key_of_toml_is_refused() -> None:
    Path("warpsmith.toml").write_text("[budget]\neval = 7\n")
    with pytest.raises(BadInput, match=r"unknown configuration key 'budget\.eval'"):
        load({})


def test_unknown_variable_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARPSMITH_BUDGET_EVAL", "7")
    with pytest.raises(BadInput, match="did you mean WARPSMITH_BUDGET_EVALS"):
        load({})


def test_unknown_variable_in_dotenv_is_refused() -> None:
    Path(".env").write_text("WARPSMITH_TSK=layernorm\n")
    with pytest.raises(BadInput, match=r"\.env sets WARPSMITH_TSK"):
        load({})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"target": "tpu"}, "'target'"),
        ({"budget_evals": 0}, "'budget.evals'"),
        ({"budget_seconds": -1.0}, "'budget.seconds'"),
    ],
)
def test_bad_value_is_named(flags: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load(flags)


def test_broken_toml_names_file_and_line() -> None:
    Path("warpsmith.toml").write_text("task = 'a'\nseed = = 2\n")
    with pytest.raises(BadInput, match=r"warpsmith\.toml: .*line 2"):
        load({})


def test_missing_configuration_file_is_refused() -> None:
    with pytest.raises(BadInput, match=r"nowhere\.toml does not exist"):
        load({}, Path("nowhere.toml"))


def test_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        load({}).seed = 4  # type: ignore[misc]


def test_each_budget_ends_the_search() -> None:
    budget = load({"budget_evals": 10, "budget_seconds": 100.0, "budget_usd": 0.0}).budget
    assert budget.exhausted(9, 99.0, 0.0) is None
    assert budget.exhausted(10, 0.0, 0.0) == "10 of 10 evaluations"
    assert budget.exhausted(0, 100.0, 0.0) == "100 of 100 seconds"
    assert budget.exhausted(0, 0.0, 0.01) == "0.01 of 0.00 USD"
