"""Whose a container or folder is: the host program that made it, told apart from all before and after it.

Not covered: containers, which only an engine can list (docker.py).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

PREFIX = "warpsmith-"


@cache
def this_program() -> str:
    """Process id, start time, boot and PID namespace of this process, as one word."""
    return f"{os.getpid()}-{_started('self')}-{_boot()}-{_namespace()}"


def make_folder(purpose: str) -> str:
    """A new temporary folder that is known to be this program's."""
    return tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-", suffix=f".{this_program()}")


def sweep_folders() -> list[str]:
    """Remove the temporary folders of host programs that are gone; their paths."""
    found = [folder for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*.*") if gone(folder.suffix[1:])]
    for folder in found:
        shutil.rmtree(folder, ignore_errors=True)
    return [str(folder) for folder in found]


def gone(owner: str) -> bool:
    """Whether that host program has ended; False where that cannot be told, as from another PID namespace."""
    parts = owner.split("-")
    if len(parts) != 4:
        return False
    pid, started, boot, namespace = parts
    if boot != _boot():
        return True
    return namespace == _namespace() and _started(pid) != started


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").stat().st_ino)


def _started(pid: str) -> str:
    """Clock ticks from boot to the start of a process; empty where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(") ")[2].split()[19]
