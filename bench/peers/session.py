"""One search by one contender: a server that is both the language model and the evaluator, and the log of both.

`POST /v1/chat/completions` speaks OpenAI's protocol and asks the scripted engineer; `POST /evaluate` takes a source and
gives its verdict. Every evaluation is logged here, whoever keeps what of it. Not covered: the contenders.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import BaseModel

from bench.peers.family import Family
from bench.peers.scripted import answer


class Outcome(BaseModel):
    """What judging a kernel came to."""

    status: str
    """`Passed`, or how it failed."""
    speedup: float | None = None
    """As measured; None unless it passed."""
    true: float | None = None
    """Without noise, where that is known."""


class Entry(BaseModel):
    """An evaluation, and when it was over, in seconds since the search began."""

    at: float
    outcome: Outcome


Kernel = tuple[str, Mapping[str, int]]
"""A source, and values that its tunables have instead of their defaults."""
Evaluate = Callable[[str, Mapping[str, int]], Outcome]


class Session:
    """What a contender is given, and what it did with it."""

    def __init__(self, family: Family, seed: int, evaluate: Evaluate, budget: int) -> None:
        self.family = family
        self.budget = budget
        self.requests = 0
        self.log: list[Entry] = []
        self.kernels: list[Kernel] = []
        """What was evaluated, in the order of the log."""
        self.spent = threading.Event()
        """Set once the budget is."""
        self._evaluate = evaluate
        self._rng = random.Random(f"engineer {seed}")
        self._lock = threading.Lock()
        self._began = time.perf_counter()

    def judge(self, source: str, tunables: Mapping[str, int] | None = None) -> Outcome:
        """One evaluation; beyond the budget it is not made, and counts as failed."""
        with self._lock:
            if self.spent.is_set():
                return Outcome(status="budget spent")
            outcome = self._evaluate(source, tunables or {})
            self.kernels.append((source, dict(tunables or {})))
            self.log.append(Entry(at=time.perf_counter() - self._began, outcome=outcome))
            if len(self.log) >= self.budget:
                self.spent.set()
            return outcome

    def complete(self, messages: list[dict[str, Any]]) -> str:
        with self._lock:
            self.requests += 1
            said = {role: "\n".join(m["content"] for m in messages if m["role"] == role) for role in ("system", "user")}
            return answer(said["system"], said["user"], self.family, self._rng)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        body = self.rfile.read(length)
        if len(body) < length:
            # The program was ended while it asked.
            self.close_connection = True
            return
        asked = json.loads(body)
        if self.path == "/evaluate":
            made = self.server.session.judge(asked["source"]).model_dump()
        else:
            made = _completion(asked, self.server.session.complete(asked["messages"]))
        content = json.dumps(made).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, session: Session) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.session = session


def _completion(asked: dict[str, Any], text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    read, written = sum(len(m["content"]) // 4 for m in asked["messages"]), len(text) // 4
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    whole = {"id": "scripted", "object": "chat.completion", "created": 1, "model": asked["model"]}
    return {**whole, "choices": [choice], "usage": usage}


@contextmanager
def serving(session: Session) -> Iterator[str]:
    """The address, without a path."""
    with _Server(session) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
