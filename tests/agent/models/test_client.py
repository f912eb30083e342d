"""The client against a real HTTP server that answers well, badly, late or not at all."""

import contextlib
import logging
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from agent.engineer.records import Message
from agent.models.client import ATTEMPTS, LONGEST_PAUSE_S, Client
from agent.models.endpoint import Endpoint, Failed, Reply, Usage
from sandbox.errors import BadInput
from tests.agent.models.openai_server import Server, Turn, serving

KEY = "sk-test-0123456789abcdef"
ASKED = (Message(role="system", content="You are terse."), Message(role="user", content="Say «π».\n"))
FULL = Usage(input_tokens=100, cached_tokens=40, output_tokens=20, reasoning_tokens=5)
WAYS = [("chat", False), ("chat", True), ("responses", False), ("responses", True)]

every_way = pytest.mark.parametrize(
    ("api", "stream"), WAYS, ids=["chat", "chat-stream", "responses", "responses-stream"]
)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


class Asking:
    """A client for one test, and the pauses it made without waiting."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.clients: list[Client] = []

    def __call__(self, server: Server, **fields: Any) -> Reply | Failed:
        given = {"name": "local", "model": "m", "base_url": server.url, "timeout_s": 20.0} | fields
        self.clients.append(Client(Endpoint(**given), self.pauses.append))
        return self.clients[-1].complete(ASKED)


@pytest.fixture
def ask() -> Iterator[Asking]:
    asking = Asking()
    yield asking
    for client in asking.clients:
        client.close()


def reply(outcome: Reply | Failed) -> Reply:
    assert isinstance(outcome, Reply), outcome
    return outcome


def failed(outcome: Reply | Failed) -> Failed:
    assert isinstance(outcome, Failed), outcome
    assert "\n" not in outcome.reason
    assert outcome.reason
    return outcome


# ---------------------------------------------------------------- answers


@every_way
def test_answer_comes_back_whole_with_its_usage(ask: Asking, api: str, stream: bool) -> None:
    with serving(Turn('«π» 𝄞 \\ " \n\n' * 20)) as server:
        found = reply(ask(server, api=api, stream=stream))
    assert (found.text, found.finish, found.model) == ('«π» 𝄞 \\ " \n\n' * 20, "stop", "m-2026")
    assert found.usage == FULL
    assert 0 < found.seconds < 20
    assert ask.pauses == []
    assert server.keys == [f"Bearer {KEY}"]


def test_chat_request_holds_what_the_endpoint_says(ask: Asking) -> None:
    with serving(Turn()) as server:
        ask(server, temperature=0.5, effort="high", max_tokens=123)
        ask(server, stream=True)
    first, second = server.requests
    turns = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Say «π».\n"}]
    assert first == {
        "path": "/v1/chat/completions",
        "model": "m",
        "messages": turns,
        "max_tokens": 123,
        "temperature": 0.5,
        "reasoning_effort": "high",
    }
    assert second["stream"] is True
    assert second["stream_options"] == {"include_usage": True}


def test_response_request_holds_what_the_endpoint_says(ask: Asking) -> None:
    with serving(Turn()) as server:
        ask(server, api="responses", effort="low", max_tokens=123)
    (asked,) = server.requests
    assert asked["path"] == "/v1/responses"
    assert (asked["max_output_tokens"], asked["reasoning"], asked["store"]) == (123, {"effort": "low"}, False)
    assert [turn["role"] for turn in asked["input"]] == ["system", "user"]


@every_way
def test_reply_of_a_megabyte_is_accepted(ask: Asking, api: str, stream: bool) -> None:
    with serving(Turn("x" * 1_000_000)) as server:
        assert len(reply(ask(server, api=api, stream=stream)).text) == 1_000_000


@every_way
def test_reply_beyond_the_limit_is_refused(ask: Asking, api: str, stream: bool) -> None:
    with serving(Turn("x" * 2_000_001)) as server:
        found = failed(ask(server, api=api, stream=stream))
    assert (found.kind, found.attempts) == ("garbled", 1)
    assert "longer than 2000000 characters" in found.reason


@every_way
def test_reply_cut_at_the_token_limit_says_so(ask: Asking, api: str, stream: bool) -> None:
    with serving(Turn("half a ker", finish="length")) as server:
        found = reply(ask(server, api=api, stream=stream))
    assert (found.text, found.finish) == ("half a ker", "length")


@every_way
def test_missing_usage_is_unknown(ask: Asking, api: str, stream: bool) -> None:
    with serving(Turn(usage=None)) as server:
        assert reply(ask(server, api=api, stream=stream)).usage == Usage()


@pytest.mark.parametrize("count", [-1, "100", 1.5, True, 10**30, [], None])
def test_usage_that_makes_no_sense_is_unknown(ask: Asking, count: Any) -> None:
    with serving(Turn(usage={"input": count, "output": 20})) as server:
        usage = reply(ask(server)).usage
    assert usage == Usage(output_tokens=20)


@every_way
@pytest.mark.parametrize(("given", "read"), [(0.0123, 0.0123), (0, 0.0), (-1.0, None), (1e300, None)])
def test_cost_that_the_endpoint_reports_is_read(
    ask: Asking, api: str, stream: bool, given: float, read: float | None
) -> None:
    with serving(Turn(cost=given)) as server:
        assert reply(ask(server, api=api, stream=stream)).usage.usd == read


def test_half_a_surrogate_pair_can_still_be_written_down(ask: Asking) -> None:
    with serving(Turn("a\ud800b")) as server:
        assert reply(ask(server)).text == "a?b"


# ---------------------------------------------------------------- answers that are none


@every_way
@pytest.mark.parametrize(("finish", "why"), [("stop", "finish 'stop'"), ("length", "all tokens went")])
def test_empty_reply_is_a_failure_that_keeps_its_usage(
    ask: Asking, api: str, stream: bool, finish: str, why: str
) -> None:
    with serving(Turn(" \n", finish=finish)) as server:
        found = failed(ask(server, api=api, stream=stream))
    assert (found.kind, found.attempts, found.usage) == ("empty", 1, FULL)
    assert why in found.reason


@every_way
def test_refusal_is_a_failure_in_the_models_words(ask: Asking, api: str, stream: bool) -> None:
    with serving(Turn("", refusal="I would rather not write that.")) as server:
        found = failed(ask(server, api=api, stream=stream))
    assert (found.kind, found.reason, found.usage) == ("refused", "I would rather not write that.", FULL)


@every_way
def test_content_filter_is_a_refusal(ask: Asking, api: str, stream: bool) -> None:
    with serving(Turn("half", finish="content_filter")) as server:
        assert failed(ask(server, api=api, stream=stream)).kind == "refused"


@every_way
@pytest.mark.parametrize(
    "body",
    [
        b"<html>hello</html>",
        b"[1, 2]",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"choices": 5, "output": 5}',
        b'{"choices": [{"message": {"content": 5}}], "output": [{"type": "message", "content": [{"text": 5}]}]}',
        b'{"choices": null, "output": null}',
    ],
)
def test_wrong_json_is_garbled_and_not_asked_for_again(ask: Asking, api: str, stream: bool, body: bytes) -> None:
    event = b'{"type": "response.completed", "response": %s}' % body if api == "responses" else body
    with serving(Turn(body=b"data: %s\n\n" % event if stream else body)) as server:
        found = failed(ask(server, api=api, stream=stream))
    assert (found.kind, found.attempts) == ("garbled", 1)
    assert len(server.requests) == 1


@every_way
def test_error_in_the_body_counts_as_its_code(ask: Asking, api: str, stream: bool) -> None:
    def body(code: object) -> bytes:
        text = b'{"error": {"message": "upstream says no", "code": %s}}' % str(code).encode()
        return b"data: " + text + b"\n\n" if stream else text

    with serving(
        Turn(body=body(429)), Turn(body=body('"rate_limit_exceeded"')), Turn(body=body(502)), Turn()
    ) as server:
        assert reply(ask(server, api=api, stream=stream)).text == "hello"
    assert len(server.requests) == 4
    with serving(Turn(body=body(400))) as server:
        found = failed(ask(server, api=api, stream=stream))
    assert (found.kind, found.reason, found.attempts) == ("bad request", "upstream says no", 1)


# ---------------------------------------------------------------- trying again


def test_rate_limit_waits_as_long_as_it_is_asked_to(ask: Asking) -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    limited = [Turn(status=429, headers={"retry-after": after}) for after in ("7", moment, "86400")]
    with serving(*limited, Turn()) as server:
        assert reply(ask(server)).text == "hello"
    assert ask.pauses[0] == 7
    assert 25 < ask.pauses[1] <= 30
    assert ask.pauses[2] == LONGEST_PAUSE_S


@pytest.mark.parametrize("after", ["", "soon", "-5", "nan"])
def test_pauses_grow_where_nothing_usable_is_asked_for(ask: Asking, after: str) -> None:
    with serving(Turn(status=429, headers={"retry-after": after})) as server:
        found = failed(ask(server))
    assert (found.kind, found.attempts, len(server.requests)) == ("rate limited", ATTEMPTS, ATTEMPTS)
    assert [round(pause / 2**number) for number, pause in enumerate(ask.pauses)] == [1, 1, 1]


def test_account_without_money_is_not_asked_again(ask: Asking) -> None:
    with serving(
        Turn(status=429, error={"message": "You exceeded your quota", "code": "insufficient_quota"})
    ) as server:
        found = failed(ask(server))
    assert (found.kind, found.attempts) == ("rate limited", 1)


@every_way
def test_server_error_is_tried_again(ask: Asking, api: str, stream: bool) -> None:
    with serving(Turn(status=500), Turn(status=503, body=b"<html>busy</html>"), Turn()) as server:
        assert reply(ask(server, api=api, stream=stream)).text == "hello"
    assert len(server.requests) == 3


@every_way
def test_server_error_for_good_fails_after_the_last_attempt(ask: Asking, api: str, stream: bool) -> None:
    with serving(Turn(status=500)) as server:
        found = failed(ask(server, api=api, stream=stream))
    assert (found.kind, found.attempts, len(server.requests)) == ("server error", ATTEMPTS, ATTEMPTS)
    assert found.reason == "status 500: no such luck"


@every_way
@pytest.mark.parametrize("keep", [0.0, 0.4, 0.8])
def test_connection_broken_within_the_body_is_tried_again(ask: Asking, api: str, stream: bool, keep: float) -> None:
    with serving(Turn("x" * 500, keep=keep), Turn("whole")) as server:
        assert reply(ask(server, api=api, stream=stream)).text == "whole"
    with serving(Turn("x" * 500, keep=keep)) as server:
        found = failed(ask(server, api=api, stream=stream))
    assert (found.kind, found.attempts) == ("connection", ATTEMPTS)


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_stream_that_ends_early_without_an_error_is_tried_again(ask: Asking, api: str) -> None:
    with serving(Turn(body=b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n'), Turn("whole")) as server:
        assert reply(ask(server, api=api, stream=True)).text == "whole"


def test_error_whose_body_breaks_off_is_tried_again(ask: Asking) -> None:
    with serving(Turn(status=500, keep=0.5), Turn("whole")) as server:
        assert reply(ask(server)).text == "whole"


def test_nobody_listening_is_a_connection_failure(ask: Asking) -> None:
    with serving(Turn()) as server:
        pass
    assert (failed(ask(server)).kind, len(ask.pauses)) == ("connection", ATTEMPTS - 1)


@every_way
def test_silence_times_out_and_is_tried_again(ask: Asking, api: str, stream: bool) -> None:
    with serving(Turn(wait_s=30), Turn("in time")) as server:
        assert reply(ask(server, api=api, stream=stream, timeout_s=0.5)).text == "in time"


def test_silence_for_good_times_out(ask: Asking) -> None:
    with serving(Turn(wait_s=30)) as server:
        found = failed(ask(server, timeout_s=0.2))
    assert (found.kind, found.attempts) == ("timed out", ATTEMPTS)
    assert found.reason == "no whole answer within 0.2 s"


@pytest.mark.parametrize("stream", [False, True])
def test_answer_that_drips_times_out_as_a_whole(ask: Asking, stream: bool) -> None:
    start = time.monotonic()
    with serving(Turn("x" * 1000, drip_s=0.1)) as server:
        found = failed(ask(server, timeout_s=0.4, stream=stream))
    assert found.kind == "timed out"
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "bad request"), (401, "unauthorised"), (403, "unauthorised"), (404, "bad request"), (422, "bad request")],
)
def test_what_would_fail_the_same_way_is_asked_once(ask: Asking, status: int, kind: str) -> None:
    with serving(Turn(status=status)) as server:
        found = failed(ask(server))
    assert (found.kind, found.attempts, found.reason) == (kind, 1, f"status {status}: no such luck")
    assert ask.pauses == []


# ---------------------------------------------------------------- keys and addresses


@pytest.mark.parametrize(
    "turn",
    [
        Turn(status=401, error={"message": "Incorrect API key provided: KEY."}),
        Turn(status=400, body=b"x" * 290 + b"KEY"),
        Turn(status=429, error={"message": "KEY", "code": "insufficient_quota"}),
        Turn(body=b'{"error": {"message": "bad KEY"}}'),
        Turn(body=b"KEY is no JSON"),
        Turn(body=b"x" * 50 + b"KEY"),
        Turn(finish="KEY"),
        Turn(body=b'{"error": "Bearer KEY"}'),
        Turn(refusal="I do not like KEY", text=""),
        Turn(text="the key is KEY"),
    ],
)
@every_way
def test_key_never_leaks(
    ask: Asking, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], turn: Turn, api: str, stream: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(Turn(**{**vars(turn), "echo_key": True})) as server:
        outcome = ask(server, api=api, stream=stream)
    assert server.keys[0] == f"Bearer {KEY}"
    shown = [outcome.model_dump_json(), repr(outcome), caplog.text, *capfd.readouterr(), *map(repr, ask.clients)]
    shown += [repr(vars(client)) for client in ask.clients]
    assert not any(KEY[3:15] in text for text in shown)


@pytest.mark.parametrize("text", ["half of a pair: \ud800", "fine"])
def test_key_is_in_no_traceback_even_with_the_values_of_variables(text: str) -> None:
    """A bug of ours in the middle of a call: one before the request leaves, one between two attempts."""

    def no_pause(seconds: float) -> None:
        raise ZeroDivisionError

    with serving(Turn(status=500)) as server:
        client = Client(Endpoint(name="near", model="m", base_url=server.url), sleep=no_pause)
        with contextlib.closing(client), pytest.raises((UnicodeError, ZeroDivisionError)) as caught:
            client.complete([Message(role="user", content=text)])
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "_ask" in shown or "no_pause" in shown
    assert KEY[3:15] not in shown


def test_missing_key_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(BadInput, match="set the environment variable OPENAI_API_KEY"):
        Client(Endpoint(name="far", model="m"))
    with pytest.raises(BadInput, match="set the environment variable ROUTER_KEY"):
        Client(Endpoint(name="far", model="m", base_url="https://router.example/v1", key_env="ROUTER_KEY"))


def test_local_endpoints_and_those_that_want_none_need_no_key(ask: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(Turn("no key but no-key")) as server:
        assert reply(ask(server)).text == "no key but no-key"
    Client(Endpoint(name="far", model="m", base_url="https://open.example/v1", key_env="")).close()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    Client(Endpoint(name="near", model="m")).close()


def test_key_with_a_line_break_behind_it_works_and_one_within_does_not(
    ask: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    with serving(Turn()) as server:
        reply(ask(server))
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n{KEY}")
    with pytest.raises(BadInput, match="OPENAI_API_KEY holds blanks or signs") as caught:
        Client(Endpoint(name="far", model="m"))
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://host/v1", "host:8000/v1", "http://", "http://host:port/v1", "http://[::1/v1"])
def test_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match="endpoint far: the base URL cannot be read"):
        Client(Endpoint(name="far", model="m", base_url=url))


@pytest.mark.parametrize("url", ["https://me:hunter2@host.example/v1", "https://host.example/v1?key=hunter2"])
def test_address_with_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(BadInput, match="wanted the key in an environment variable") as caught:
        Client(Endpoint(name="far", model="m", base_url=url))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        (None, False),
        ("https://api.openai.com/v1", False),
        ("http://localhost:11434/v1", True),
        ("http://ollama:11434/v1", True),
        ("http://127.0.0.1:1/v1", True),
        ("http://[::1]:1/v1", True),
        ("http://192.168.1.7/v1", True),
        ("http://8.8.8.8/v1", False),
        ("http://box.local/v1", True),
        ("https://localhost.example/v1", False),
    ],
)
def test_local_is_what_is_near(url: str | None, local: bool) -> None:
    assert Endpoint(name="e", model="m", base_url=url).local is local


# ---------------------------------------------------------------- small contexts, and time that is over

OVERFLOW = [
    "This model's maximum context length is 8192 tokens. However, you requested 20650 tokens "
    "(4266 in the messages, 16384 in the completion). Please reduce the length of the messages or completion.",
    "'max_tokens' or 'max_completion_tokens' is too large: 16384. This model's maximum context length is 8192 tokens "
    "and your request has 4266 input tokens",
]


@pytest.mark.parametrize("words", OVERFLOW)
def test_reply_that_does_not_fit_is_asked_for_again_as_long_as_there_is_room(ask: Asking, words: str) -> None:
    with serving(
        Turn(status=400, error={"message": words, "code": "context_length_exceeded"}), Turn("short")
    ) as server:
        assert reply(ask(server, max_tokens=16384)).text == "short"
    assert [request["max_tokens"] for request in server.requests] == [16384, 8192 - 4266]
    assert ask.pauses == []


@pytest.mark.parametrize(
    "words",
    [
        OVERFLOW[0].replace("8192", "4300"),
        "the request exceeds the available context size (4096 tokens), try increasing it",
        "prompt is too long: 210000 tokens > 200000 maximum",
    ],
)
def test_prompt_that_does_not_fit_is_said_so_in_one_line_and_not_sent_again(ask: Asking, words: str) -> None:
    with serving(Turn(status=400, error={"message": words, "code": None})) as server:
        found = failed(ask(server, max_tokens=512))
    assert found.kind == "too long"
    assert found.reason.startswith(
        "the prompt does not fit into the model's context beside a reply of up to 512 tokens: "
    )
    assert len(server.requests) == 1


def test_endpoint_that_never_finds_room_is_asked_so_often_and_no_more(ask: Asking) -> None:
    with serving(Turn(status=400, error={"message": OVERFLOW[0], "code": None})) as server:
        assert failed(ask(server, max_tokens=16384)).kind == "too long"
    assert len(server.requests) == 2


@pytest.mark.parametrize("left_s", [0.0, 0.3])
def test_answer_is_waited_for_no_longer_than_the_search_lasts(left_s: float) -> None:
    with serving(Turn(wait_s=30.0)) as server:
        endpoint = Endpoint(name="local", model="m", base_url=server.url)
        client = Client(endpoint, deadline=time.monotonic() + left_s)
        found = failed(client.complete(ASKED))
        client.close()
    assert found.kind == "out of time"
    assert found.seconds < 20
    assert found.attempts == 1
