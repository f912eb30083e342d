"""What a language model is told and what it answers, as records."""

from __future__ import annotations

from typing import Literal

from sandbox.contract import Record


class Message(Record):
    """One turn of a conversation with a model."""

    role: Literal["system", "user", "assistant"]
    content: str
