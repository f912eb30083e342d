"""What `show` prints of a candidate that sanitizers and a profiler looked at."""

import io

from rich.console import Console

from agent import render
from sandbox.contract import (
    Candidate,
    Counter,
    Fault,
    Judgement,
    KernelCounters,
    KernelResources,
    Passed,
    Profile,
    SanitizerReport,
)

FAULT = Fault(
    kernel="split", what="Race reported between Write access", where="and Read access at split(int *)", count=2
)
REPORTS = (
    SanitizerReport(tool="memcheck", errors=0, seconds=2.6),
    SanitizerReport(tool="racecheck", errors=2, kernels=(FAULT,)),
    SanitizerReport(tool="initcheck", errors=None, excerpt="not run: compute-sanitizer not found"),
)
PROFILE = Profile(
    tool="ncu",
    workload="B1 S512 float16",
    kernels=(
        KernelCounters(kernel="split", counters=(Counter(name="duration", value=9.024, unit="µs"),)),
        KernelCounters(kernel="combine", counters=(Counter(name="L2 hit rate", value=61.5, unit="%"),)),
    ),
)


def page(sanitizers: tuple[SanitizerReport, ...] = REPORTS, profile: Profile | None = PROFILE) -> str:
    candidate = Candidate(task="toy", target="cuda", source="// 1: plain", operator="seed", proposer="seed")
    verdict = Passed(
        checks=(),
        timings=(),
        speedup={},
        latency_ms=0.5,
        resources=(KernelResources(kernel="split", registers=96, spill_bytes=0, smem_bytes=1024),),
        sanitizers=sanitizers,
        profile=profile,
    )
    judged = Judgement(
        candidate=candidate.id,
        task="toy",
        task_version="v",
        target="cuda",
        device="test gpu",
        verdict=verdict,
        seconds=1.0,
        judged_at="2026-01-02T03:04:05+00:00",
    )
    console = Console(width=120, file=io.StringIO(), color_system=None, record=True)
    console.print(render.candidate_page(candidate, [Judgement.model_validate_json(judged.model_dump_json())], []))
    return console.export_text()


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_every_sanitizer_says_what_it_found() -> None:
    shown = lines(page())
    assert "memcheck: nothing found" in shown
    assert "racecheck: 2 errors" in shown
    assert "2 × split: Race reported between Write access, and Read access at split(int *)" in shown


def test_a_sanitizer_that_did_not_run_says_why() -> None:
    assert "initcheck: not run: compute-sanitizer not found" in lines(page())


def test_counters_stand_in_a_column_for_each_kernel() -> None:
    shown = lines(page())
    assert "ncu, B1 S512 float16 unit split combine" in shown
    assert "duration µs 9.02 –" in shown
    assert "L2 hit rate % – 61.5" in shown


def test_the_compilers_report_is_always_there() -> None:
    shown = lines(page(sanitizers=(), profile=None))
    assert "split: 96 registers, no spills, 1024 B of static shared memory" in shown


def test_a_profiler_that_could_not_look_leaves_a_note() -> None:
    shown = page(profile=Profile(tool="none", note="not profiled: ncu not found"))
    assert "not profiled: ncu not found" in lines(shown)


def test_ancestor_of_another_task_is_named_with_its_task() -> None:
    given = {"target": "cpu", "source": "// plain", "operator": "seed", "proposer": "seed"}
    own, other = Candidate(task="toy", note="mine", **given), Candidate(task="other", note="theirs", **given)
    console = Console(file=io.StringIO(), width=200)
    console.print(render.candidate_page(own, [], [other.model_copy(update={"source": "// theirs"}), own]))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "theirs (of other) → " in printed
    assert "mine (of" not in printed
