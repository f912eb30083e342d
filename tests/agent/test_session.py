"""What cannot be asked is said before a run is on record."""

from pathlib import Path
from typing import Any

import pytest

from agent import session
from agent.config import RunConfig
from sandbox.errors import BadInput

MODEL = {"name": "big", "model": "big"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": [MODEL | {"key_env": "NO_SUCH_KEY"}]}, "big needs a key: set the environment variable NO_SUCH_KEY"),
        ({"models": [MODEL | {"base_url": "ftp://there"}]}, "the base URL cannot be read"),
        ({"models": [MODEL | {"base_url": "http://127.0.0.1:9"}] * 2}, "two models are called 'big'"),
        ({"command": "/no/such/program"}, "got '/no/such/program', wanted a program"),
        ({"command": "true", "prompts": "nowhere"}, "folder of templates .*nowhere does not exist"),
        ({"command": "true", "prompts": "broken"}, r"edit\.md\.j2: line 1: "),
    ],
)
def test_model_that_cannot_be_asked_is_bad_input(
    tmp_path: Path, toy_folder: Path, given: dict[str, Any], message: str
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "edit.md.j2").write_text("{% if %}")
    config = RunConfig(task=str(toy_folder), target="cpu", archive=str(tmp_path / "a.db"), **given)
    with pytest.raises(BadInput, match=message):
        session.start(config, lambda said: None, lambda event: None, lambda: None)
    assert not (tmp_path / "a.db").exists()
