"""Keeps every exchange with a model in the archive, and answers again from what was kept.

A request is known by the hash of its messages and the model's name. Not covered: budgets, which are asked before a
call (ledger).
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Sequence

from agent.engineer.records import Message
from agent.models.endpoint import Failed, Model, Price, Reply, Usage
from agent.models.prices import cost
from archive import Archive, Exchange
from archive.records import canonical, content_id


class Recorded:
    """A model whose exchanges are in the archive, and charged to the run, before anybody sees them.

    `about` says what the next ones are for; `made` says afterwards which candidate came of them.
    """

    def __init__(
        self,
        model: Model,
        archive: Archive,
        run_id: str,
        price: Price | None = None,
        operator: str = "unnamed",
        attempt: int | None = None,
    ) -> None:
        self.name = model.name
        self._model = model
        self._archive = archive
        self._run_id = run_id
        self._price = price
        self._operator = operator
        self._attempt = attempt
        self.exchanges: list[str] = []
        """Ids of what is on record so far."""

    def about(self, operator: str, attempt: int | None = None) -> Recorded:
        """The same model for one piece of work, as a part of an attempt."""
        return Recorded(self._model, self._archive, self._run_id, self._price, operator, attempt)

    def complete(self, messages: Sequence[Message]) -> Reply | Failed:
        """The wrapped model's answer, on record."""
        outcome = self._model.complete(messages)
        charge = cost(outcome.usage, self._price)
        exchange = Exchange(
            run=self._run_id,
            model=self.name,
            operator=self._operator,
            attempt=self._attempt,
            request=request_text(self.name, messages),
            reply=canonical(outcome.model_dump(mode="json")) if isinstance(outcome, Reply) else None,
            failure=canonical(outcome.model_dump(mode="json")) if isinstance(outcome, Failed) else None,
            usd=None if charge.note and (isinstance(outcome, Reply) or outcome.usage != Usage()) else float(charge.usd),
            seconds=outcome.seconds,
            **outcome.usage.model_dump(exclude={"usd"}),
        )
        self.exchanges.append(self._archive.record_exchange(exchange))
        return outcome

    def made(self, candidate_id: str) -> None:
        """Name the candidate that came of the exchanges so far; it must be in the archive."""
        for exchange_id in self.exchanges:
            self._archive.attribute_exchange(exchange_id, candidate_id)


class Replay:
    """A model that answers from a run's record: each request as it was answered, the same one again in order."""

    def __init__(self, archive: Archive, run_id: str, name: str) -> None:
        self.name = name
        self._run_id = run_id
        self._left: dict[str, deque[Exchange]] = defaultdict(deque)
        self._lock = threading.Lock()
        for exchange in archive.exchanges(run_id):
            self._left[exchange.request_hash].append(exchange)

    def complete(self, messages: Sequence[Message]) -> Reply | Failed:
        """The recorded outcome; a Failed where the run never asked this, or not as often."""
        asked = content_id(request_text(self.name, messages))
        with self._lock:
            found = self._left[asked].popleft() if self._left.get(asked) else None
        if found is None:
            reason = f"run {self._run_id} has no further exchange of {self.name} for request {asked[:10]}"
            return Failed(kind="bad request", reason=reason, seconds=0.0, attempts=0)
        if found.reply is not None:
            return Reply.model_validate_json(found.reply)
        return Failed.model_validate_json(found.failure or "")


def request_text(name: str, messages: Sequence[Message]) -> str:
    """The canonical text of a request, by whose hash it is found again."""
    return canonical({"model": name, "messages": [message.model_dump() for message in messages]})
