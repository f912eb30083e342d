"""One toolchain for all, one judge for each target; tests are sorted by task, so that its courtroom opens once."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from sandbox.contract import Target
from sandbox.devices import detect
from sandbox.judge import Judge
from sandbox.launch import Launcher, Sandbox, choose
from sandbox.toolchain import Toolchain

HERE = Path(__file__).parent
CALL_TIMEOUT_S = 2.0
# The local sandbox is the weaker one and the faster: `docker` here judges everything behind that wall instead.
SANDBOX = cast(Sandbox, os.environ.get("WARPSMITH_CHEATS_SANDBOX", "local"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All subjects of a task behind each other; what comes `after` another stands right behind it by name."""

    def place(item: pytest.Item) -> tuple[str, str, str]:
        subject = getattr(item, "callspec", None) and item.callspec.params.get("subject")  # type: ignore[attr-defined]
        return (subject.target, subject.task, subject.name) if subject else ("", "", "")

    ours = [item for item in items if item.path.parent == HERE]
    others = [item for item in items if item not in ours]
    items[:] = others + sorted(ours, key=place)


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    chosen, _ = choose(SANDBOX)
    yield chosen
    chosen.close()


@pytest.fixture(scope="session")
def toolchain(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[Toolchain]:
    with Toolchain(tmp_path_factory.mktemp("cheats-cache"), launcher=launcher) as made:
        yield made


@pytest.fixture(scope="session")
def judges(toolchain: Toolchain, launcher: Launcher) -> Iterator[dict[Target, Judge]]:
    """Filled by whoever needs a target."""
    made: dict[Target, Judge] = {}
    yield made
    for judge in made.values():
        judge.__exit__(None, None, None)


@pytest.fixture
def judge_for(judges: dict[Target, Judge], toolchain: Toolchain, launcher: Launcher):  # type: ignore[no-untyped-def]
    def made(target: Target) -> Judge:
        if target not in judges:
            judges[target] = Judge(detect(target), toolchain, launcher, call_timeout_s=CALL_TIMEOUT_S)
        return judges[target]

    return made
