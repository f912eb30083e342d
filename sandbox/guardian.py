"""A process that outlives the host program by a moment, to kill what the host program had frozen.

A frozen worker cannot notice by itself that nobody is left to thaw it. Not covered: containers whose processes we may
not signal, which the reaper of the next start removes (docker.py).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import subprocess
import sys
from functools import cache


class Guardian:
    """The guardian of this host program; it ends with it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", __file__], stdin=subprocess.PIPE, bufsize=0, start_new_session=True
        )

    def watch(self, pid: int) -> None:
        """Kill process `pid`, unless it is gone by then, when the host program is."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{pid}\n".encode())

    def close(self) -> None:
        """Also kills what it still watches."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


@cache
def guardian() -> Guardian:
    """The one of this host program, started when first needed."""
    started = Guardian()
    atexit.register(started.close)
    return started


def _living(watched: list[int]) -> list[int]:
    """The descriptors of processes that still run; those of others are closed."""
    ended = set(select.select(watched, [], [], 0)[0])
    for descriptor in ended:
        os.close(descriptor)
    return [descriptor for descriptor in watched if descriptor not in ended]


def main() -> None:
    watched: list[int] = []
    for line in sys.stdin:
        watched = _living(watched)
        with contextlib.suppress(ProcessLookupError):
            watched.append(os.pidfd_open(int(line)))
    for descriptor in watched:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)


if __name__ == "__main__":
    main()
