"""Who thinks of candidates. One protocol, and a dict of those who fill it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from sandbox.contract import Candidate, Device, Task, Verdict
from sandbox.errors import BadInput

History = Sequence[tuple[Candidate, Verdict]]


class NothingLeft(Exception):
    """No further candidate, and why."""


class Proposer(Protocol):
    """Thinks of candidates, given everything this run has judged so far."""

    def propose(self, history: History, n: int) -> list[Candidate]:
        """Up to `n` new candidates; none, or NothingLeft, once there is nothing left to try."""
        ...

    def stop(self) -> None:
        """The search is over: nothing that is under way will be judged."""
        ...


def _tuner(task: Task, seeds: Sequence[Candidate], device: Device, rng_seed: int) -> Proposer:
    from agent.proposers.tuner import Tuner

    return Tuner(task, seeds, device, rng_seed)


ASKING = "ask"
"""In place of a proposer in runs whose kernels come from `warpsmith tell`."""
PROPOSERS: dict[str, Callable[[Task, Sequence[Candidate], Device, int], Proposer]] = {"tuner": _tuner}
"""Those that need nothing; the engineer, who needs models and the archive, is made by the session."""


def choose(name: str, models: Sequence[str] = ()) -> tuple[str, str]:
    """The proposer that `name` means, given the models that are configured, and why. BadInput where it cannot be."""
    if name == "auto":
        if models:
            return "engineer", f"asking {', '.join(models)}"
        return "tuner", "no model is given (--model, --command): the tuner proposes"
    if name == ASKING:
        raise BadInput("kernels of this run come from whoever answers `warpsmith ask`: give them with `warpsmith tell`")
    if name not in (*PROPOSERS, "engineer"):
        raise BadInput(f"unknown proposer {name!r}; available: auto, engineer, {', '.join(PROPOSERS)}")
    if name == "engineer" and not models:
        raise BadInput(
            "proposer 'engineer' wants a model: give --model NAME, --command PROGRAM, or [[models]] in a TOML file"
        )
    return name, "as asked"
