"""Which kernels of an archive an export takes, and what it says where there is nothing to take."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import exporting, tasks
from agent.exporting import choose
from archive import Archive, Run
from sandbox import devices
from sandbox.contract import (
    JUDGE_VERSION,
    Candidate,
    Incorrect,
    Interval,
    Judgement,
    Measurement,
    Passed,
    Timing,
    Verdict,
)
from sandbox.errors import BadInput

HERE = devices.cpu().name
ELSEWHERE = "Another CPU (8 cores)"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive.open(tmp_path / "archive.db")


def measured(ms: float) -> Measurement:
    return Measurement(rounds_ms=(ms, ms), median_ms=ms, low_ms=ms, high_ms=ms, samples=9)


def passed(task: str, target: str, *latencies_ms: float, confirmed: bool = True) -> Passed:
    """Timed on the task's workloads; eager took 4 ms on each."""
    workloads = tasks.load(task, target).workloads  # type: ignore[arg-type]
    timings = tuple(
        Timing(workload=w.name, candidate=measured(ms), baselines={"eager": measured(4.0)})
        for w, ms in zip(workloads, latencies_ms, strict=True)
    )
    speedup = {"eager": Interval(ratio=2.0, low=1.9, high=2.1)}
    return Passed(checks=(), timings=timings, speedup=speedup, latency_ms=latencies_ms[0], confirmed=confirmed)


class Judged:
    """Puts candidates with verdicts into an archive, one second after another."""

    def __init__(self, archive: Archive) -> None:
        self.archive, self.seconds = archive, 0

    def __call__(
        self, note: str, verdict: Verdict, task: str = "vector_add", target: str = "cpu", device: str = HERE,
        judge_version: int = JUDGE_VERSION, task_version: str = "",
    ) -> str:  # fmt: skip
        known = tasks.load("vector_add" if task == "gone" else task, target)  # type: ignore[arg-type]
        candidate = Candidate(
            task=task, target=known.target, source=f"// {note}\n", operator="seed", proposer="seed", note=note
        )
        self.seconds += 1
        self.archive.add(candidate)
        self.archive.record(
            Judgement(
                candidate=candidate.id,
                task=task,
                task_version=task_version or known.version,
                target=known.target,
                device=device,
                judge_version=judge_version,
                verdict=verdict,
                seconds=1.0,
                judged_at=f"2026-01-02T03:04:{self.seconds:02}+00:00",
            )
        )
        return candidate.id


@pytest.fixture
def judged(archive: Archive) -> Judged:
    return Judged(archive)


def test_each_workload_gets_the_fastest_that_is_confirmed(archive: Archive, judged: Judged) -> None:
    small = judged("small", passed("vector_add", "cpu", 1.0, 3.0))
    large = judged("large", passed("vector_add", "cpu", 2.0, 1.0))
    judged("lucky", passed("vector_add", "cpu", 0.1, 0.1, confirmed=False))
    chosen = choose(archive, "cpu")
    assert [(award.candidate, award.doubts) for award in chosen.awards] == [(small, ""), (large, "")]
    (part,) = chosen.parts
    assert (part.task.name, part.device.name) == ("vector_add", HERE)
    assert [winner.candidate.id for winner in part.winners.values()] == [small, large]


def test_without_confirmed_kernels_the_fastest_goes_in_and_it_is_said(archive: Archive, judged: Judged) -> None:
    fast = judged("fast", passed("vector_add", "cpu", 1.0, 1.0, confirmed=False), judge_version=2)
    chosen = choose(archive, "cpu", ["vector_add"])
    assert {award.candidate for award in chosen.awards} == {fast}
    wanted = f"not confirmed; judged with version 2 of the judge, this is {JUDGE_VERSION}"
    assert {award.doubts for award in chosen.awards} == {wanted}


def test_a_kernel_that_was_ever_found_wrong_is_no_winner(archive: Archive, judged: Judged) -> None:
    right = judged("right", passed("vector_add", "cpu", 2.0, 2.0))
    judged("wrong", passed("vector_add", "cpu", 1.0, 1.0))
    judged("wrong", Incorrect(workload="N1 float32", distribution="normal", rule="error", evidence="far"))
    assert {award.candidate for award in choose(archive, "cpu").awards} == {right}


def test_of_cpus_this_one_counts_and_another_only_where_it_is_alone_or_asked_for(
    archive: Archive, judged: Judged
) -> None:
    there = judged("there", passed("vector_add", "cpu", 1.0, 1.0), device=ELSEWHERE)
    assert choose(archive, "cpu").parts[0].device.name == ELSEWHERE
    here = judged("here", passed("vector_add", "cpu", 2.0, 2.0))
    assert {award.candidate for award in choose(archive, "cpu").awards} == {here}
    assert {award.candidate for award in choose(archive, "cpu", on=["another"]).awards} == {there}


def test_every_gpu_gives_a_part_and_of_one_architecture_the_last_that_judged(archive: Archive, judged: Judged) -> None:
    verdict = passed("vector_add", "cuda", 1.0, 1.0, 1.0, 1.0)
    for device in ("NVIDIA A10", "NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3"):
        judged(device, verdict, target="cuda", device=device)
    found = {part.device.arch: part.device.name for part in choose(archive, "cuda").parts}
    assert found == {"sm_86": "NVIDIA A10", "sm_90a": "NVIDIA H100 80GB HBM3"}
    (only,) = choose(archive, "cuda", on=["nvidia h100 pcie"]).parts
    assert only.device.name == "NVIDIA H100 PCIe"


def test_a_target_that_has_no_kernels_gives_way_to_the_other_where_none_is_asked_for(
    archive: Archive, judged: Judged
) -> None:
    judged("gpu", passed("vector_add", "cuda", 1.0, 1.0, 1.0, 1.0), target="cuda", device="NVIDIA A10")
    assert choose(archive, "auto").parts[0].task.target == "cuda"
    judged("cpu", passed("vector_add", "cpu", 1.0, 1.0))
    if "missing" in devices.asked_driver():
        assert choose(archive, "auto").parts[0].task.target == "cpu"


def test_what_cannot_be_exported_is_said_beside_what_can(archive: Archive, judged: Judged) -> None:
    judged("one", passed("vector_add", "cpu", 1.0, 1.0))
    judged("lost", passed("vector_add", "cpu", 1.0, 1.0), task="gone")
    judged("old", passed("layernorm", "cpu", 1.0, 1.0, 1.0), task="layernorm", task_version="before")
    chosen = choose(archive, "cpu")
    assert {part.task.name for part in chosen.parts} == {"vector_add"}
    assert chosen.left_out["gone"].startswith("unknown task 'gone'")
    assert chosen.left_out["layernorm"].startswith("it has changed since its kernels were judged")


def test_a_task_that_is_not_built_in_is_found_where_a_run_of_it_found_it(
    archive: Archive, judged: Judged, toy_folder: Path
) -> None:
    known = tasks.load(str(toy_folder), "cpu")
    common = {"task": "toy", "task_version": known.version, "target": "cpu", "device": HERE, "rng_seed": 0}
    archive.start_run(Run.model_validate({**common, "config": {"task": str(toy_folder)}}))
    seed = tasks.seeds(known)[0]
    archive.add(seed)
    timings = tuple(
        Timing(workload=w.name, candidate=measured(1.0), baselines={"eager": measured(2.0)}) for w in known.workloads
    )
    verdict = Passed(checks=(), timings=timings, speedup={}, latency_ms=1.0, confirmed=True)
    archive.record(
        Judgement(
            candidate=seed.id,
            task="toy",
            task_version=known.version,
            target="cpu",
            device=HERE,
            verdict=verdict,
            seconds=1.0,
            judged_at="2026-01-02T03:04:05+00:00",
        )
    )
    assert choose(archive, "cpu", ["toy"]).parts[0].task.folder == toy_folder.resolve()
    assert choose(archive, "cpu").parts[0].task.folder == toy_folder.resolve()


def test_bad_requests_say_what_there_is(archive: Archive, judged: Judged, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no kernel has passed in this archive"):
        choose(archive, "auto")
    judged("one", passed("vector_add", "cpu", 1.0, 1.0))
    module = tmp_path / "relu.py"
    module.write_text(
        "import torch\nfrom torch import nn\n\nclass Model(nn.Module):\n    def forward(self, x):\n"
        "        return x.relu()\n\ndef get_inputs():\n    return [torch.randn(4, 8)]\n\n"
        "def get_init_inputs():\n    return []\n"
    )
    for wanted, on, message in (
        (["layernorm"], (), "no kernel of task 'layernorm' has passed for target 'cpu'; devices with one: none"),
        (["vector_add"], ["M1"], "has passed for target 'cpu' on M1; devices with one: "),
        (["vector_ad"], (), "did you mean 'vector_add'"),
        ([str(module)], (), "task 'relu' is made of a PyTorch file"),
    ):
        with pytest.raises(BadInput, match=message):
            choose(archive, "cpu", wanted, on)
    with pytest.raises(BadInput, match="nothing to export for target 'cuda': no kernel has passed on it"):
        choose(archive, "cuda")


@pytest.mark.parametrize("name", ["Kernels", "my-kernels", "class", "2fast", "a__b", "_a", ""])
def test_a_name_that_no_package_can_have_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="--name"):
        exporting.check_name(name)
