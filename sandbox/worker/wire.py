"""Framed messages over a Unix socket, with file descriptors beside them.

A frame is a 4-byte big-endian length and that many bytes of JSON; descriptors travel as ancillary data of the
length. Bulk data never travels in frames: it lies in memory files whose descriptors are passed.
Not covered: what the messages mean (worker/__main__.py, judge.py).
"""

from __future__ import annotations

import array
import fcntl
import json
import mmap
import os
import signal
import socket
import struct
import threading
import time
from typing import Any

MAX_FRAME = 16 << 20
MAX_DESCRIPTORS = 16


class ConnectionLost(Exception):
    """The other side closed the connection, or sent what is no frame."""


class Garbled(ConnectionLost):
    """The other side sent what is no frame."""


class DeadlinePassed(Exception):
    """Nothing, or not all of a frame, came in time."""


def send(sock: socket.socket, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """Send one frame; ConnectionLost if nobody listens any more."""
    body = json.dumps(message).encode()
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    try:
        sock.sendmsg([struct.pack(">I", len(body))], ancillary)
        sock.sendall(body)
    except OSError as exc:
        raise ConnectionLost(str(exc)) from exc


def receive(sock: socket.socket, timeout_s: float | None = None) -> tuple[dict[str, Any], list[int]]:
    """Receive one frame and its descriptors; ConnectionLost or DeadlinePassed otherwise."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    _arm(sock, deadline)
    try:
        head, ancillary, _, _ = sock.recvmsg(4, socket.CMSG_SPACE(4 * MAX_DESCRIPTORS))
    except TimeoutError as exc:
        raise DeadlinePassed from exc
    except OSError as exc:
        raise ConnectionLost(str(exc)) from exc
    descriptors = _descriptors(ancillary)
    if len(head) < 4:
        head += _exactly(sock, 4 - len(head), deadline)
    (length,) = struct.unpack(">I", head)
    if length > MAX_FRAME:
        raise Garbled(f"a frame of {length} bytes; at most {MAX_FRAME} are allowed")
    try:
        message = json.loads(_exactly(sock, length, deadline))
    except (ValueError, RecursionError) as exc:
        raise Garbled("a frame that is not JSON") from exc
    if not isinstance(message, dict):
        raise Garbled("a frame that is no JSON object")
    return message, descriptors


def _arm(sock: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        sock.settimeout(None)
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlinePassed
    sock.settimeout(left)


def _exactly(sock: socket.socket, count: int, deadline: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        _arm(sock, deadline)
        try:
            part = sock.recv(count - len(parts))
        except TimeoutError as exc:
            raise DeadlinePassed from exc
        except OSError as exc:
            raise ConnectionLost(str(exc)) from exc
        if not part:
            raise ConnectionLost("the connection was closed")
        parts += part
    return bytes(parts)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(payload[: len(payload) - len(payload) % found.itemsize])
    return list(found)


def memory_file(name: str, size: int) -> int:
    """A new anonymous memory file of `size` bytes that can be sealed."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    return descriptor


def mapped(descriptor: int, writable: bool) -> mmap.mmap:
    """The whole of a memory file, mapped shared, every page at hand so that no timed call has to find it."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    return mmap.mmap(descriptor, os.fstat(descriptor).st_size, flags=flags, prot=protection)


def seal(descriptor: int) -> None:
    """Fix the size of a memory file for good: one that is cut short under a mapping kills its reader."""
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)


def die_with(lifeline: int) -> None:
    """Kill this process group as soon as the other end of the pipe `lifeline` closes, as it does when its holder dies.

    PR_SET_PDEATHSIG would not do: it fires when the *thread* that started this process ends.
    """

    def watch() -> None:
        os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
