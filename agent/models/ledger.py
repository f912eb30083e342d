"""Keeps spending under a cap: what a call may cost is set aside before it, what it did cost is booked after it.

Amounts are exact decimals in USD. Not covered: what calls cost (prices), and what a run has spent (archive).
"""

from __future__ import annotations

import itertools
import threading
from decimal import Decimal

from sandbox.contract import Record


class Reserved(Record):
    """An amount set aside for one call."""

    number: int
    usd: Decimal


class OverCap(Record):
    """A call that was not allowed: with the rest, its worst case would go over the cap."""

    usd: Decimal
    spent_usd: Decimal
    reserved_usd: Decimal
    cap_usd: Decimal

    @property
    def reason(self) -> str:
        """In words."""
        return (
            f"a call that may cost {self.usd} USD does not fit: {self.spent_usd} USD of {self.cap_usd} are spent, "
            f"{self.reserved_usd} set aside for calls under way"
        )


class Ledger:
    """What may be spent, by any number of threads; never over the cap while no call costs more than its worst case."""

    def __init__(self, cap_usd: Decimal, spent_usd: Decimal = Decimal(0)) -> None:
        self._cap = cap_usd
        self._spent = spent_usd
        self._held: dict[int, Decimal] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Condition()

    @property
    def spent(self) -> Decimal:
        """Booked so far."""
        with self._lock:
            return self._spent

    def reserve(self, usd: Decimal) -> Reserved | OverCap:
        """Set the worst case of a call aside, or say why there is no room for it."""
        if not usd >= 0:
            raise ValueError(f"an amount of {usd} USD; wanted 0 or more")
        with self._lock:
            return self._reserved(usd)

    def reserve_in_turn(self, usd: Decimal) -> Reserved | OverCap:
        """As `reserve`, but calls under way are waited for, as most cost less than was set aside for them.

        Whoever waits must hold nothing, and whoever holds something must settle it, be it in a `finally`.
        """
        with self._lock:
            while isinstance(found := self._reserved(usd), OverCap) and self._held:
                self._lock.wait()
            return found

    def _reserved(self, usd: Decimal) -> Reserved | OverCap:
        held = sum(self._held.values(), Decimal(0))
        if self._spent + held + usd > self._cap:
            return OverCap(usd=usd, spent_usd=self._spent, reserved_usd=held, cap_usd=self._cap)
        reserved = Reserved(number=next(self._numbers), usd=usd)
        self._held[reserved.number] = usd
        return reserved

    def settle(self, reserved: Reserved, usd: Decimal) -> None:
        """Book what the call did cost, 0 where it failed. ValueError where it was booked before."""
        if not usd >= 0:
            raise ValueError(f"an amount of {usd} USD; wanted 0 or more")
        with self._lock:
            if self._held.pop(reserved.number, None) is None:
                raise ValueError(f"reservation {reserved.number} is settled already, or is another ledger's")
            self._spent += usd
            self._lock.notify_all()
