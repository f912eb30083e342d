"""A task of the cpu target with an archive, and makers of candidates with judgements in it."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from agent.asking.setting import Setting, setting_of
from agent.config import RunConfig
from archive import Archive
from sandbox.contract import (
    Candidate,
    Device,
    Incorrect,
    Interval,
    Judgement,
    Measurement,
    Operator,
    Passed,
    Timing,
    Verdict,
)

DEVICE = Device(name="Some CPU (4 cores)", target="cpu", arch="", threads=4)
HEAD = 'extern "C" void toy(float* out, const float* a, const float* b, int64_t N, void* workspace)'
Judged = Callable[..., Candidate]


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive.open(tmp_path / "archive.db") as opened:
        yield opened


@pytest.fixture
def setting(archive: Archive, toy_folder: Path) -> Setting:
    return setting_of(archive, RunConfig(task=str(toy_folder), archive=archive.location), DEVICE)


@pytest.fixture
def judged(setting: Setting) -> Judged:
    """Adds a kernel whose body is `body`, so many times as fast as eager; 0 is one that is not right."""

    def add(
        body: str,
        gain: float,
        parents: Sequence[str] = (),
        operator: Operator = "propose",
        hidden: bool = False,
        note: str = "",
    ) -> Candidate:
        candidate = Candidate(
            task=setting.task.name,
            target="cpu",
            source=f"// a kernel\n{HEAD} {{ {body} }}\n",
            parents=tuple(parents),
            operator=operator,
            proposer="test",
            note=note or body,
        )
        setting.archive.add(candidate)
        setting.archive.record(judgement(setting, candidate, gain, hidden))
        return candidate

    return add


def judgement(setting: Setting, candidate: Candidate, gain: float, hidden: bool = False) -> Judgement:
    task = setting.task
    place = task.held_out[0].name if hidden else task.workloads[0].name
    verdict: Verdict = Incorrect(workload=place, distribution="normal", rule="error", evidence="row 3 of 77")
    if gain:
        timings = tuple(
            Timing(workload=workload.name, candidate=measured(1 / gain), baselines={"eager": measured(1.0)})
            for workload in task.workloads
        )
        over = {"eager": Interval(ratio=gain, low=gain, high=math.inf)}
        verdict = Passed(checks=(), timings=timings, speedup=over, latency_ms=1 / gain)
    return Judgement(
        candidate=candidate.id,
        task=task.name,
        task_version=task.version,
        target="cpu",
        device=setting.device.name,
        verdict=verdict,
        seconds=1.0,
        judged_at="2026-01-01T00:00:00+00:00",
    )


def measured(ms: float) -> Measurement:
    return Measurement(rounds_ms=(ms,), median_ms=ms, low_ms=ms, high_ms=ms, samples=1)
