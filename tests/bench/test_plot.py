"""What is drawn of the published archive."""

from pathlib import Path

import pytest

from agent import published
from archive import Archive
from bench import plot


def test_eager_that_was_late_once_makes_no_kernel_faster(tmp_path: Path) -> None:
    with Archive.open(tmp_path / "archive.db", published.files()) as archive:
        judged = archive.judgements("layernorm")
    eager = plot.usual_eager([judgement for _, judgement in judged])["layernorm"]
    candidate, judgement = next(pair for pair in judged if pair[1].verdict.confirmed)
    timings = [
        timing.model_copy(update={"baselines": {name: late(measured) for name, measured in timing.baselines.items()}})
        for timing in judgement.verdict.timings
    ]
    disturbed = judgement.model_copy(update={"verdict": judgement.verdict.model_copy(update={"timings": (*timings,)})})
    usual = plot.speedup(judgement, eager)
    again = plot.usual_eager([disturbed, *(judgement for _, judgement in judged)])["layernorm"]
    assert plot.speedup(disturbed, again) == pytest.approx(usual, rel=0.02)
    assert plot.courses(judged)["layernorm"]
    assert candidate.task == "layernorm"


def late(measured):  # type: ignore[no-untyped-def]
    return measured.model_copy(update={"median_ms": 7 * measured.median_ms})
