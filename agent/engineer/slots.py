"""Attempts under way: each in a thread of its own, and handed back in the order in which they end.

Threads are daemons, so that a process that is told to stop at once does not wait for a model. Not covered: what an
attempt does (attempt), and whose turn it is (engineer).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from agent.engineer.attempt import Attempt, Vain


class Slots:
    """Used by one thread; only the work runs in others."""

    def __init__(self) -> None:
        self.open: dict[int, Attempt] = {}
        """By number; an attempt is open until it was handed back."""
        self._threads: dict[int, threading.Thread] = {}
        self._ended: queue.SimpleQueue[tuple[int, Vain | Exception | None]] = queue.SimpleQueue()

    def start(self, attempt: Attempt, work: Callable[[Attempt], Vain | None]) -> None:
        """Begin the work on an attempt."""

        def run() -> None:
            self._ended.put((attempt.number, _outcome(lambda: work(attempt))))

        thread = threading.Thread(target=run, name=f"attempt {attempt.number}", daemon=True)
        self.open[attempt.number], self._threads[attempt.number] = attempt, thread
        thread.start()

    def ended(self, most_seconds: float) -> Vain | None:
        """What came of the first open attempt that ends; waits for it, and raises what it raised, or queue.Empty."""
        number, outcome = self._ended.get(timeout=min(max(most_seconds, 0.0), threading.TIMEOUT_MAX))
        del self.open[number], self._threads[number]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @property
    def ready(self) -> bool:
        """Whether `ended` would not wait."""
        return not self._ended.empty()

    def join(self) -> None:
        """Wait until all work is done, whatever comes of it."""
        for thread in self._threads.values():
            thread.join()


def _outcome(action: Callable[[], Vain | None]) -> Vain | Exception | None:
    try:
        return action()
    # Raised again in the thread that asks what came of it.
    except Exception as exc:  # noqa: BLE001
        return exc
