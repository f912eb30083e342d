"""An archive in a real SQLite file, and makers of small records to fill it with."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archive import Archive, Run
from sandbox.contract import (
    BuildFailed,
    Candidate,
    Cheated,
    Check,
    Counter,
    Fault,
    Incorrect,
    Interval,
    Judgement,
    KernelCounters,
    KernelResources,
    LaunchFailed,
    Measurement,
    Passed,
    Profile,
    SanitizerReport,
    TimedOut,
    Timing,
    Verdict,
)


class Make:
    """Makers of records; every argument has a default, so that a test names only what it is about."""

    def candidate(self, source: str = "// 1: plain", **fields: Any) -> Candidate:
        given = {"task": "toy", "target": "cpu", "operator": "seed", "proposer": "seed"} | fields
        return Candidate(source=source, **given)

    def judgement(self, candidate: Candidate, verdict: Verdict | None = None, **fields: Any) -> Judgement:
        given = {"task": "toy", "task_version": "v1", "target": "cpu", "device": "box", "seconds": 1.5} | fields
        given = {"judged_at": "2026-01-01T00:00:00+00:00"} | given
        return Judgement(candidate=candidate.id, verdict=verdict or self.passed(), **given)

    def passed(self, eager: float = 2.0, confirmed: bool = False, latency_ms: float = 0.5) -> Passed:
        own = self.measurement(latency_ms)
        baselines = {
            "eager": self.measurement(latency_ms * eager),
            "library:flash": self.measurement(latency_ms * 1.25),
            "library:math": self.measurement(latency_ms * 4),
        }
        return Passed(
            checks=(Check(workload="N1000", distribution="normal", error=1e-7, yardstick=1e-7),),
            timings=(
                Timing(workload="N1000", candidate=own, baselines=baselines, roofline_share=0.4, wall_ms=latency_ms),
                Timing(workload="N4096", candidate=own, baselines=baselines, roofline_share=0.9),
                Timing(workload="N9", candidate=own, baselines=baselines),
            ),
            speedup={"eager": Interval(ratio=eager, low=eager * 0.9, high=eager * 1.1)},
            latency_ms=latency_ms,
            resources=(KernelResources(kernel="toy", registers=32, spill_bytes=0, smem_bytes=48),),
            confirmed=confirmed,
        )

    def examined(self) -> Passed:
        """A champion that sanitizers and a profiler looked at."""
        fault = Fault(kernel="toy", what="Race reported between Write access", where="and Read access", count=2)
        reports = (
            SanitizerReport(tool="racecheck", errors=1, kernels=(fault,), excerpt="Race", seconds=2.5),
            SanitizerReport(tool="initcheck", errors=None, excerpt="not run: compute-sanitizer not found"),
        )
        kernels = (KernelCounters(kernel="toy", counters=(Counter(name="duration", value=9.024, unit="µs"),)),)
        profile = Profile(tool="ncu", workload="N1000", kernels=kernels, note="")
        return self.passed(confirmed=True).model_copy(update={"sanitizers": reports, "profile": profile})

    def measurement(self, ms: float) -> Measurement:
        return Measurement(
            rounds_ms=(ms, ms * 1.1, 0.1 + 0.2), median_ms=ms, low_ms=ms * 0.9, high_ms=ms * 1.1, samples=30
        )

    def verdicts(self) -> list[Verdict]:
        return [
            BuildFailed(log="error: expected ';' — «π» \x00 \u2028\n"),
            LaunchFailed(workload="N1000", reason="too many resources"),
            Incorrect(workload="N1000", distribution="normal", rule="row error", evidence="row 3"),
            TimedOut(stage="verify", seconds=30.0),
            Cheated(rule="wrote past the end", evidence="canary 2"),
            self.passed(),
            self.examined(),
        ]

    def run(self, **fields: Any) -> Run:
        given = {"task": "toy", "task_version": "v1", "target": "cpu", "device": "box", "rng_seed": 7} | fields
        return Run(**given)


@pytest.fixture
def make() -> Make:
    return Make()


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive.open(tmp_path / "archive.sqlite") as opened:
        yield opened


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Archive]:
    """A second archive, as on another machine."""
    with Archive.open(tmp_path / "other.sqlite") as opened:
        yield opened


@pytest.fixture
def filled(archive: Archive, make: Make) -> Archive:
    """An archive with a lineage, every kind of verdict and two runs."""
    seed, run, done = make.candidate(), make.run(id="20260101-000000-aaaaaa"), make.run(id="20260102-000000-bbbbbb")
    archive.add(seed)
    archive.start_run(run)
    archive.start_run(done)
    for number, verdict in enumerate(make.verdicts()):
        child = make.candidate(f"// child {number} × π", parents=(seed.id,), operator="tune", tunables={"TILE": number})
        archive.add(child)
        archive.record(make.judgement(child, verdict), run.id if number % 2 else done.id)
    archive.update_run(done.id, status="finished", winners={"N1000": seed.id}, seconds_spent=3.25, usd_spent=0.5)
    return archive
