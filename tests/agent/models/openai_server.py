"""A local HTTP server that speaks chat completions and responses, whole and in events, one scripted turn after another.

    with serving(Turn("hello"), Turn(status=500)) as server: ...

The last turn answers every further request. `server.requests` holds what was asked, `server.keys` with which key.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PIECE = 7
"""Characters of a text in one event."""


@dataclass(frozen=True)
class Turn:
    """One answer. Everything beyond the text is a way to misbehave."""

    text: str = "hello"
    finish: str = "stop"
    refusal: str = ""
    usage: dict[str, Any] | None = field(
        default_factory=lambda: {"input": 100, "cached": 40, "output": 20, "thought": 5}
    )
    cost: float | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=lambda: {"message": "no such luck", "code": None})
    body: bytes | None = None
    """Sent instead of an answer."""
    keep: float = 1.0
    """Share of the body that is sent before the connection is closed."""
    wait_s: float = 0.0
    drip_s: float = 0.0
    """Seconds between two pieces of the body."""
    refuses: tuple[str, ...] = ()
    """Types of formats that get the status `refused_with` in place of the answer."""
    refused_with: int = 400
    echo_key: bool = False
    """Repeat the key that was sent wherever there is text."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, turns: tuple[Turn, ...]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.turns = turns
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        turn = self.server.turns[min(len(self.server.requests), len(self.server.turns) - 1)]
        self.server.requests.append({"path": self.path, **asked})
        self.server.keys.append(self.headers.get("authorization", ""))
        if _format(asked) in turn.refuses:
            turn = replace(
                turn, status=turn.refused_with, error={"message": f"response_format {_format(asked)} is unknown"}
            )
        self.server.over.wait(turn.wait_s)
        kind, body = self._answer(turn, asked)
        if turn.echo_key:
            body = body.replace(b"KEY", self.headers["authorization"].removeprefix("Bearer ").encode())
        self.send_response(turn.status)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **turn.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self._send(body[: int(len(body) * turn.keep)], turn.drip_s)
        self.close_connection = self.close_connection or turn.keep < 1

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _send(self, body: bytes, drip_s: float) -> None:
        size = 8 if drip_s else len(body) or 1
        try:
            for start in range(0, len(body), size):
                self.wfile.write(body[start : start + size])
                if self.server.over.wait(drip_s):
                    return
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self, turn: Turn, asked: dict[str, Any]) -> tuple[str, bytes]:
        if turn.body is not None:
            return ("text/event-stream" if asked.get("stream") else "application/json"), turn.body
        if turn.status != 200:
            return "application/json", json.dumps({"error": turn.error}).encode()
        chat = self.path.endswith("/chat/completions")
        whole = _chat(turn) if chat else _response(turn)
        if not asked.get("stream"):
            return "application/json", json.dumps(whole).encode()
        events = _chat_events(turn, asked) if chat else _response_events(turn, whole)
        return "text/event-stream; charset=utf-8", b"".join(events)


def _format(asked: dict[str, Any]) -> str:
    """The type of the format that a request asks for; empty where it asks for none."""
    form = asked.get("response_format") or asked.get("text", {}).get("format") or {}
    return str(form.get("type", ""))


def _chat(turn: Turn) -> dict[str, Any]:
    message = {"role": "assistant", "content": turn.text or None, "refusal": turn.refusal or None}
    choice = {"index": 0, "message": message, "finish_reason": turn.finish, "logprobs": None}
    usage = {"usage": _chat_usage(turn)} if turn.usage else {}
    return {"id": "c1", "object": "chat.completion", "created": 1, "model": "m-2026", "choices": [choice], **usage}


def _chat_usage(turn: Turn) -> dict[str, Any]:
    used = turn.usage or {}
    return {
        "prompt_tokens": used.get("input"),
        "completion_tokens": used.get("output"),
        "total_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": used.get("cached")},
        "completion_tokens_details": {"reasoning_tokens": used.get("thought")},
        **({"cost": turn.cost} if turn.cost is not None else {}),
    }


def _chat_events(turn: Turn, asked: dict[str, Any]) -> Iterator[bytes]:
    common = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m-2026"}
    said = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in _pieces(turn.text))]
    said += [{"refusal": piece} for piece in _pieces(turn.refusal)]
    for delta in said:
        yield _event({**common, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    yield _event({**common, "choices": [{"index": 0, "delta": {}, "finish_reason": turn.finish}]})
    if turn.usage and asked.get("stream_options", {}).get("include_usage"):
        yield _event({**common, "choices": [], "usage": _chat_usage(turn)})
    yield b"data: [DONE]\n\n"


def _response(turn: Turn) -> dict[str, Any]:
    said = [{"type": "output_text", "text": turn.text, "annotations": []}] if turn.text else []
    said += [{"type": "refusal", "refusal": turn.refusal}] if turn.refusal else []
    reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
    used = turn.usage or {}
    usage = {
        "input_tokens": used.get("input"),
        "input_tokens_details": {"cached_tokens": used.get("cached")},
        "output_tokens": used.get("output"),
        "output_tokens_details": {"reasoning_tokens": used.get("thought")},
        "total_tokens": 0,
        **({"cost": turn.cost} if turn.cost is not None else {}),
    }
    return {
        "id": "r1",
        "object": "response",
        "model": "m-2026",
        "error": None,
        "status": "incomplete" if turn.finish in reasons else "completed",
        "incomplete_details": {"reason": reasons[turn.finish]} if turn.finish in reasons else None,
        "output": [{"type": "reasoning", "summary": []}, {"type": "message", "role": "assistant", "content": said}],
        "usage": usage if turn.usage else None,
    }


def _response_events(turn: Turn, whole: dict[str, Any]) -> Iterator[bytes]:
    yield _event({"type": "response.created", "response": {**whole, "output": [], "status": "in_progress"}}, named=True)
    for piece in _pieces(turn.text):
        yield _event({"type": "response.output_text.delta", "delta": piece}, named=True)
    yield _event({"type": f"response.{whole['status']}", "response": whole}, named=True)


def _event(content: dict[str, Any], named: bool = False) -> bytes:
    name = f"event: {content['type']}\n" if named else ""
    return f"{name}data: {json.dumps(content)}\n\n".encode()


def _pieces(text: str) -> list[str]:
    size = max(PIECE, len(text) // 1000)
    return [text[start : start + size] for start in range(0, len(text), size)]


@contextmanager
def serving(*turns: Turn) -> Iterator[Server]:
    """A server for these turns, stopped afterwards together with what it is waiting for."""
    with Server(turns) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()
