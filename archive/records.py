"""The archive's own records, and how records become canonical text, ids and timestamps.

Not covered: candidates and judgements, which are sandbox.contract's.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from sandbox.contract import Judgement, Record, Target

RunStatus = Literal["running", "drained", "finished", "failed"]
"""`drained` stopped before its budget was spent and can be resumed; so can `failed`."""


def utc_now() -> str:
    """Now, as every timestamp of the archive is written: UTC, ISO 8601, microseconds; sorts as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def normal_time(text: str) -> str:
    """Any ISO 8601 time in the form of `utc_now`; a time without a zone is UTC. ValueError where it is no time."""
    moment = datetime.fromisoformat(text)
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat(timespec="microseconds")


Time = Annotated[str, AfterValidator(normal_time)]


def time_after(previous: str | None) -> str:
    """Now, or just after `previous` where the clock went back or stood still."""
    now = utc_now()
    if previous is None or now > previous:
        return now
    return (datetime.fromisoformat(previous) + timedelta(microseconds=1)).isoformat(timespec="microseconds")


def new_run_id() -> str:
    """Short, unique, and sorted by start: `20260131-235959-1f0c9a77`."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


def canonical(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no spaces, floats in full, `NaN` and `Infinity` as strings."""
    return json.dumps(_finite(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def judgement_text(judgement: Judgement) -> str:
    """The canonical text under which a judgement is stored."""
    return canonical(judgement.model_dump(mode="json"))


def content_id(text: str) -> str:
    """sha256 of a canonical text, as 64 hex digits: equal judgements meet, different ones are both kept."""
    return hashlib.sha256(text.encode()).hexdigest()


class Run(Record):
    """One search: what it was asked, how far it came and what it found."""

    id: str = Field(default_factory=new_run_id)
    task: str
    task_version: str
    target: Target
    device: str
    config: dict[str, Any] = Field(default={})
    """The run's configuration, JSON values only."""
    rng_seed: int = Field(ge=-(2**63), lt=2**63)
    status: RunStatus = "running"
    started_at: str = Field(default_factory=utc_now)
    ended_at: str | None = None
    """When it last stopped; None while it is running."""
    seconds_spent: float = 0.0
    usd_spent: float = 0.0
    winners: dict[str, str] = Field(default={})
    """Candidate id by workload name."""
    note: str = ""


class Exchange(Record):
    """One request to a language model, and what came back."""

    run: str
    at: Time = Field(default_factory=utc_now)
    """When it came back."""
    model: str
    operator: str
    """What it was for."""
    attempt: int | None = Field(default=None, ge=1, lt=2**63)
    """Which of the run's attempts at a candidate it belongs to; attempts under way at the same time interleave."""
    candidate: str | None = None
    """What came of it, once that is known."""
    request: str
    """JSON, as are reply and failure, of which there is exactly one."""
    reply: str | None = None
    failure: str | None = None
    input_tokens: int | None = Field(default=None, ge=0, lt=2**63)
    cached_tokens: int | None = Field(default=None, ge=0, lt=2**63)
    output_tokens: int | None = Field(default=None, ge=0, lt=2**63)
    reasoning_tokens: int | None = Field(default=None, ge=0, lt=2**63)
    usd: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """None where the price is not known."""
    seconds: float = Field(ge=0, allow_inf_nan=False)

    @property
    def request_hash(self) -> str:
        return content_id(self.request)

    @property
    def id(self) -> str:
        """Of a fixed part, so that it stays when a later program adds fields."""
        return content_id(canonical([self.run, self.at, self.model, self.request, self.reply, self.failure]))

    @model_validator(mode="after")
    def _one_outcome(self) -> Self:
        if (self.reply is None) == (self.failure is None):
            raise ValueError("an exchange has either a reply or a failure")
        return self


class Ask(Record):
    """A prompt for an engineer who answers in their own time, in another process or on another machine.

    Whatever is answered is an Exchange of the same run.
    """

    run: str
    at: Time = Field(default_factory=utc_now)
    operator: str
    """What is asked for."""
    parents: tuple[str, ...] = ()
    """Of what it asks for: candidates of the archive."""
    request: str
    """JSON."""

    @property
    def id(self) -> str:
        return content_id(canonical([self.run, self.at, self.operator, self.parents, self.request]))


def exact(usd: float) -> Decimal:
    """An amount as it is written; sums of these have no rounding in them."""
    return Decimal(str(usd))


class Tally(Record):
    """How many records an import brought, and how many of those given were there before."""

    new: int = 0
    known: int = 0


class ImportReport(Record):
    """What an import did to the archive."""

    candidates: Tally
    judgements: Tally
    runs: Tally
    evaluations: Tally
    exchanges: Tally = Tally()
    asks: Tally = Tally()
