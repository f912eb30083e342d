"""A worker under somebody else's tool: started behind its command, asked for calls, ended so that the tool can report.

Not covered: which tools there are and what their reports mean (sanitizer.py, profiler.py). Nothing measured here
decides about time: a tool slows a kernel down by anything from a few per cent to a thousand times.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.contract import Device
from sandbox.errors import WorkerLost
from sandbox.launch import Launcher, Order
from sandbox.peer import Peer, PeerDied, PeerTimedOut

REPORT = "report.txt"
REPORT_PATH = f"/out/{REPORT}"
"""As the tool is to write it, whatever the launcher: the worker finds the shared folder at /out."""
_LOAD_TIMEOUT_S = 120.0
_REPORT_TIMEOUT_S = 30.0
_BASE_BYTES = 8 << 30
"""What a tool may need beside the buffers."""
_CUDA_BIN = Path("/usr/local/cuda/bin")


@dataclass(frozen=True)
class Call:
    """All that is needed to make one call of a candidate: what the worker is sent, and the arena with its inputs."""

    workload: str
    artifact: Path
    """A cubin or a shared library."""
    load: Mapping[str, Any]
    """Fields of the `load` request: key, entry."""
    bind: Mapping[str, Any]
    """Fields of the `bind` request: key, sets with one set, tensors, scalars, plan, workspace."""
    outputs: int
    """How many of the first buffers are outputs: written, never read."""
    arena: int
    """Descriptor of the memory that holds the set."""
    arena_bytes: int


@dataclass(frozen=True)
class Outcome:
    """What came of a worker under a tool."""

    report: str
    """All that the tool wrote; empty where it wrote nothing."""
    trouble: str
    """Why not all calls were made; empty where they were."""
    seconds: float


def find(tool: str, launcher: Launcher) -> str | None:
    """Where `tool` lies for a worker of this launcher; None where it is known to be missing."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [shutil.which(tool), *([f"{home}/bin/{tool}"] if home else []), str(_CUDA_BIN / tool)]
    found = next((place for place in places if place and Path(place).exists()), None)
    # A container has a toolkit of its own, whatever this machine lacks.
    return found or (str(_CUDA_BIN / tool) if launcher.name == "docker" else None)


def run_under(
    launcher: Launcher,
    device: Device,
    calls: Sequence[Call],
    command: tuple[str, ...],
    complete: Callable[[str], bool],
    call_timeout_s: float,
    address_space_bytes: int = 0,
) -> Outcome:
    """Make every call once, in buffers of their own, under `command`, which writes its report to REPORT_PATH.

    `complete` says of a report whether its end is there. A worker that does not start is `trouble` too: whether the
    tool works on this machine is not known before.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="warpsmith-report-") as folder:
        shared = Path(folder)
        shared.chmod(0o777)  # a container's worker is another user
        order = Order(
            device=device,
            memory_bytes=max(address_space_bytes, _BASE_BYTES + 4 * max(call.arena_bytes for call in calls)),
            tool=command,
            shared=shared,
        )
        trouble = _calls_in_worker(launcher, order, calls, call_timeout_s, lambda: complete(_text(shared)))
        return Outcome(_text(shared), trouble, time.perf_counter() - start)


def _calls_in_worker(
    launcher: Launcher, order: Order, calls: Sequence[Call], timeout_s: float, complete: Callable[[], bool]
) -> str:
    try:
        with launcher.worker(order) as worker:
            trouble = make_calls(worker.peer, calls, timeout_s, private=True)
            _let_finish(worker.peer, complete)
            return trouble
    except (WorkerLost, FileNotFoundError) as exc:
        return f"the worker did not start under {order.tool[0]}: {exc}"


def make_calls(peer: Peer, calls: Sequence[Call], timeout_s: float, private: bool) -> str:
    """Make each call once; what went wrong, or nothing."""
    try:
        for call in calls:
            if failure := prepare(peer, call, private) or once(peer, call, timeout_s):
                return f"{call.workload}: {failure}"
    except (PeerDied, PeerTimedOut) as exc:
        return str(exc)
    return ""


def prepare(peer: Peer, call: Call, private: bool) -> str:
    """Attach, load and bind; what the worker said against it. PeerDied or PeerTimedOut as Peer.ask."""
    replies = [peer.ask("attach", _LOAD_TIMEOUT_S, [call.arena], bytes=call.arena_bytes)]
    with call.artifact.open("rb") as image:
        replies.append(peer.ask("load", _LOAD_TIMEOUT_S, [image.fileno()], **call.load))
    replies.append(peer.ask("bind", _LOAD_TIMEOUT_S, **call.bind, private=private))
    return next((str(reply["error"]) for reply in replies if "error" in reply), "")


def once(peer: Peer, call: Call, timeout_s: float) -> str:
    """One call on the bound set; what the worker said against it."""
    return str(peer.ask("call", timeout_s, sets=[0], outputs=call.outputs).get("error", ""))


def _let_finish(peer: Peer, complete: Callable[[], bool]) -> None:
    """End the conversation, so that the worker leaves by itself and the tool writes down what it saw."""
    with contextlib.suppress(OSError):
        peer.socket.shutdown(socket.SHUT_RDWR)
    deadline = time.monotonic() + _REPORT_TIMEOUT_S
    while not complete() and peer.processes() and time.monotonic() < deadline:
        time.sleep(0.05)


def _text(shared: Path) -> str:
    """The report, and what tools that add a process id to its name wrote."""
    return "\n".join(path.read_text(errors="replace") for path in sorted(shared.glob(f"{REPORT}*")) if path.is_file())
