"""Reads an exported file and trusts nothing in it. Not covered: what the archive at hand makes of it (merge)."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from archive.exchange import ANY_LINE, FORMAT, EndLine, Line
from sandbox.errors import BadInput


class Placed(NamedTuple):
    """A line and where it stands, as `PATH line N`, for messages."""

    place: str
    line: Line


def read(path: Path) -> list[Placed]:
    """Every line of an exported file between header and trailer; BadInput naming the line where it is damaged."""
    texts = _texts(path)
    first = next(texts, b"")
    _check_header(f"{path} line 1", first)
    digest = hashlib.sha256(first)
    found: list[Placed] = []
    seen: dict[tuple[str, ...], str] = {}
    for number, text in enumerate(texts, start=2):
        place = f"{path} line {number}"
        line = _line(place, text)
        if isinstance(line, EndLine):
            _check_end(place, line, digest.hexdigest(), found)
            _check_nothing_follows(f"{path} line {number + 1}", texts)
            return found
        if (earlier := seen.setdefault(line.key, place)) != place:
            raise BadInput(f"{place} repeats {' '.join(line.key)}, which is at {earlier}; wanted every record once")
        digest.update(text)
        found.append(Placed(place, line))
    raise BadInput(f"{path} ends after line {len(found) + 1} without its trailer: it was cut short; export it again")


def _texts(path: Path) -> Iterator[bytes]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise BadInput(f"{path} is damaged: {exc}; wanted a whole gzip file") from exc
    except OSError as exc:
        raise BadInput(f"cannot read {path}: {exc.strerror}; wanted an exported archive") from exc


def _check_header(place: str, text: bytes) -> None:
    header = _json(place, text)
    version = header.get("warpsmith_archive")
    if not isinstance(version, int):
        raise BadInput(
            f"{place} is {text[:60]!r}; wanted the header of an exported archive, {{'warpsmith_archive': {FORMAT}}}"
        )
    if version > FORMAT:
        raise BadInput(f"{place} says format {version}; this Warpsmith reads up to {FORMAT}: upgrade it to import this")


def _line(place: str, text: bytes) -> Line | EndLine:
    try:
        return ANY_LINE.validate_python(_json(place, text))
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in error["loc"])
        raise BadInput(f"{place}: {field + ': ' if field else ''}{error['msg']}") from exc


def _json(place: str, text: bytes) -> dict[str, Any]:
    if not text.endswith(b"\n"):
        raise BadInput(f"{place} is cut short after {text[-40:]!r}; wanted a whole line")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadInput(f"{place} is not JSON: {exc}; got {text[:60]!r}") from exc
    if not isinstance(value, dict):
        raise BadInput(f"{place} is {text[:60]!r}; wanted a JSON object")
    return value


def _check_end(place: str, end: EndLine, sha256: str, found: list[Placed]) -> None:
    counts = dict(Counter(placed.line.kind for placed in found))
    if counts != end.counts:
        raise BadInput(
            f"{place}: the file holds {counts}; the trailer says {end.counts}: lines are missing or too many"
        )
    if sha256 != end.sha256:
        raise BadInput(f"{place}: the content's sha256 is {sha256}; the trailer says {end.sha256}: a line was changed")


def _check_nothing_follows(place: str, texts: Iterator[bytes]) -> None:
    rest = next(texts, None)
    if rest is not None:
        raise BadInput(f"{place} is {rest[:60]!r}; wanted nothing after the trailer")
