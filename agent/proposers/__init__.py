"""Who thinks of candidates. One protocol, and a dict of those who fill it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

from sandbox.contract import Candidate, Device, Task, Verdict
from sandbox.errors import BadInput

History = Sequence[tuple[Candidate, Verdict]]


class Proposer(Protocol):
    """Thinks of candidates, given everything this run has judged so far."""

    def propose(self, history: History, n: int) -> list[Candidate]:
        """Up to `n` new candidates; none once there is nothing left to try."""
        ...


def _tuner(task: Task, seeds: Sequence[Candidate], device: Device, rng_seed: int) -> Proposer:
    from agent.proposers.tuner import Tuner

    return Tuner(task, seeds, device, rng_seed)


PROPOSERS: dict[str, Callable[[Task, Sequence[Candidate], Device, int], Proposer]] = {"tuner": _tuner}


def choose(name: str) -> tuple[str, str]:
    """The proposer that `name` means, and why; BadInput for one that does not exist."""
    if name == "auto":
        key = (
            "OPENAI_API_KEY is set, but no proposer uses it yet"
            if os.environ.get("OPENAI_API_KEY")
            else "no OPENAI_API_KEY"
        )
        return "tuner", f"{key}: the tuner proposes"
    if name not in PROPOSERS:
        raise BadInput(f"unknown proposer {name!r}; available: auto, {', '.join(PROPOSERS)}")
    return name, "as asked"
