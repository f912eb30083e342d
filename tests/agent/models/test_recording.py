"""Exchanges are on record before anybody sees them, and answer again as they did."""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path

import pytest

from agent.costs import summary
from agent.engineer.records import Message
from agent.models.client import Client
from agent.models.endpoint import Endpoint, Failed, Price, Reply, Usage
from agent.models.prices import FREE
from agent.models.recording import Recorded, Replay
from archive import Archive, Run
from sandbox.contract import Candidate
from sandbox.errors import BadInput
from tests.agent.models.openai_server import Turn, serving

PRICE = Price(input=Decimal("1.25"), cached=Decimal("0.125"), output=Decimal(10))
USAGE = Usage(input_tokens=100, cached_tokens=0, output_tokens=1000)


class Scripted:
    """A model that says what it is told to."""

    name = "scripted"

    def __init__(self, *outcomes: Reply | Failed) -> None:
        self.outcomes = list(outcomes)

    def complete(self, messages: Sequence[Message]) -> Reply | Failed:
        return self.outcomes.pop(0)


def reply(text: str, usage: Usage = USAGE) -> Reply:
    return Reply(text=text, finish="stop", usage=usage, seconds=1.5, model="m-2026")


def asked(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


FAILURE = Failed(kind="server error", reason="status 500", seconds=9.0, attempts=4)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive.open(tmp_path / "archive.db") as opened:
        for name in ("run-1", "run-2"):
            run = Run(id=name, task="toy", task_version="v1", target="cpu", device="box", rng_seed=0)
            opened.start_run(run)
        yield opened


@pytest.fixture
def candidate(archive: Archive) -> str:
    return archive.add(Candidate(task="toy", target="cpu", source="// 1", operator="propose", proposer="engineer"))


def test_exchange_is_on_record_with_its_use_and_its_price(archive: Archive, candidate: str) -> None:
    recorded = Recorded(Scripted(reply("one"), reply("two"), FAILURE), archive, "run-1", PRICE)
    rewrite, repair = recorded.about("rewrite"), recorded.about("repair")
    assert rewrite.complete(asked("a")) == reply("one")
    assert rewrite.complete(asked("b")) == reply("two")
    rewrite.made(candidate)
    assert repair.complete(asked("c")) == FAILURE
    first, second, third = archive.exchanges("run-1")
    assert (first.model, first.operator, first.candidate, first.usd) == ("scripted", "rewrite", candidate, 0.010125)
    assert (first.input_tokens, first.output_tokens, first.seconds) == (100, 1000, 1.5)
    assert '"content":"a"' in first.request
    assert (second.candidate, third.candidate) == (candidate, None)
    assert (third.reply, third.usd, third.operator) == (None, 0.0, "repair")
    assert archive.run("run-1").usd_spent == 0.02025
    assert archive.run("run-2").usd_spent == 0


def test_charges_add_up_without_rounding(archive: Archive) -> None:
    usage = Usage(usd=0.1)
    recorded = Recorded(Scripted(*[reply(str(n), usage) for n in range(10)]), archive, "run-1")
    for number in range(10):
        recorded.complete(asked(str(number)))
        assert archive.run("run-1").usd_spent == round((number + 1) * 0.1, 1)


def test_unknown_price_is_on_record_as_unknown(archive: Archive) -> None:
    Recorded(Scripted(reply("one")), archive, "run-1").complete(asked("a"))
    assert [exchange.usd for exchange in archive.exchanges("run-1")] == [None]
    assert summary("run-1", archive.exchanges("run-1")).total.unpriced == 1


def test_empty_reply_that_took_tokens_is_charged(archive: Archive) -> None:
    empty = FAILURE.model_copy(update={"kind": "empty", "usage": USAGE})
    Recorded(Scripted(empty), archive, "run-1", PRICE).complete(asked("a"))
    assert archive.run("run-1").usd_spent == 0.010125


def test_first_candidate_named_stays_and_must_be_known(archive: Archive, candidate: str) -> None:
    other = archive.add(Candidate(task="toy", target="cpu", source="// 2", operator="propose", proposer="engineer"))
    recorded = Recorded(Scripted(reply("one")), archive, "run-1", FREE)
    recorded.complete(asked("a"))
    with pytest.raises(BadInput, match="has no candidate 'feed'"):
        recorded.made("feed")
    recorded.made(candidate)
    recorded.made(other)
    assert [exchange.candidate for exchange in archive.exchanges("run-1")] == [candidate]


def test_replay_answers_as_it_was_answered_and_in_order(archive: Archive) -> None:
    recorded = Recorded(Scripted(reply("one"), FAILURE, reply("two"), reply("other")), archive, "run-1")
    for text in ("a", "a", "a", "b"):
        recorded.complete(asked(text))
    replay = Replay(archive, "run-1", "scripted")
    assert replay.complete(asked("b")) == reply("other")
    assert [replay.complete(asked("a")) for _ in range(3)] == [reply("one"), FAILURE, reply("two")]


@pytest.mark.parametrize(
    ("run", "name", "text"), [("run-1", "scripted", "b"), ("run-1", "x", "a"), ("run-2", "scripted", "a")]
)
def test_replay_of_what_was_never_asked_fails_and_says_so(archive: Archive, run: str, name: str, text: str) -> None:
    Recorded(Scripted(reply("one")), archive, "run-1").complete(asked("a"))
    found = Replay(archive, run, name).complete(asked(text))
    assert isinstance(found, Failed)
    assert found.reason.startswith(f"run {run} has no further exchange of {name} for request ")


def test_replay_of_an_unknown_run_is_bad_input(archive: Archive) -> None:
    with pytest.raises(BadInput, match="has no run 'nothing'"):
        Replay(archive, "nothing", "scripted")


def test_key_is_in_no_file_of_the_archive(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-test-0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    turns = [Turn(text="the key is KEY", echo_key=True), Turn(status=401, error={"message": "KEY"}, echo_key=True)]
    with serving(*turns) as server:
        client = Client(Endpoint(name="local", model="m", base_url=server.url))
        recorded = Recorded(client, archive, "run-1", FREE)
        outcomes = [recorded.complete(asked("hello")) for _ in turns]
        client.close()
    assert [type(outcome) for outcome in outcomes] == [Reply, Failed]
    assert [Replay(archive, "run-1", "local").complete(asked("hello"))] == outcomes[:1]
    archive.export(tmp_path / "all.jsonl")
    for path in tmp_path.iterdir():
        assert key.encode() not in path.read_bytes()
