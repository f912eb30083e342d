"""An endpoint is asked for JSON as strictly as it can, and which way that is gets found out once."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from agent.engineer.records import Message, Plan
from agent.engineer.reply import plan_schema, read_plan
from agent.models.client import ATTEMPTS, Client, Shape, Shaped
from agent.models.endpoint import Endpoint, Failed, Reply
from tests.agent.models.openai_server import Server, Turn, serving

ASKED = (Message(role="user", content="A plan, as JSON."),)
PLAN = """{"bottleneck": "memory", "change": "widen loads", "why": "fewer", "expected_speedup": 1.2,
"memory": "direct", "tensor_cores": false}"""
SHAPE = Shape(name="plan", schema_=plan_schema())


@contextlib.contextmanager
def asking(server: Server, **fields: Any) -> Iterator[Client]:
    given = {"name": "near", "model": "m", "base_url": server.url, "key_env": "", "timeout_s": 20.0} | fields
    with contextlib.closing(Client(Endpoint(**given), sleep=lambda seconds: None)) as client:
        yield client


@contextlib.contextmanager
def shaped(server: Server, **fields: Any) -> Iterator[Shaped]:
    with asking(server, **fields) as client:
        yield Shaped(client, SHAPE)


def forms(server: Server) -> list[str]:
    found = [asked.get("response_format") or asked.get("text", {}).get("format") or {} for asked in server.requests]
    return [form.get("type", "text") for form in found]


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize(
    ("refused", "first", "later"),
    [
        ((), ["json_schema"], "json_schema"),
        (("json_schema",), ["json_schema", "json_object"], "json_object"),
        (("json_schema", "json_object"), ["json_schema", "json_object", "text"], "text"),
    ],
)
def test_strictest_form_that_the_endpoint_knows_is_found_once(
    api: str, refused: tuple[str, ...], first: list[str], later: str
) -> None:
    with serving(Turn(PLAN, refuses=refused)) as server, shaped(server, api=api) as model:
        replies = [model.complete(ASKED) for _ in range(3)]
    assert forms(server) == [*first, later, later]
    assert all(isinstance(reply, Reply) and isinstance(read_plan(reply.text), Plan) for reply in replies)


def test_form_refused_as_a_fault_of_the_server_is_refused_all_the_same() -> None:
    turn = Turn(PLAN, refuses=("json_schema",), refused_with=500)
    with serving(turn) as server, shaped(server) as model:
        assert isinstance(model.complete(ASKED), Reply)
        model.complete(ASKED)
    assert forms(server) == ["json_schema", "json_object", "json_object"]


def test_only_shaped_requests_have_a_form() -> None:
    with serving(Turn(PLAN)) as server, asking(server) as client:
        client.complete(ASKED)
    assert forms(server) == ["text"]


def test_request_that_is_bad_in_any_form_says_so_and_closes_no_form() -> None:
    with serving(Turn(status=400), Turn(status=400), Turn(status=400), Turn(PLAN)) as server, shaped(server) as model:
        outcome = model.complete(ASKED)
        assert isinstance(outcome, Failed)
        assert (outcome.kind, outcome.attempts) == ("bad request", 1)
        model.complete(ASKED)
    assert forms(server) == ["json_schema", "json_object", "text", "json_schema"]


def test_server_that_fails_is_tried_again_in_the_same_form() -> None:
    with serving(Turn(status=500)) as server, shaped(server) as model:
        model.complete(ASKED)
    assert forms(server) == ["json_schema"] * ATTEMPTS


def test_schema_is_one_that_strict_modes_take() -> None:
    schema = plan_schema()
    assert schema["required"] == list(schema["properties"])
    assert schema["additionalProperties"] is False
    assert set().union(*schema["properties"].values()) == {"type", "enum"}
