"""The skill page for coding agents says what is there."""

import re
from pathlib import Path

from typer.main import get_command

from agent.cli import app
from tests.agent.asking.test_server import TOOLS

SKILL = (Path(__file__).parents[3] / "skills" / "warpsmith" / "SKILL.md").read_text()


def test_front_matter_names_and_describes_it() -> None:
    found = re.match(r"---\nname: warpsmith\ndescription: (.+)\n---\n", SKILL)
    assert found
    assert len(found[1]) <= 1024


def test_it_names_tools_and_commands_that_exist() -> None:
    commands = set(getattr(get_command(app), "commands"))  # noqa: B009
    assert set(re.findall(r"^warpsmith ([a-z]+)", SKILL, re.MULTILINE)) <= commands
    assert {"list_tasks", "show_task", "ask", "judge", "tell", "leaderboard", "lessons"} <= {
        name for name in TOOLS if f"`{name}`" in SKILL
    }
