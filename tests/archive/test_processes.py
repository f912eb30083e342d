"""Several processes share one archive, and any of them may be killed at any moment."""

import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from archive import Archive

ROOT = Path(__file__).parents[2]
Writer = subprocess.Popen[str]


def _writer(path: Path, name: str, count: int) -> Writer:
    """A writer that is ready and waits for `_go`."""
    command = [sys.executable, str(ROOT / "tests/archive/writer.py"), str(path), name, str(count)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    writer = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, **pipes)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "started\n"
    return writer


def _go(writer: Writer) -> None:
    assert writer.stdin is not None
    writer.stdin.write("\n")
    writer.stdin.flush()


def _assert_sound(path: Path) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()


def test_processes_create_and_fill_one_archive_at_once(tmp_path: Path) -> None:
    path, count = tmp_path / "archive.sqlite", 12
    writers = [_writer(path, name, count) for name in "ab"]
    for writer in writers:
        _go(writer)
    for writer in writers:
        out, err = writer.communicate(timeout=60)
        assert (writer.returncode, err, len(out.splitlines())) == (0, "", count)
    _assert_sound(path)
    with Archive.open(path) as archive:
        for name in "ab":
            sources = [candidate.source for candidate, _ in archive.history(f"run-{name}")]
            assert sources == [text for n in range(count) for text in (f"{name} {n}", f"shared {n}")]
        assert len(archive.judgements()) == 3 * count


def test_nothing_committed_is_lost_to_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "archive.sqlite"
    rng = random.Random(11)
    for attempt in range(4):
        writer = _writer(path, f"w{attempt}", 100_000)
        _go(writer)
        # The first kill falls into the creation of the archive, the others among its commits.
        time.sleep(rng.uniform(0.02, 0.3))
        writer.kill()
        committed = writer.communicate()[0].splitlines()
        _assert_sound(path)
        with Archive.open(path) as archive:
            assert all(archive.judged(name, "v1", "cpu", "box") for name in committed)
            assert all(archive.history(run.id) or run.status == "running" for run in archive.runs())


def test_reader_sees_one_state_while_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "archive.sqlite"
    writer = _writer(path, "a", 100_000)
    with Archive.open(path) as archive, Archive.open(tmp_path / "copy.sqlite") as copy:
        _go(writer)
        while not archive.runs():
            time.sleep(0.01)
        for _ in range(3):
            archive.export(tmp_path / "copy.jsonl")
            copy.import_(tmp_path / "copy.jsonl")
        writer.kill()
        writer.communicate()
        assert len(copy.judgements()) > 0
