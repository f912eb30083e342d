"""The scripted engineer: reads a kernel out of a prompt, changes it at random, answers in the form that is asked for.

It does not read verdicts, advice or lists of failed ideas, whoever asks; of a prompt it takes the parent, a second
parent where a crossover is asked for, a plan where there is one, and the form of the answer. So contenders differ only
in whom they show and in what they do with the answer. Not covered: whatever a model that understands does better.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace

from bench.peers.family import Family, Genome, Move, crossed, drawn, moved

_BLOCK = re.compile(r"```\w*\n(.*?)\n```", re.DOTALL)
_CURRENT = re.compile(r"^# Current program$", re.IGNORECASE | re.MULTILINE)
_SETTINGS = re.compile(r"^Kernel \w+, with ([^:\n]*):\s*\Z", re.MULTILINE)
"""Right before a block: knobs that have other values than the text says."""
_CROSSOVER = re.compile(r"cross-?over|one kernel of two parents", re.IGNORECASE)
_PLAN = re.compile(r"^- Change: (.*)$", re.MULTILINE)
_MOVE = re.compile(r"(\w+)=(\w+)")


class Shown:
    """A kernel in a prompt: as its text says, and with the settings it was judged with."""

    def __init__(self, written: Genome, settings: str) -> None:
        self.written = written
        given = {name: int(value) for name, value in _MOVE.findall(settings) if name in written.knobs}
        self.judged = replace(written, knobs={**written.knobs, **given})


def answer(system: str, user: str, family: Family, rng: random.Random) -> str:
    """The reply to a prompt."""
    kernels = _shown(user, family)
    if not kernels:
        return "There is no kernel in what you sent."
    if '"expected_speedup"' in user:
        return _plan(_moves(user, kernels, family, rng, system))
    planned = _PLAN.search(user)
    moves = _MOVE.findall(planned[1]) if planned else _moves(user, kernels, family, rng, system)
    return _reply(system, user, family, kernels[0], moves)


def _shown(user: str, family: Family) -> list[Shown]:
    """The kernels, the parent first: it stands under its heading, or else before all others."""
    found = [
        (block.start(), Shown(genome, settings[1] if settings else ""))
        for block in _BLOCK.finditer(user)
        if (genome := family.read(block[1])) is not None
        for settings in [_SETTINGS.search(user, 0, block.start())]
    ]
    headings = [heading.start() for heading in _CURRENT.finditer(user)]
    after = headings[-1] if headings else 0
    return [kernel for at, kernel in found if at > after]


def _moves(user: str, kernels: list[Shown], family: Family, rng: random.Random, system: str) -> list[Move]:
    if _CROSSOVER.search(system + user) and len(kernels) > 1:
        return crossed(kernels[0].judged, kernels[1].judged, rng)
    return drawn(family, kernels[0].judged, rng)


def _plan(moves: list[Move]) -> str:
    change = ", ".join(f"{name}={value}" for name, value in moves) or "leave it as it is"
    said = {"bottleneck": "unknown", "change": change, "why": "drawn at random", "expected_speedup": 1.1}
    return json.dumps({**said, "memory": "direct", "tensor_cores": False})


def _reply(system: str, user: str, family: Family, parent: Shown, moves: list[Move]) -> str:
    if "<<<<<<< SEARCH" in system + user:
        edits = family.edits(parent.written, moved(parent.written, moves))
        body = "\n\n".join(f"<<<<<<< SEARCH\n{old}\n=======\n{new}\n>>>>>>> REPLACE" for old, new in edits)
        tag = "DIFF"
    else:
        body, tag = f"```cpp\n{family.text(moved(parent.judged, moves)).strip()}\n```", "CODE"
    if "<NAME>" not in system:
        return body
    return f"<NAME>\nchange\n</NAME>\n\n<DESCRIPTION>\nA change.\n</DESCRIPTION>\n\n<{tag}>\n{body}\n</{tag}>"
