"""Where a language model answers, and what comes back: a Reply or a Failed, never an exception.

Not covered: how it is asked (client), what it costs (prices).
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal, Protocol
from urllib.parse import urlsplit

from pydantic import Field

from agent.engineer.records import Message
from sandbox.contract import Record

OPENAI = "https://api.openai.com/v1"

FailureKind = Literal[
    "rate limited",
    "server error",
    "connection",
    "timed out",
    "empty",
    "refused",
    "bad request",
    "too long",
    "out of time",
    "unauthorised",
    "garbled",
]


class Price(Record):
    """USD per million tokens."""

    input: Decimal = Field(ge=0, allow_inf_nan=False)
    cached: Decimal = Field(ge=0, allow_inf_nan=False)
    output: Decimal = Field(ge=0, allow_inf_nan=False)


class Endpoint(Record):
    """A model behind an OpenAI-compatible address, and how it is to be asked. Holds no key."""

    name: str
    """What this endpoint is called in the archive and in tables."""
    model: str
    """What the endpoint calls the model."""
    base_url: str | None = None
    """None means OPENAI_BASE_URL where that is set, else OpenAI."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; empty where the endpoint wants none."""
    api: Literal["chat", "responses"] = "chat"
    temperature: float | None = None
    effort: str | None = None
    """How hard a reasoning model should think, in the endpoint's own words."""
    max_tokens: int = Field(default=16384, ge=1)
    """Most tokens of a reply, reasoning included."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Most seconds of one attempt."""
    stream: bool = False
    """Take the reply in pieces; proxies that drop silent connections want this."""
    price: Price | None = None
    """None means that of the price list. A run keeps the price that it began with."""

    @property
    def address(self) -> str:
        """The URL that is asked."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI

    @property
    def local(self) -> bool:
        """Whether the address is on this machine or in its network, where nobody sends a bill."""
        host = urlsplit(self.address).hostname or ""
        try:
            return ipaddress.ip_address(host).is_private
        except ValueError:
            return bool(host) and ("." not in host or host.endswith((".local", ".localhost")))


class Usage(Record):
    """What a reply took, as the endpoint reports it; None where it does not say."""

    input_tokens: int | None = None
    """Cached ones included."""
    cached_tokens: int | None = None
    output_tokens: int | None = None
    """Reasoning included."""
    reasoning_tokens: int | None = None
    usd: float | None = None


class Reply(Record):
    """What a model answered."""

    text: str
    finish: str
    """`stop`; `length` where the token limit cut it short; else the endpoint's own word."""
    usage: Usage
    seconds: float
    """From the first attempt on, pauses included."""
    model: str
    """The model that answered, as the endpoint names it."""


class Failed(Record):
    """Why there is no reply, after the last attempt."""

    kind: FailureKind
    reason: str
    """One line, without keys."""
    seconds: float
    attempts: int
    usage: Usage = Usage()
    """Of an answer that came and could not be used: an empty one or a refusal."""


class Model(Protocol):
    """Whoever completes a conversation."""

    name: str

    def complete(self, messages: Sequence[Message]) -> Reply | Failed:
        """The next turn. Whatever the endpoint does, this returns."""
        ...
