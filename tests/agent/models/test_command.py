"""A program as a model, with real programs."""

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from agent.engineer.records import Message
from agent.models.command import Command
from agent.models.endpoint import Failed, Reply
from sandbox.errors import BadInput

ASKED = [Message(role="system", content="You write kernels."), Message(role="user", content="Write one. ü")]


def script(folder: Path, text: str) -> str:
    path = folder / "program.py"
    path.write_text(text)
    return f"'{sys.executable}' {path}"


def test_prompt_goes_in_and_the_reply_comes_out(tmp_path: Path) -> None:
    answer = Command(script(tmp_path, "import sys; print(sys.stdin.read().upper())")).complete(ASKED)
    assert isinstance(answer, Reply)
    assert answer.text == "YOU WRITE KERNELS.\nWRITE ONE. Ü\n"
    assert answer.usage.usd is None


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("import sys; sys.exit('out of\\nideas')", "server error", "ended with status 1: out of ideas"),
        ("", "empty", "printed nothing"),
        ("print('x' * 3_000_000)", "garbled", "more than 2000000 bytes"),
        ("import os; os.kill(os.getpid(), 9)", "server error", "ended with status -9"),
    ],
)
def test_program_that_gives_no_reply_is_a_failure_in_one_line(
    tmp_path: Path, text: str, kind: str, reason: str
) -> None:
    answer = Command(script(tmp_path, text)).complete(ASKED)
    assert isinstance(answer, Failed)
    assert answer.kind == kind
    assert reason in answer.reason
    assert "\n" not in answer.reason


def test_program_that_takes_too_long_is_killed_with_what_it_started(tmp_path: Path) -> None:
    text = f"""
import pathlib, subprocess, time
child = subprocess.Popen(["sleep", "600"])
pathlib.Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
time.sleep(600)
"""
    answer = Command(script(tmp_path, text), timeout_s=2.0).complete(ASKED)
    assert isinstance(answer, Failed)
    assert answer.kind == "timed out"
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "State:\tZ" in Path(f"/proc/{child}/status").read_text():
            return
        time.sleep(0.05)
    os.kill(child, 9)
    pytest.fail("the program's child is still there")


def test_program_ends_where_the_user_wants_to_stop_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "started")
    text = f"open({str(tmp_path / 'started')!r}, 'w').close(); import time; time.sleep(600)"
    command, answers = Command(script(tmp_path, text)), []
    asking = threading.Thread(target=lambda: answers.append(command.complete(ASKED)))
    asking.start()
    (tmp_path / "started").read_text()
    command.close()
    asking.join()
    assert "ended with status -9" in answers[0].reason


@pytest.mark.parametrize("left_s", [-1.0, 0.5])
def test_program_is_waited_for_no_longer_than_the_search_lasts(tmp_path: Path, left_s: float) -> None:
    command = Command(script(tmp_path, "import time; time.sleep(600)"), deadline=time.monotonic() + left_s)
    answer = command.complete(ASKED)
    assert isinstance(answer, Failed)
    assert answer.kind == "out of time"


def test_program_that_does_not_exist_is_said_so() -> None:
    answer = Command("/no/such/program --flag").complete(ASKED)
    assert isinstance(answer, Failed)
    assert "/no/such/program cannot be started" in answer.reason


def test_program_is_looked_for_before_it_is_needed() -> None:
    Command("sh -c true").require()
    with pytest.raises(BadInput, match=r"--command: got '/no/such/program', wanted a program that can be started"):
        Command("/no/such/program --flag").require()


@pytest.mark.parametrize("command", ["", "unclosed 'quote"])
def test_command_that_is_none_is_refused(command: str) -> None:
    with pytest.raises(BadInput):
        Command(command)
