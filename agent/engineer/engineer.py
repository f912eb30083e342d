"""Language models as the proposer: whom they improve next, and how, while the judge is busy with what they wrote.

A structure that has been the fastest for a while gets a short sweep of its tunables. What earlier attempts came to is
read off the archive, so that a resumed run goes on where it stood: a candidate that was written and not judged yet is
judged first. Not covered: what an attempt does (attempt), whether a kernel is any good (the judge).
"""

from __future__ import annotations

import queue
import random
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from agent import fusion
from agent.engineer import bandit, memory, parents, stopping
from agent.engineer.attempt import PLANNED, Attempt, Desk, Writer, carry_out
from agent.engineer.bandit import Arm
from agent.engineer.contexts import context, exhibit
from agent.engineer.records import Context, Exhibit, Operator, PartExhibit
from agent.engineer.scores import best, scored
from agent.engineer.slots import Slots
from agent.fusion import Fusion
from agent.pair import PROPOSER
from agent.proposers import History, NothingLeft
from agent.proposers.tuner import Tuner
from agent.steps import Judged, Unused, trajectory
from archive import Exchange
from sandbox.contract import Candidate, Passed

__all__ = ["Desk", "Engineer", "Writer"]

ATTEMPTS = 4
"""In a row for one evaluation; then the tuner has a turn."""
GIVE_UP = 24
"""Requests in a row that came to nothing, after which no model is asked again."""
SWEEP = 2
"""Variants that the tuner tries of a structure that has become the fastest."""
SETTLED = 4
"""Candidates of other structures that a leader has to outlast before it is swept: early ones are soon overtaken."""
REPAIRS = 2
"""Repairs of a repair."""
IMPROVING: tuple[Operator, ...] = (*PLANNED, "simplify", "fuse")


class Engineer:
    """Proposes seeds, sweeps of what passed, and kernels that models write. A context manager.

    A slot is taken from an attempt's first request until its candidate is handed over. With one slot nothing is asked
    while a candidate is judged, and equal replies and verdicts give equal runs.
    """

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._slots = Slots()
        self._past: list[Exchange] = []
        """The exchanges of attempts that have ended."""
        self._unreachable: dict[str, str] = {}
        """Models that will not answer in this process any more, and why."""
        self._over_budget = ""
        """Why no further call can be paid for."""
        found = fusion.prepared(desk.task, desk.archive, desk.device)
        self._fusion = found if isinstance(found, Fusion) else None
        if isinstance(found, str) and found:
            desk.report(Unused("fusion", "fuse", found))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        """Wait for open requests, so that they are on record; not where the user wants to stop at once."""
        self.stop()
        if kind is None or issubclass(kind, Exception):
            self._slots.join()

    def stop(self) -> None:
        """Begin no further request."""
        self.desk.stopped.set()

    def propose(self, history: History, n: int) -> list[Candidate]:
        """One candidate, or the seeds that are left. NothingLeft says why there is none."""
        desk = self.desk
        until = time.monotonic() + desk.budget_seconds - desk.archive.run(desk.run_id).seconds_spent
        judged = trajectory(desk.archive, desk.run_id)
        taken = {candidate.id for candidate, _ in judged}
        if untried := [seed for seed in desk.seeds if seed.id not in taken]:
            return untried[:n]
        if self._fusion and self._fusion.pair.id not in taken:
            return [self._fusion.pair]
        self._read()
        while self._slots.ready:
            self._collect(until)
        if desk.slots > 1:
            self._fill(judged)
        if self._room(judged) and (swept := self._sweep(judged, history)):
            return swept
        while True:
            if made := self._made(judged, until):
                return [made]
            if reason := self._enough(judged):
                raise NothingLeft(reason)
            if tuned := Tuner(desk.task, desk.seeds, desk.device, desk.rng_seed).propose(history, 1):
                return tuned
            if silent := self._silent():
                raise NothingLeft(f"{silent}, and the tuner has nothing left")

    # ------------------------------------------------------------ slots

    def _made(self, judged: Sequence[Judged], until: float) -> Candidate | None:
        """The first candidate that was written and not judged; None once ATTEMPTS came to nothing, or none is made.

        NothingLeft at the time `until`.
        """
        in_vain = 0
        while True:
            if ahead := memory.waiting(self._past, judged):
                return self.desk.archive.candidate(ahead[0])
            if in_vain < ATTEMPTS:
                self._fill(judged)
            if not self._slots.open:
                return None
            self._collect(until)
            in_vain += 1

    def _fill(self, judged: Sequence[Judged]) -> None:
        """Begin attempts while slots are free and there is a reason to."""
        if self._enough(judged):
            return
        while self._free(judged) > 0 and not self._silent():
            self._slots.start(self._attempt(judged), lambda attempt: carry_out(self.desk, attempt))

    def _collect(self, until: float) -> None:
        """Take note of the next attempt that ends."""
        try:
            vain = self._slots.ended(until - time.monotonic())
        except queue.Empty as exc:
            raise NothingLeft(f"budget spent: {self.desk.budget_seconds:.0f} seconds, waiting for models") from exc
        if vain is not None and vain.unreachable:
            self._unreachable[vain.model] = vain.unreachable
        if vain is not None and vain.over_budget:
            self._over_budget = vain.over_budget
        self._read()

    def _read(self) -> None:
        exchanges = self.desk.archive.exchanges(self.desk.run_id)
        self._past = [exchange for exchange in exchanges if exchange.attempt not in self._slots.open]

    def _free(self, judged: Sequence[Judged]) -> int:
        """Slots that are free, as far as evaluations are left for what comes of them."""
        return min(self.desk.slots - self._ahead(judged), self._room(judged))

    def _room(self, judged: Sequence[Judged]) -> int:
        """Evaluations that are left beside those for candidates on their way."""
        return self.desk.budget_evals - len(judged) - self._ahead(judged)

    def _ahead(self, judged: Sequence[Judged]) -> int:
        """How many candidates are being written or wait to be handed over."""
        return len(self._slots.open) + len(memory.waiting(self._past, judged))

    # ------------------------------------------------------------ whether to go on

    def _enough(self, judged: Sequence[Judged]) -> str | None:
        """Why the search should end."""
        usd = memory.spending(self._past, judged)
        return self._over_budget or stopping.should_stop(judged, usd, self.desk.budget_evals)

    def _silent(self) -> str:
        """Why no model is asked any more; empty while one is."""
        if all(writer.model.name in self._unreachable for writer in self.desk.writers):
            return "; ".join(f"{name}: {why}" for name, why in self._unreachable.items())
        in_vain = memory.fruitless(self._past)
        return f"the last {in_vain} replies came to no new kernel" if in_vain >= GIVE_UP else ""

    def _sweep(self, judged: Sequence[Judged], history: History) -> list[Candidate]:
        """The next variant of the structure that leads, where a model wrote it, until it has had its few."""
        leader = best(scored(judged))
        if leader is None:
            return []
        own = [candidate for candidate, _ in judged if candidate.source == leader.candidate.source]
        since = [candidate.id for candidate, _ in judged].index(own[0].id)
        others = len(judged) - since - len(own)
        if not _is_written(own[0]) or len(own) > SWEEP or others < SETTLED:
            return []
        return Tuner(self.desk.task, own[:1], self.desk.device, self.desk.rng_seed).propose(history, 1)

    # ------------------------------------------------------------ what to attempt

    def _attempt(self, judged: Sequence[Judged]) -> Attempt:
        """A broken kernel is repaired first; then whom to improve is drawn, and how and by whom the bandit says."""
        number = 1 + max([*self._slots.open, *memory.numbers(self._past)], default=0)
        rng = random.Random(f"{self.desk.rng_seed} {number}")
        given, operators = self._subject(judged, rng)
        arm = self._arm(judged, operators)
        used = given[: {"crossover": 2, "fuse": 0}.get(arm.operator, 1)]
        writer = next(writer for writer in self.desk.writers if writer.model.name == arm.model)
        return Attempt(number, writer, arm.operator, used, self._context(arm.operator, used, judged), rng)

    def _subject(self, judged: Sequence[Judged], rng: random.Random) -> tuple[tuple[Judged, ...], Sequence[Operator]]:
        """The parent, with a mate where there is one, and what may be done with them."""
        desk = self.desk
        if judged and self._repairable(judged):
            return (judged[-1],), ("repair",)
        members = parents.islands(judged)
        born = parents.children(judged) + Counter(name for line in self._on_their_way(judged) for name in line)
        choice = parents.choose(members, born, desk.task, desk.device, rng)
        if choice is None:
            return (), ("translate",)
        mate = parents.mate(members, choice.parent, born, desk.task, desk.device, rng, desk.related)
        fusable = self._fusion is not None and fusion.passed(self._fusion.pair, judged)
        possible = {"crossover": mate is not None, "fuse": fusable}
        offered = [operator for operator in IMPROVING if possible.get(operator, True)]
        return ((choice.parent.candidate, choice.parent.judgement), *([mate] if mate else [])), offered

    def _arm(self, judged: Sequence[Judged], operators: Sequence[Operator]) -> Arm:
        names = [w.model.name for w in self.desk.writers if w.model.name not in self._unreachable]
        arms = [Arm(model=name, operator=operator) for name in names for operator in operators]
        pending = [*(attempt.arm for attempt in self._slots.open.values()), *memory.pending(self._past, judged)]
        return bandit.choose(arms, memory.observations(self._past, judged), pending=pending)

    def _on_their_way(self, judged: Sequence[Judged]) -> list[tuple[str, ...]]:
        """The parents of each candidate that is being written, or waits for its verdict."""
        open_ = [tuple(parent.id for parent, _ in attempt.parents) for attempt in self._slots.open.values()]
        ahead = [self.desk.archive.candidate(name).parents for name in memory.waiting(self._past, judged)]
        return [*open_, *ahead]

    def _repairable(self, judged: Sequence[Judged]) -> bool:
        """Whether the last candidate is a model's, is broken, and has not been repaired too often."""
        known = {candidate.id: candidate for candidate, _ in judged}
        candidate, judgement = judged[-1]
        if not _is_written(candidate) or isinstance(judgement.verdict, Passed):
            return False
        # Nothing but a repair is made of a broken kernel.
        if any(candidate.id in line for line in self._on_their_way(judged)):
            return False
        repairs = 0
        while candidate.operator == "repair" and candidate.parents and candidate.parents[0] in known:
            repairs, candidate = repairs + 1, known[candidate.parents[0]]
        return repairs < REPAIRS

    def _context(self, operator: Operator, given: tuple[Judged, ...], judged: Sequence[Judged]) -> Context:
        desk, tried = self.desk, memory.ideas(self._past, judged)
        edges = desk.archive.edges()
        shown = [exhibit(parent, desk.related) for parent in given]
        found = context(desk.task, desk.device, operator, shown, judged, tried, edges, desk.related)
        return self._with_parts(found) if operator == "fuse" and self._fusion else found

    def _with_parts(self, shown: Context) -> Context:
        """What a prompt shows of the parts to be fused."""
        assert self._fusion is not None
        parts = tuple(
            PartExhibit(task=elite.task, exhibit=Exhibit(candidate=elite.candidate, judgement=elite.judgement))
            for elite in self._fusion.elites
        )
        return shown.model_copy(update={"parts": parts, "glue": self._fusion.glue})


def _is_written(candidate: Candidate) -> bool:
    """Whether a model wrote it."""
    return candidate.operator not in ("seed", "tune", "import") and candidate.proposer != PROPOSER
