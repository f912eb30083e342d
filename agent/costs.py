"""What a run paid to language models, by model and operator and by candidate. Sums of amounts are exact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal

from archive import Exchange
from archive.records import exact
from sandbox.contract import Record

NOTHING = "none"
"""Stands for the candidate where none came of an exchange."""


class Share(Record):
    """The sum over some exchanges; counts that an endpoint did not report are 0."""

    of: tuple[str, ...]
    """Model and operator, or a candidate."""
    exchanges: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    seconds: float
    usd: float
    unpriced: int
    """Exchanges whose price is not known."""


class Costs(Record):
    run: str
    by_operator: tuple[Share, ...]
    by_candidate: tuple[Share, ...]
    """In the order in which they came about."""
    total: Share


def summary(run_id: str, exchanges: Sequence[Exchange]) -> Costs:
    """What a run's exchanges took."""
    return Costs(
        run=run_id,
        by_operator=_shares(exchanges, lambda exchange: (exchange.model, exchange.operator)),
        by_candidate=_shares(exchanges, lambda exchange: (exchange.candidate or NOTHING,)),
        total=_share((), exchanges),
    )


def _shares(exchanges: Iterable[Exchange], key: Callable[[Exchange], tuple[str, ...]]) -> tuple[Share, ...]:
    groups: dict[tuple[str, ...], list[Exchange]] = {}
    for exchange in exchanges:
        groups.setdefault(key(exchange), []).append(exchange)
    return tuple(_share(of, group) for of, group in groups.items())


def _share(of: tuple[str, ...], exchanges: Sequence[Exchange]) -> Share:
    return Share(
        of=of,
        exchanges=len(exchanges),
        failed=sum(exchange.failure is not None for exchange in exchanges),
        input_tokens=sum(exchange.input_tokens or 0 for exchange in exchanges),
        cached_tokens=sum(exchange.cached_tokens or 0 for exchange in exchanges),
        output_tokens=sum(exchange.output_tokens or 0 for exchange in exchanges),
        reasoning_tokens=sum(exchange.reasoning_tokens or 0 for exchange in exchanges),
        seconds=sum(exchange.seconds for exchange in exchanges),
        usd=float(sum((exact(exchange.usd or 0.0) for exchange in exchanges), Decimal(0))),
        unpriced=sum(exchange.usd is None for exchange in exchanges),
    )
