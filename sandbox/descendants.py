"""A process and everything below it, seen from /proc: counted, stopped, continued, killed.

Processes that leave their parent stay below the root as long as it is the init of a PID namespace or a subreaper.
Not covered: processes of another PID namespace than ours, whose numbers mean nothing here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

import psutil

STOP_TIMEOUT_S = 2.0
KILL_TIMEOUT_S = 30.0
_ENDED = (b"", b"Z", b"X")
_STOPPED = (b"T", b"t", *_ENDED)
_PROCESS_CLOCK = 2
"""CPUCLOCK_SCHED in the kernel's posix-timers.h: nanoseconds that all threads of a process were running."""


_CHILDREN_LISTED = os.path.exists("/proc/thread-self/children")  # noqa: PTH110
"""Whether the kernel lists the children of a thread; nearly all are built so."""


class Unstoppable(Exception):
    """A process did not stop in time, or new ones kept appearing."""


class Family:
    """The process `root` and its descendants."""

    def __init__(self, root: int) -> None:
        self.root = root
        self._standing: list[int] = []

    def members(self) -> list[int]:
        """Process ids of all that live, the root first; empty once the root is gone."""
        found, position = [self.root], 0
        while position < len(found):
            found += _children(found[position])
            position += 1
        return [pid for pid in found if _alive(pid)]

    def cpu_seconds(self) -> float:
        """CPU time, user and system, of all that live. Exact: it stands still while they are stopped."""
        return sum(_cpu_ns(pid) for pid in self.members()) / 1e9

    def threads(self) -> int:
        """Threads of all that live, main threads included."""
        return sum(len(_threads(pid)) for pid in self.members())

    def stop(self) -> None:
        """Stop every thread; returns once no new process appears and all stand. Unstoppable otherwise.

        A process may have arranged to be sent SIGCONT, by a timer for one: compare cpu_seconds at both ends.
        """
        deadline = time.monotonic() + STOP_TIMEOUT_S
        stopped: set[int] = set()
        seen_standing = 0
        while True:
            members = self.members()
            for pid in members:
                if pid not in stopped:
                    _signal(pid, signal.SIGSTOP)
            if stopped.issuperset(members) and all(_stands(pid) for pid in members):
                # The kernel's list of children can skip one while another ends; once all stand, it skips none.
                seen_standing += 1
                if seen_standing == 2:
                    self._standing = members
                    return
            else:
                seen_standing = 0
            stopped.update(members)
            if time.monotonic() > deadline:
                raise Unstoppable(f"{len(members)} processes did not stop within {STOP_TIMEOUT_S:.0f} s")

    def go_on(self) -> None:
        """Let all that were stopped continue."""
        for pid in self._standing:
            _signal(pid, signal.SIGCONT)
        self._standing = []

    def kill(self) -> None:
        """Kill all, until none is left that could have started another; Unstoppable where one will not die."""
        deadline = time.monotonic() + KILL_TIMEOUT_S
        victims: set[int] = set()
        while True:
            members = self.members()
            victims.update(members)
            for pid in members:
                _signal(pid, signal.SIGKILL)
            if not any(_alive(pid) for pid in victims):
                return
            if time.monotonic() > deadline:
                # A GPU's driver may take seconds to clean up after a process.
                raise Unstoppable(f"processes {sorted(filter(_alive, victims))} did not die of SIGKILL")
            time.sleep(0.0005)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")  # noqa: PTH208  Twice as fast.
    except (FileNotFoundError, ProcessLookupError):
        return []


def _children(pid: int) -> list[int]:
    if not _CHILDREN_LISTED:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(pid).children()]
        return []
    found: list[int] = []
    for thread in _threads(pid):
        found += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
    return found


def _state(stat: bytes) -> bytes:
    """The one-letter state; the name before it may contain anything, parentheses too."""
    return stat.rpartition(b") ")[2][:1]


def _alive(pid: int) -> bool:
    """Whether a thread is left: the main one can end before the others."""
    state = _state(_read(f"/proc/{pid}/stat"))
    return state not in _ENDED or (state == b"Z" and any(state not in _ENDED for state in _states(pid)))


def _stands(pid: int) -> bool:
    """Whether no thread of a process can run."""
    return all(state in _STOPPED for state in _states(pid))


def _states(pid: int) -> list[bytes]:
    return [_state(_read(f"/proc/{pid}/task/{thread}/stat")) for thread in _threads(pid)]


def _cpu_ns(pid: int) -> int:
    try:
        return time.clock_gettime_ns((~pid << 3) | _PROCESS_CLOCK)
    except OSError:  # It ended meanwhile.
        return 0


def _read(path: str) -> bytes:
    """A file of /proc; empty where the process is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, ProcessLookupError):
        return b""
    parts = []
    try:
        while part := os.read(descriptor, 65536):
            parts.append(part)
    except ProcessLookupError:
        return b""
    finally:
        os.close(descriptor)
    return b"".join(parts)
