"""The ledger: never over the cap, and sums without rounding."""

import threading
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.models.ledger import Ledger, OverCap, Reserved

AMOUNTS = st.decimals(0, 3, places=9)
SHARES = st.decimals(0, 1, places=3)


@given(
    cap=st.decimals(0, 10, places=2),
    spent=AMOUNTS,
    calls=st.lists(st.tuples(AMOUNTS, SHARES, st.booleans()), max_size=60),
)
def test_spending_stays_under_the_cap_and_is_the_exact_sum(
    cap: Decimal, spent: Decimal, calls: list[tuple[Decimal, Decimal, bool]]
) -> None:
    """Each call costs some share of its worst case; some are settled at once, the others at the end."""
    ledger, booked, waiting = Ledger(cap, spent), spent, []
    for worst, share, at_once in calls:
        held = ledger.reserve(worst)
        if isinstance(held, Reserved):
            waiting.append((held, worst * share))
        else:
            assert booked + sum(reserved.usd for reserved, _ in waiting) + worst > cap
        while at_once and waiting:
            reserved, usd = waiting.pop()
            ledger.settle(reserved, usd)
            booked += usd
        assert ledger.spent == booked <= max(cap, spent)
    for reserved, usd in waiting:
        ledger.settle(reserved, usd)
        booked += usd
    assert ledger.spent == booked <= max(cap, spent)


def test_threads_together_stay_under_the_cap() -> None:
    ledger, allowed = Ledger(Decimal("1.00")), []

    def spend() -> None:
        for _ in range(50):
            held = ledger.reserve(Decimal("0.01"))
            if isinstance(held, Reserved):
                allowed.append(held)
                ledger.settle(held, Decimal("0.01"))

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(allowed), ledger.spent) == (100, Decimal("1.00"))


def test_refusal_says_what_there_is_and_what_is_missing() -> None:
    ledger = Ledger(Decimal("5.00"), Decimal("3.00"))
    held = ledger.reserve(Decimal("1.50"))
    assert isinstance(held, Reserved)
    refused = ledger.reserve(Decimal("0.51"))
    assert isinstance(refused, OverCap)
    assert refused.reason == (
        "a call that may cost 0.51 USD does not fit: 3.00 USD of 5.00 are spent, 1.50 set aside for calls under way"
    )
    ledger.settle(held, Decimal(0))
    assert isinstance(ledger.reserve(Decimal("0.51")), Reserved)


def test_cap_of_nothing_still_allows_what_is_free() -> None:
    ledger = Ledger(Decimal(0))
    assert isinstance(ledger.reserve(Decimal(0)), Reserved)
    assert isinstance(ledger.reserve(Decimal("0.000001")), OverCap)


def test_more_than_was_reserved_is_booked_and_stops_what_comes_next() -> None:
    ledger = Ledger(Decimal(1))
    held = ledger.reserve(Decimal("0.5"))
    assert isinstance(held, Reserved)
    ledger.settle(held, Decimal(2))
    assert ledger.spent == 2
    assert isinstance(ledger.reserve(Decimal(0)), OverCap)


def test_settling_twice_or_below_nothing_is_a_mistake() -> None:
    ledger = Ledger(Decimal(1))
    held = ledger.reserve(Decimal("0.5"))
    assert isinstance(held, Reserved)
    with pytest.raises(ValueError, match="wanted 0 or more"):
        ledger.settle(held, Decimal(-1))
    ledger.settle(held, Decimal("0.5"))
    with pytest.raises(ValueError, match="settled already"):
        ledger.settle(held, Decimal("0.5"))
    with pytest.raises(ValueError, match="wanted 0 or more"):
        ledger.reserve(Decimal("-0.01"))


def test_call_that_does_not_fit_yet_waits_for_those_under_way() -> None:
    ledger, found = Ledger(Decimal("1.00")), []
    first = ledger.reserve(Decimal("0.90"))
    assert isinstance(first, Reserved)
    waiting = threading.Thread(target=lambda: found.append(ledger.reserve_in_turn(Decimal("0.50"))))
    waiting.start()
    ledger.settle(first, Decimal("0.10"))
    waiting.join(30)
    assert isinstance(found[0], Reserved)
    assert isinstance(ledger.reserve(Decimal("0.50")), OverCap)


def test_call_that_will_never_fit_does_not_wait() -> None:
    ledger = Ledger(Decimal("1.00"), spent_usd=Decimal("0.60"))
    assert isinstance(ledger.reserve_in_turn(Decimal("0.50")), OverCap)
