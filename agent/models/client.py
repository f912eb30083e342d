"""Asks an OpenAI-compatible endpoint. The only file that knows openai, and the only layer that tries again.

Tried again: 429, 5xx, connections that fail or break, time-outs. Everything else would fail the same way twice, except
that a reply which does not fit into the model's context beside the prompt is asked for once more, shorter.
What an endpoint bills for an attempt that broke off is not known here. Not covered: what answers look like (wire).
"""

from __future__ import annotations

import math
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2
import openai
from pydantic import SecretStr

from agent.engineer.records import Message
from agent.models import wire
from agent.models.endpoint import Endpoint, Failed, FailureKind, Reply, Usage
from sandbox.contract import Record
from sandbox.errors import BadInput

ATTEMPTS = 4
FIRST_PAUSE_S = 1.0
"""Doubled after each attempt."""
LONGEST_PAUSE_S = 60.0
"""Also where an endpoint asks for more with Retry-After."""
CONNECT_S = 10.0
WIRE_LIMIT = 64_000_000
"""Most bytes of a body: events and escapes make a text many times as long."""
REASON_LENGTH = 300
LEAST_REPLY = 256
"""Fewer tokens are not worth asking for: no kernel is that short."""
TOO_LONG = re.compile(
    r"context[ _](length|window|size)|(prompt|input|request) (is )?too long|too many tokens|exceeds? .*\bcontext\b",
    re.IGNORECASE,
)
"""What servers say of a prompt, or a prompt and its reply, that the model cannot hold; codes differ, or are missing."""
FORMAT_REFUSED = re.compile(r"response_format|json_schema|json_object")
_WINDOW = re.compile(r"maximum context length is (\d+)|context size \((\d+)")
_PROMPT = re.compile(r"(\d+) (?:in the (?:messages|input)|(?:text )?input tokens|in your prompt)|has (\d+) input")
NO_KEY = "no-key"
Rung = Literal["schema", "object", "text"]
RUNGS: tuple[Rung, ...] = ("schema", "object", "text")
"""How JSON is asked for: of a strict schema, any object, or in words only."""
KEY_LIKE = re.compile(r"\b(sk-|Bearer\s+)[\w*.\-]{6,}")
SHORTEST_SECRET = 8
"""A shorter key is a placeholder of local servers, and a word that any text may hold."""


UNKNOWN = Usage()


@dataclass(frozen=True)
class _Fault:
    """Why an attempt came to nothing, and whether another makes sense."""

    kind: FailureKind
    reason: str
    again: bool = False
    pause_s: float | None = None
    usage: Usage = UNKNOWN
    room: int | None = None
    """Tokens that the model's context has left for a reply, where it had too few."""


class _Late(Exception):
    """The answer was still coming when its time was over."""


class Shape(Record):
    """JSON that is wanted as a reply."""

    name: str
    schema_: dict[str, Any]


class Shaped:
    """An endpoint's model, asked for JSON of one shape as strictly as the endpoint can."""

    def __init__(self, client: Client, shape: Shape) -> None:
        self.name = client.name
        self._client, self._shape = client, shape

    def complete(self, messages: Sequence[Message]) -> Reply | Failed:
        """As the client's; the text is still to be read with care, for an endpoint may know no such thing."""
        return self._client.complete(messages, self._shape)


class Client:
    """A model behind an endpoint. Safe to share between threads; BadInput where there is no key for it."""

    def __init__(
        self, endpoint: Endpoint, sleep: Callable[[float], None] = time.sleep, deadline: float = math.inf
    ) -> None:
        """At `deadline`, of the monotonic clock, whoever asks wants no answer any more."""
        self.name = endpoint.name
        self.endpoint = endpoint
        self.deadline = deadline
        _check_address(endpoint)
        self._key = _key(endpoint)
        self._sleep = sleep
        self._rungs: tuple[Rung, ...] = RUNGS
        """Those that the endpoint may know; it has answered the first once a higher one was refused."""
        self._openai = openai.OpenAI(
            api_key=self._key.get_secret_value(),
            base_url=endpoint.address,
            max_retries=0,
        )

    def __repr__(self) -> str:
        return f"Client({self.name!r}, {self.endpoint.model!r} at {self.endpoint.address})"

    def close(self) -> None:
        """Close the connections."""
        self._openai.close()

    def complete(self, messages: Sequence[Message], shape: Shape | None = None) -> Reply | Failed:
        """The model's answer, after up to ATTEMPTS attempts; in a shape as far as the endpoint knows how."""
        started, attempt, limit = time.monotonic(), 1, self.endpoint.max_tokens
        found = self._on_ladder(messages, shape, limit)
        while isinstance(found, _Fault) and found.again and attempt < ATTEMPTS:
            if found.room is None:
                self._sleep(min(_pause(attempt, found.pause_s), max(self.deadline - time.monotonic(), 0.0)))
            else:
                limit = found.room
            found = self._on_ladder(messages, shape, limit)
            attempt += 1
        seconds = time.monotonic() - started
        if isinstance(found, _Fault):
            reason = self._scrubbed(found.reason)
            return Failed(kind=found.kind, reason=reason, seconds=seconds, attempts=attempt, usage=found.usage)
        kept = found.model_dump(include={"text", "finish"})
        return Reply(**kept, usage=found.usage, seconds=seconds, model=found.model or self.endpoint.model)

    def _on_ladder(self, messages: Sequence[Message], shape: Shape | None, limit: int) -> wire.Answer | _Fault:
        """One attempt. What refuses a shape is asked for less at once, and remembered when that is answered."""
        if shape is None:
            return self._attempt(messages, limit, {})
        rungs = self._rungs
        for at, rung in enumerate(rungs):
            found = self._attempt(messages, limit, _format(self.endpoint.api, rung, shape))
            if not isinstance(found, _Fault):
                self._rungs = rungs[at:]
            elif found.kind == "bad request" and rung != rungs[-1]:
                continue
            return found
        raise AssertionError("a ladder has a last rung")

    def _attempt(self, messages: Sequence[Message], limit: int, form: dict[str, Any]) -> wire.Answer | _Fault:
        """With up to `limit` tokens of a reply."""
        seconds = min(self.endpoint.timeout_s, self.deadline - time.monotonic())
        if seconds <= 0:
            return _Fault("out of time", "the search's time is over")
        try:
            return _usable(self._ask(messages, limit, seconds, form))
        except openai.APIStatusError as exc:
            return _of_status(exc, limit)
        except (openai.APITimeoutError, httpx2.TimeoutException, _Late):
            if time.monotonic() >= self.deadline:
                return _Fault("out of time", f"no whole answer within the {seconds:.0f} s that the search had left")
            return _Fault("timed out", f"no whole answer within {self.endpoint.timeout_s:g} s", again=True)
        except (openai.APIConnectionError, httpx2.TransportError, wire.Broken) as exc:
            return _Fault("connection", f"{self.endpoint.address}: {exc.__cause__ or exc}", again=True)
        except wire.Reported as exc:
            return _of_report(exc)
        except (wire.Garbled, httpx2.RequestError, openai.OpenAIError) as exc:
            return _Fault("garbled", str(exc))

    def _ask(self, messages: Sequence[Message], limit: int, seconds: float, form: dict[str, Any]) -> wire.Answer:
        """One request. The body is read by the piece, so that neither its length nor its slowness is without bounds."""
        late = time.monotonic() + seconds
        patience = openai.Timeout(seconds, connect=min(CONNECT_S, seconds))
        turns = [message.model_dump() for message in messages]
        if self.endpoint.api == "chat":
            given = {**self._chat(turns, limit), **form}
            asked = self._openai.chat.completions.with_streaming_response.create(**given, timeout=patience)
        else:
            given = {**self._response(turns, limit), **form}
            asked = self._openai.responses.with_streaming_response.create(**given, timeout=patience)
        with asked as response:
            content_type = response.headers.get("content-type", "")
            answer = wire.read(self.endpoint.api, content_type, _bounded(response.iter_bytes(), late))
        words = {name: self._without_key(getattr(answer, name)) for name in ("text", "refusal", "finish", "model")}
        return answer.model_copy(update=words)

    def _chat(self, turns: list[dict[str, Any]], most_tokens: int) -> dict[str, Any]:
        end, streams = self.endpoint, {"stream": True, "stream_options": {"include_usage": True}}
        # OpenAI's reasoning models refuse the old name; most other servers know no new one.
        limit = "max_completion_tokens" if _is_openai(end.address) else "max_tokens"
        given = {"temperature": end.temperature, "reasoning_effort": end.effort}
        chosen = {name: value for name, value in given.items() if value is not None}
        return {
            "model": end.model,
            "messages": turns,
            limit: most_tokens,
            **chosen,
            **(streams if end.stream else {}),
        }

    def _response(self, turns: list[dict[str, Any]], most_tokens: int) -> dict[str, Any]:
        end = self.endpoint
        given = {"temperature": end.temperature, "reasoning": {"effort": end.effort} if end.effort else None}
        chosen = {name: value for name, value in given.items() if value is not None}
        streams = {"stream": True} if end.stream else {}
        return {
            "model": end.model,
            "input": turns,
            "max_output_tokens": most_tokens,
            "store": False,
            **chosen,
            **streams,
        }

    def _scrubbed(self, text: str) -> str:
        """One short line without keys."""
        line = " ".join(KEY_LIKE.sub("***", self._without_key(text)).split())
        return line if len(line) <= REASON_LENGTH else f"{line[:REASON_LENGTH]}…"

    def _without_key(self, text: str) -> str:
        key = self._key.get_secret_value()
        return text.replace(key, "***") if len(key) >= SHORTEST_SECRET else text


# ---------------------------------------------------------------- shapes


def _format(api: Literal["chat", "responses"], rung: Rung, shape: Shape) -> dict[str, Any]:
    """What a request says of the shape of its reply."""
    if rung == "text":
        return {}
    if rung == "object":
        form: dict[str, Any] = {"type": "json_object"}
        return {"response_format": form} if api == "chat" else {"text": {"format": form}}
    schema = {"name": shape.name, "schema": shape.schema_, "strict": True}
    if api == "chat":
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {"text": {"format": {"type": "json_schema", **schema}}}


# ---------------------------------------------------------------- endpoints and keys


def _check_address(endpoint: Endpoint) -> None:
    """BadInput where the address is none, or would carry a secret into the archive."""
    try:
        parts = urlsplit(endpoint.address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise BadInput(f"endpoint {endpoint.name}: the base URL cannot be read; wanted http://HOST/… or https://HOST/…")
    if parts.username or parts.password or parts.query:
        raise BadInput(
            f"endpoint {endpoint.name}: the base URL carries a user, a password or a query; "
            "wanted the key in an environment variable"
        )


def _key(endpoint: Endpoint) -> SecretStr:
    """The endpoint's key; a stand-in where it wants none. BadInput naming the variable that is not set."""
    key = os.environ.get(endpoint.key_env, "").strip() if endpoint.key_env else NO_KEY
    if not key and not endpoint.local:
        raise BadInput(
            f"endpoint {endpoint.name} needs a key: set the environment variable {endpoint.key_env}, "
            "or name another with key_env"
        )
    if not all("!" <= character <= "~" for character in key):
        raise BadInput(f"endpoint {endpoint.name}: {endpoint.key_env} holds blanks or signs that no key has")
    return SecretStr(key or NO_KEY)


def _is_openai(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    return host.endswith((".openai.com", ".openai.azure.com"))


# ---------------------------------------------------------------- attempts


def _bounded(chunks: Iterable[bytes], late: float) -> Iterator[bytes]:
    """The pieces of a body while there is time, up to WIRE_LIMIT."""
    length = 0
    for chunk in chunks:
        length += len(chunk)
        if length > WIRE_LIMIT:
            raise wire.Garbled(f"the answer is longer than {WIRE_LIMIT} bytes")
        if time.monotonic() > late:
            raise _Late
        yield chunk


def _usable(answer: wire.Answer) -> wire.Answer | _Fault:
    if answer.refusal:
        return _Fault("refused", answer.refusal, usage=answer.usage)
    if answer.finish == "content_filter":
        return _Fault("refused", "the endpoint's content filter stopped the reply", usage=answer.usage)
    if answer.text.strip():
        return answer
    why = "all tokens went before the first word" if answer.finish == "length" else f"finish {answer.finish!r}"
    return _Fault("empty", f"the reply is empty: {why}", usage=answer.usage)


def _of_status(exc: openai.APIStatusError, limit: int) -> _Fault:
    status, reason = exc.status_code, f"status {exc.status_code}: {_said(exc)}"
    if status == 429:
        # An account without money stays without money.
        return _Fault("rate limited", reason, exc.code != "insufficient_quota", _asked_pause(exc.response.headers))
    if status == 408:
        return _Fault("timed out", reason, again=True)
    # llama.cpp's Python server has a 500 for a format that it does not know.
    if status >= 500 and FORMAT_REFUSED.search(reason):
        return _Fault("bad request", reason)
    if status >= 500:
        return _Fault("server error", reason, again=True, pause_s=_asked_pause(exc.response.headers))
    if status in (400, 413, 422) and TOO_LONG.search(f"{exc.code} {reason}"):
        return _too_long(reason, limit)
    return _Fault("unauthorised" if status in (401, 403) else "bad request", reason)


def _too_long(reason: str, limit: int) -> _Fault:
    """Worth a second try with a shorter reply, where the endpoint says that the prompt leaves room for one."""
    window, prompt = _WINDOW.search(reason), _PROMPT.search(reason)
    room = _number(window) - _number(prompt) if window and prompt else 0
    if LEAST_REPLY <= room < limit:
        return _Fault("too long", reason, again=True, room=room)
    why = f"the prompt does not fit into the model's context beside a reply of up to {limit} tokens"
    return _Fault("too long", f"{why}: {reason}")


def _number(found: re.Match[str]) -> int:
    return int(next(group for group in found.groups() if group))


def _said(exc: openai.APIStatusError) -> str:
    """The endpoint's own words about a status."""
    if isinstance(exc.body, dict):
        return str(exc.body.get("message") or exc.body)
    return str(exc.body or exc.response.reason_phrase)


def _of_report(exc: wire.Reported) -> _Fault:
    """An error inside a body; its code is a status, or a word."""
    code = str(exc.code or "")
    if code == "429" or "rate_limit" in code:
        return _Fault("rate limited", str(exc), again=True)
    if code in ("401", "403"):
        return _Fault("unauthorised", str(exc))
    if (code.isdecimal() and code.startswith("4")) or "invalid" in code:
        return _Fault("bad request", str(exc))
    return _Fault("server error", str(exc), again=True)


def _asked_pause(headers: httpx2.Headers) -> float | None:
    """Seconds that Retry-After asks for, given as seconds or as a date."""
    text = headers.get("retry-after", "")
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()


def _pause(attempt: int, asked: float | None) -> float:
    """Seconds before the next attempt: what was asked for, else twice as long each time, not all clients at once."""
    if asked is not None and asked >= 0:
        return min(asked, LONGEST_PAUSE_S)
    return FIRST_PAUSE_S * float(2 ** (attempt - 1)) * random.uniform(0.75, 1.25)
