"""Forecasts for a GPU that is not at hand, from the published archive; kernels are compiled for real."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import published
from archive import Archive
from bench.forecast import COLUMNS, report
from bench.table import Found
from sandbox.contract import Passed
from sandbox.devices import cross
from sandbox.local import LocalLauncher
from sandbox.toolchain import Toolchain


@pytest.fixture(scope="module")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toolchain]:
    with Toolchain(tmp_path_factory.mktemp("cache"), launcher=LocalLauncher()) as toolchain:
        yield toolchain


def found(folder: Path, task: str, note: str) -> Found:
    """A published kernel that passed."""
    with Archive.open(folder / "archive.db", published.files()) as archive:
        return next(
            (candidate, judgement, judgement.verdict)
            for candidate, judgement in archive.judgements(task)
            if isinstance(judgement.verdict, Passed) and candidate.note == note
        )


def cells(row: str) -> dict[str, str]:
    return dict(zip(COLUMNS, row.strip("| ").split(" | "), strict=True))


def test_forecast_is_the_floor_there_over_the_share_reached_here(toolchain: Toolchain, tmp_path: Path) -> None:
    lines = list(report([found(tmp_path, "layernorm", "1_block_per_row.cu")], cross("sm_86"), toolchain, "x"))
    row = cells(lines[-1])
    share = float(row["roofline"].rstrip("%")) / 100
    assert float(row["forecast, ms"]) == pytest.approx(float(row["floor, ms"]) / share, rel=0.05)
    assert int(row["registers"]) > 0
    assert "nothing was run on the NVIDIA A10" in lines[2]


def test_kernel_for_another_architecture_alone_fits_nowhere_else(toolchain: Toolchain, tmp_path: Path) -> None:
    lines = list(report([found(tmp_path, "attention", "3_wgmma.cu")], cross("sm_86"), toolchain, "x"))
    assert "none fits" in lines[-1]
