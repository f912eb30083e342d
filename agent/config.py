"""What a run is asked to do: one frozen object from flags, environment, .env, TOML and defaults, in this order.

Environment: WARPSMITH_TASK, WARPSMITH_BUDGET_EVALS … TOML: the same names in lower case, budgets under [budget].
Not covered: keys of model endpoints, which never belong into a record that is archived.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from dotenv import dotenv_values
from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from agent.models.endpoint import Endpoint
from sandbox.errors import BadInput

PREFIX = "WARPSMITH_"
READ_ELSEWHERE = ("WARPSMITH_DOCKER_GPU", "WARPSMITH_FALLBACK", "WARPSMITH_CPU_LEVEL")
"""The last two are for exported packages."""
DEFAULT_TOML = Path("warpsmith.toml")
NO_TASK = "no task: give --task NAME, or a path to a task folder or file; `warpsmith tasks` lists them"


def default_archive() -> str:
    """Where the archive lies unless told otherwise: the user's data folder."""
    return str(user_data_path("warpsmith", appauthor=False) / "archive.db")


class Budget(BaseModel):
    """What a run may spend. Reaching any of the three ends the search; winners are still confirmed and composed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    evals: int = Field(default=32, ge=1)
    """Judged candidates."""
    seconds: float = Field(default=160.0, gt=0)
    """Time spent proposing and judging, over all resumptions."""
    usd: float = Field(default=5.0, ge=0)
    """Paid to model endpoints. A proposer that costs nothing never reaches it."""

    def exhausted(self, evals: int, seconds: float, usd: float) -> str | None:
        """Which budget is spent, as words; None while there is some of each."""
        if evals >= self.evals:
            return f"{evals} of {self.evals} evaluations"
        if seconds >= self.seconds:
            return f"{seconds:.0f} of {self.seconds:.0f} seconds"
        if usd > self.usd:
            return f"{usd:.2f} of {self.usd:.2f} USD"
        return None


class RunConfig(BaseModel):
    """Everything a run depends on; archived with it, so that it can be resumed and repeated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = ""
    """Name of a built-in task, or path of a task folder or of a file that one is made of."""
    target: Literal["auto", "cuda", "cpu"] = "auto"
    sandbox: Literal["auto", "docker", "local"] = "auto"
    """Where candidates run: auto takes Docker where an engine answers, and says so where none does."""
    proposer: str = "auto"
    archive: str = Field(default_factory=default_archive)
    """Path or SQLAlchemy URL."""
    out: Path = Path("warpsmith-out")
    """Where the composed extension goes."""
    seed_kernels: tuple[Path, ...] = ()
    """The user's own kernels, to start from before those of the task."""
    models: tuple[Endpoint, ...] = ()
    """Language models that write kernels; several are chosen among by what they achieve and cost."""
    command: str = ""
    """A program that writes kernels: prompt on standard input, reply on standard output."""
    slots: int | None = Field(default=None, ge=1, le=64)
    """Requests to models that are open at a time; None means a few, or one where all models are near."""
    prompts: Path | None = None
    """Folder of templates that stand in for ours of the same name."""
    seed: int = 0
    """Of the proposer's random choices. The judge's inputs are unpredictable on purpose."""
    budget: Budget = Budget()


class _Layers(RunConfig, BaseSettings):
    """RunConfig read from every source. The TOML path is the only thing that changes between two loads."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        env_file=".env",
        dotenv_filtering="only_existing",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml = TomlConfigSettingsSource(settings_cls)
        return init_settings, env_settings, dotenv_settings, toml


def load(flags: Mapping[str, Any], toml: Path | None = None) -> RunConfig:
    """The configuration with `flags` on top; a flag that is None was not given.

    `toml` must exist; without it, warpsmith.toml of the working directory is read if it is there. BadInput names
    the key at fault.
    """
    if toml is not None and not toml.is_file():
        raise BadInput(f"configuration file {toml} does not exist")
    path = toml or DEFAULT_TOML
    _refuse_unknown(os.environ, "the environment")
    _refuse_unknown(dotenv_values(".env"), ".env")
    layers = type("_LayersOfFile", (_Layers,), {"model_config": {**_Layers.model_config, "toml_file": path}})
    try:
        settings = layers(**_nested(flags))
    except tomllib.TOMLDecodeError as exc:
        raise BadInput(f"{path}: {exc}") from exc
    except ValidationError as exc:
        raise BadInput(_first_fault(exc)) from exc
    return RunConfig.model_validate(settings.model_dump())


def _nested(flags: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in flags.items() if value is not None}
    budget = {name.removeprefix("budget_"): given.pop(name) for name in list(given) if name.startswith("budget_")}
    return {**given, "budget": budget} if budget else given


def variables() -> list[str]:
    """Every environment variable that is read."""
    plain = [PREFIX + name.upper() for name in RunConfig.model_fields if name != "budget"]
    return [*plain, *(f"{PREFIX}BUDGET_{name.upper()}" for name in Budget.model_fields), *READ_ELSEWHERE]


def _refuse_unknown(names: Iterable[str], where: str) -> None:
    known = variables()
    for name in names:
        if name.startswith(PREFIX) and name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else f"; known: {', '.join(known)}"
            raise BadInput(f"{where} sets {name}, which nothing reads{hint}")


def _first_fault(exc: ValidationError) -> str:
    fault = exc.errors()[0]
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown configuration key {key!r}"
    return f"configuration key {key!r}: {fault['msg']}, got {fault['input']!r}"
