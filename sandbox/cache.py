"""Builds kept by the content of what went in: artifacts and compile errors alike.

Only the trusted side writes here. Files appear by rename, so that any number of processes may share a cache;
what does not match its hash counts as absent and is built again. Not covered: locking out a process that prunes
while another still reads.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sandbox.contract import KernelResources


class Built(BaseModel):
    """A compiler's success."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Literal["built"] = "built"
    sha256: str
    suffix: str
    kernels: tuple[KernelResources, ...] = ()
    seconds: float
    log: str = ""


class Rejected(BaseModel):
    """A compiler's refusal, which the same text will meet again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Literal["rejected"] = "rejected"
    log: str


class Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    result: Built | Rejected


def write_atomically(path: Path, content: bytes) -> None:
    """Let `path` appear with all of its content and mode 0444, or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, 0o444)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class BuildCache:
    """A folder of builds; keys are 64 hex digits."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.root.mkdir(parents=True, exist_ok=True)

    def path(self, key: str, suffix: str) -> Path:
        return self.root / key[:2] / f"{key}{suffix}"

    def load(self, key: str) -> Built | Rejected | None:
        """What an earlier build came to; None where there is none, or where it is damaged."""
        note = self.path(key, ".json")
        try:
            result = Entry.model_validate_json(note.read_bytes()).result
            if isinstance(result, Built) and not self._intact(key, result):
                return None
            os.utime(note)  # prune removes what was unused for longest
        except (FileNotFoundError, ValidationError):
            return None
        return result

    def store(self, key: str, result: Built | Rejected, content: bytes = b"") -> None:
        """Keep a result; an artifact first, so that whoever sees the entry finds it."""
        note = self.path(key, ".json")
        note.parent.mkdir(exist_ok=True)
        if isinstance(result, Built):
            write_atomically(self.path(key, result.suffix), content)
        write_atomically(note, Entry(result=result).model_dump_json().encode())

    def prune(self, max_bytes: int) -> int:
        """Remove the builds unused for longest until the rest fits into `max_bytes`; returns bytes removed."""
        notes = sorted(self.root.glob("??/*.json"), key=lambda note: note.stat().st_mtime)
        groups = [list(note.parent.glob(f"{note.stem}.*")) for note in notes]
        sizes = [sum(file.stat().st_size for file in group) for group in groups]
        excess, removed = sum(sizes) - max_bytes, 0
        for group, size in zip(groups, sizes, strict=True):
            if removed >= excess:
                break
            for file in group:
                file.unlink(missing_ok=True)
            removed += size
        return removed

    def _intact(self, key: str, built: Built) -> bool:
        content = self.path(key, built.suffix).read_bytes()
        return hashlib.sha256(content).hexdigest() == built.sha256
