"""What replies cost: found by name, exact, and never more than was reserved."""

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import session
from agent.config import RunConfig
from agent.engineer.records import Message
from agent.models.endpoint import Endpoint, Price, Usage
from agent.models.prices import FREE, cost, load, price_of, reserve
from sandbox.errors import BadInput

OWN = """\
as_of = "2026-11-01"
[prices]
"forge-2" = { input = 1.25, cached = 0.125, output = 10 }
"forge-2-pro" = { input = 15, cached = 15, output = 120.50 }
"gpt-6-sol" = { input = 0.01, cached = 0.01, output = 0.01 }
"""
PRICE = Price(input=Decimal("1.25"), cached=Decimal("0.125"), output=Decimal(10))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.toml").write_text(OWN)
    return tmp_path / "own.toml"


def far(model: str) -> Endpoint:
    return Endpoint(name="far", model=model, base_url="https://far.example/v1")


@pytest.mark.parametrize(
    ("model", "output"),
    [
        ("forge-2", "10"),
        ("forge-2-2026-10-01", "10"),
        ("smith/forge-2:free", "10"),
        ("forge-2-pro", "120.50"),
        ("forge-2-pro-latest", "120.50"),
        ("gpt-6-sol", "0.01"),
        ("forge-2.5", None),
        ("forge-20", None),
        ("forge", None),
    ],
)
def test_longest_fitting_beginning_counts(own: Path, model: str, output: str | None) -> None:
    price = price_of(far(model), load(own))
    assert (price and price.output) == (output and Decimal(output))


def test_run_keeps_the_prices_that_it_began_with(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    listed = tmp_path / "warpsmith" / "prices.toml"
    listed.parent.mkdir()
    own.rename(listed)
    began = session.priced(RunConfig(models=(far("forge-2"), far("unheard-of"))))
    kept = RunConfig.model_validate(began.model_dump(mode="json"))
    listed.write_text(listed.read_text().replace("input = 1.25", "input = 99"))
    assert [endpoint.price for endpoint in kept.models] == [PRICE, None]
    assert session.priced(kept).models == kept.models


def test_local_models_cost_nothing_whatever_their_name(own: Path) -> None:
    endpoint = Endpoint(name="near", model="forge-2", base_url="http://localhost:11434/v1")
    assert price_of(endpoint, load(own)) == FREE
    assert cost(Usage(), FREE) == cost(Usage(input_tokens=10, output_tokens=10), FREE)
    assert cost(Usage(), FREE).note == ""


def test_bundled_prices_are_read_and_dearer_for_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert all(price.cached < price.input < price.output for price in load().values())


def test_users_file_goes_before_the_bundled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "warpsmith").mkdir()
    (tmp_path / "warpsmith" / "prices.toml").write_text(OWN)
    assert load()["gpt-6-sol"].input == Decimal("0.01")
    assert "gpt-6.1-sol" in load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[prices", "own.toml: "),
        ("[prices]\nx = { input = -1, cached = 0, output = 0 }", "prices.x.input: "),
        ("[prices]\nx = { input = nan, cached = 0, output = 0 }", "prices.x.input: "),
        ("[prices]\nx = { input = 1, output = 0 }", "prices.x.cached: "),
        ("", "own.toml: prices: "),
    ],
)
def test_prices_that_cannot_be_used_are_named(own: Path, text: str, message: str) -> None:
    own.write_text(text)
    with pytest.raises(BadInput, match=message):
        load(own)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.toml cannot be read"):
        load(tmp_path / "none.toml")


def test_cost_is_exact_and_cached_tokens_are_cheaper() -> None:
    usage = Usage(input_tokens=100_001, cached_tokens=40_000, output_tokens=3, reasoning_tokens=2)
    assert cost(usage, PRICE).usd == Decimal("0.08003125")
    assert cost(Usage(input_tokens=10, cached_tokens=50, output_tokens=0), PRICE).usd == Decimal("0.00000125")


def test_what_the_endpoint_reports_goes_before_the_price() -> None:
    assert cost(Usage(input_tokens=1, output_tokens=1, usd=0.1), PRICE).usd == Decimal("0.1")


@pytest.mark.parametrize(
    ("usage", "price", "note"),
    [
        (Usage(input_tokens=1, output_tokens=1), None, "the model's price is not known"),
        (Usage(output_tokens=1), PRICE, "the endpoint reported no usage"),
        (Usage(input_tokens=1), PRICE, "the endpoint reported no usage"),
    ],
)
def test_unknown_cost_counts_as_nothing_and_says_so(usage: Usage, price: Price | None, note: str) -> None:
    found = cost(usage, price)
    assert (found.usd, found.note) == (0, note)


@given(text=st.text(max_size=80), cached=st.integers(0, 100), output=st.integers(0, 1000))
def test_reply_never_costs_more_than_was_reserved(text: str, cached: int, output: int) -> None:
    """No tokeniser makes more tokens than there are bytes."""
    messages = [Message(role="user", content=text)]
    usage = Usage(input_tokens=len(text.encode()) + 8, cached_tokens=cached, output_tokens=output)
    for price in (PRICE, PRICE.model_copy(update={"cached": Decimal(2)})):
        assert cost(usage, price).usd <= reserve(messages, 1000, price)
    assert reserve(messages, 1000, None) == 0
