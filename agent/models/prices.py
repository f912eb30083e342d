"""What tokens cost. Amounts are exact decimals in USD, prices in USD per million tokens.

What an endpoint itself reports goes before any price. Not covered: surcharges for long contexts, for writing into a
cache and for service tiers.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from platformdirs import user_config_path
from pydantic import ValidationError

from agent.engineer.records import Message
from agent.models.endpoint import Endpoint, Price, Usage
from sandbox.contract import Record
from sandbox.errors import BadInput

BUNDLED = Path(__file__).with_name("prices.toml")
PER_TOKEN = Decimal(1).scaleb(-6)
MESSAGE_TOKENS = 16
"""Most that an endpoint wraps around one message."""


FREE = Price(input=Decimal(0), cached=Decimal(0), output=Decimal(0))

Prices = Mapping[str, Price]
"""By the beginning of a model's name."""


class Cost(Record):
    """What one reply cost. With a note where that is not known: then it counts as nothing."""

    usd: Decimal
    note: str = ""


class _File(Record):
    as_of: str = ""
    prices: dict[str, Price]


def user_file() -> Path:
    """Where a user's own prices are looked for."""
    return user_config_path("warpsmith", appauthor=False) / "prices.toml"


def load(own: Path | None = None) -> Prices:
    """The bundled prices under those of a file: `own`, which must exist, else user_file() where there is one."""
    path = own or user_file()
    if own is None and not path.is_file():
        return _read(BUNDLED)
    return {**_read(BUNDLED), **_read(path)}


def _read(path: Path) -> dict[str, Price]:
    try:
        return _File.model_validate(tomllib.loads(path.read_text(), parse_float=Decimal)).prices
    except OSError as exc:
        raise BadInput(f"prices {path} cannot be read: {exc.strerror}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise BadInput(f"prices {path}: {exc}") from exc
    except ValidationError as exc:
        fault = exc.errors()[0]
        raise BadInput(f"prices {path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from exc


def price_of(endpoint: Endpoint, prices: Prices) -> Price | None:
    """The price of an endpoint's model: its own, nothing where the endpoint is local, None where it is not known.

    The longest fitting beginning counts, and it must end where a part of the name does: `gpt-6` is not `gpt-6.1`.
    What stands before a slash, as routers name the maker, does not count.
    """
    if endpoint.price is not None:
        return endpoint.price
    if endpoint.local:
        return FREE
    name = endpoint.model.rsplit("/", 1)[-1]
    fits = [
        prefix for prefix in prices if name == prefix or name.startswith((f"{prefix}-", f"{prefix}:", f"{prefix}@"))
    ]
    return prices[max(fits, key=len)] if fits else None


def cost(usage: Usage, price: Price | None) -> Cost:
    """What a reply cost: as reported, else by the price."""
    if usage.usd is not None:
        return Cost(usd=Decimal(str(usage.usd)))
    if price is None:
        return Cost(usd=Decimal(0), note="the model's price is not known")
    if price == FREE:
        return Cost(usd=Decimal(0))
    if usage.input_tokens is None or usage.output_tokens is None:
        return Cost(usd=Decimal(0), note="the endpoint reported no usage")
    cached = min(usage.cached_tokens or 0, usage.input_tokens)
    fresh = usage.input_tokens - cached
    return Cost(usd=(fresh * price.input + cached * price.cached + usage.output_tokens * price.output) * PER_TOKEN)


def reserve(messages: Sequence[Message], max_tokens: int, price: Price | None) -> Decimal:
    """The most a request can cost: no token is shorter than a byte, and every token of the reply is used."""
    if price is None:
        return Decimal(0)
    most = sum(len(message.content.encode()) + MESSAGE_TOKENS for message in messages)
    return (most * max(price.input, price.cached) + max_tokens * price.output) * PER_TOKEN
