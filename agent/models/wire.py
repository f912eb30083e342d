"""What OpenAI-compatible endpoints send, read into one Answer: chat completions and responses, whole or in events.

An answer is read leniently: what is not needed may be missing or odd, and usage that makes no sense is no usage.
Not covered: sending, status codes and time (client).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from agent.models.endpoint import Usage
from sandbox.contract import Record

TEXT_LIMIT = 2_000_000
"""Most characters of a reply."""
MOST_TOKENS = 2**53
"""A count beyond this is a mistake of the endpoint's."""
MOST_USD = 1e6
"""So is a price of one call."""


class Garbled(Exception):
    """What came is no answer; one line says why, without quoting it: a piece of a key would pass for text."""


class Broken(Exception):
    """The answer began and did not end."""


class Reported(Exception):
    """An error that the endpoint put into the body instead of the status."""

    def __init__(self, code: object, message: str) -> None:
        super().__init__(message)
        self.code = code


class Answer(Record):
    text: str = ""
    refusal: str = ""
    finish: str = "stop"
    usage: Usage = Usage()
    model: str = ""


class _Shape(BaseModel):
    """Fields that are not named are ignored."""


class _Said(_Shape):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Shape):
    message: _Said | None = None
    delta: _Said | None = None
    finish_reason: str | None = None


class _Chat(_Shape):
    choices: list[_Choice]
    usage: Any = None
    model: str | None = None


class _Content(_Shape):
    text: str | None = None
    refusal: str | None = None


class _Item(_Shape):
    type: str
    content: list[_Content] | None = None


class _Incomplete(_Shape):
    reason: str | None = None


class _Response(_Shape):
    output: list[_Item]
    incomplete_details: _Incomplete | None = None
    usage: Any = None
    model: str | None = None


ShapeT = TypeVar("ShapeT", bound=_Shape)


def read(api: Literal["chat", "responses"], content_type: str, chunks: Iterable[bytes]) -> Answer:
    """The answer in a body. Garbled, Broken or Reported where there is none."""
    if "text/event-stream" in content_type:
        events = _events(chunks)
        return _chat_events(events) if api == "chat" else _response_events(events)
    body = _object(b"".join(chunks))
    return _chat(body) if api == "chat" else _response(body)


# ---------------------------------------------------------------- chat completions


def _chat(body: dict[str, Any]) -> Answer:
    chat = _shaped(_Chat, body)
    if not chat.choices or chat.choices[0].message is None:
        raise Garbled("the answer holds no message")
    said = chat.choices[0].message
    return _answer(
        text=said.content,
        refusal=said.refusal,
        finish=chat.choices[0].finish_reason,
        usage=chat_usage(chat.usage),
        model=chat.model,
    )


def _chat_events(events: Iterator[dict[str, Any] | None]) -> Answer:
    said: list[_Said] = []
    length, finish, usage, model, done = 0, "", Usage(), "", False
    for event in events:
        if event is None:
            done = True
            break
        chunk = _shaped(_Chat, {"choices": [], **event})
        model = chunk.model or model
        usage = chat_usage(chunk.usage) if chunk.usage else usage
        for choice in chunk.choices[:1]:
            finish = choice.finish_reason or finish
            said.append(choice.delta or _Said())
            length += len(said[-1].content or "")
        _check_length(length)
    if not done and not finish:
        raise Broken("the stream ended before the reply did")
    return _answer(
        text="".join(part.content or "" for part in said),
        refusal="".join(part.refusal or "" for part in said),
        finish=finish,
        usage=usage,
        model=model,
    )


def chat_usage(given: Any) -> Usage:
    """The usage of a chat completion, as far as it makes sense."""
    return Usage(
        input_tokens=_count(given, "prompt_tokens"),
        cached_tokens=_count(given, "prompt_tokens_details", "cached_tokens"),
        output_tokens=_count(given, "completion_tokens"),
        reasoning_tokens=_count(given, "completion_tokens_details", "reasoning_tokens"),
        usd=_usd(given),
    )


# ---------------------------------------------------------------- responses


def _response(body: dict[str, Any]) -> Answer:
    response = _shaped(_Response, body)
    parts = [part for item in response.output if item.type == "message" for part in item.content or ()]
    why = response.incomplete_details.reason if response.incomplete_details else None
    return _answer(
        text="".join(part.text or "" for part in parts),
        refusal="".join(part.refusal or "" for part in parts),
        finish="length" if why == "max_output_tokens" else why,
        usage=response_usage(response.usage),
        model=response.model,
    )


def _response_events(events: Iterator[dict[str, Any] | None]) -> Answer:
    """The last event holds the whole response; what comes before it announces its parts."""
    for event in events:
        if event is not None and event.get("type") in ("response.completed", "response.incomplete", "response.failed"):
            body = event.get("response")
            if not isinstance(body, dict):
                raise Garbled(f"the event {event['type']} holds no response")
            _refuse_error(body)
            return _response(body)
    raise Broken("the stream ended before the reply did")


def response_usage(given: Any) -> Usage:
    """The usage of a response, as far as it makes sense."""
    return Usage(
        input_tokens=_count(given, "input_tokens"),
        cached_tokens=_count(given, "input_tokens_details", "cached_tokens"),
        output_tokens=_count(given, "output_tokens"),
        reasoning_tokens=_count(given, "output_tokens_details", "reasoning_tokens"),
        usd=_usd(given),
    )


# ---------------------------------------------------------------- bytes, events, numbers


def _events(chunks: Iterable[bytes]) -> Iterator[dict[str, Any] | None]:
    """Server-sent events as objects; None for the `[DONE]` behind the last."""
    data: list[bytes] = []
    for line in _lines(chunks):
        if line.startswith(b"data:"):
            data.append(line.removeprefix(b"data:").strip())
        elif not line and data:
            text, data = b"\n".join(data), []
            yield None if text == b"[DONE]" else _object(text)
    if data == [b"[DONE]"]:
        yield None


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.rstrip(b"\r") for line in lines)
    yield rest


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise Garbled(f"the answer is not JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise Garbled(f"the answer is a {type(found).__name__}; wanted a JSON object")
    _refuse_error(found)
    return found


def _refuse_error(body: dict[str, Any]) -> None:
    error = body.get("error") or (body if body.get("type") == "error" else None)
    if isinstance(error, dict):
        raise Reported(error.get("code") or error.get("type"), str(error.get("message") or error))
    if error:
        raise Reported(None, str(error))


def _shaped(shape: type[ShapeT], body: dict[str, Any]) -> ShapeT:
    try:
        return shape.model_validate(body)
    except ValidationError as exc:
        fault = exc.errors(include_url=False, include_input=False)[0]
        raise Garbled(f"the answer's {'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}") from exc


def _answer(text: str | None, refusal: str | None, finish: str | None, usage: Usage, model: str | None) -> Answer:
    _check_length(len(text or ""))
    words = {"text": text or "", "refusal": refusal or "", "finish": finish or "stop", "model": model or ""}
    return Answer(usage=usage, **{name: _encodable(word) for name, word in words.items()})


def _encodable(text: str) -> str:
    """JSON can spell half a surrogate pair, which no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _check_length(characters: int) -> None:
    if characters > TEXT_LIMIT:
        raise Garbled(f"the reply is longer than {TEXT_LIMIT} characters")


def _count(given: Any, *path: str) -> int | None:
    found = _at(given, path)
    return found if type(found) is int and 0 <= found < MOST_TOKENS else None


def _usd(given: Any) -> float | None:
    """What some endpoints say the call cost."""
    found = _at(given, ("cost",))
    return float(found) if type(found) in (int, float) and 0 <= found < MOST_USD else None


def _at(given: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        given = given.get(name) if isinstance(given, dict) else None
    return given
