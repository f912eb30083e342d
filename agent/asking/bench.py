"""The judge of this machine, opened when it is first needed and kept for what comes after.

For one thread, which must live as long as the bench: workers die with the thread that started them. Not covered: more
than one kernel at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from agent import session
from sandbox import devices, launch
from sandbox.contract import Candidate, Judgement, Target, Task
from sandbox.errors import Infrastructure
from sandbox.judge import Judge
from sandbox.launch import Sandbox


class Bench:
    """One judge for each target."""

    def __init__(self, sandbox: Sandbox, say: Callable[[str], None]) -> None:
        self._sandbox, self._say = sandbox, say
        self._judges: dict[Target, Judge] = {}
        self._opened = contextlib.ExitStack()

    def close(self) -> None:
        """End the judge with all it started."""
        self._judges.clear()
        self._opened.close()

    def judge(self, task: Task, candidate: Candidate) -> Judgement:
        """The verdict on a kernel, on the device at hand. Slow where the task is not the last one."""
        if task.target not in self._judges:
            self._judges[task.target] = self._open(task.target)
        try:
            return self._judges[task.target].judge(task, candidate)
        except Infrastructure:
            # What broke is not asked again: the next kernel gets a new judge.
            self.close()
            raise

    def _open(self, target: Target) -> Judge:
        device = devices.detect(target)
        launcher, why = launch.choose(self._sandbox, device)
        self._opened.callback(launcher.close)
        self._say(f"judging on {device.name} · sandbox: {why}")
        tools = self._opened.enter_context(session.toolchain(launcher))
        return self._opened.enter_context(Judge(device, tools, launcher))
