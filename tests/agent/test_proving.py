"""Shapes beyond a task's workloads before the real judge: who serves them, who does not, and that it is asked once."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agent import compose, exporting, proving, tasks
from agent.exporting import Chosen
from agent.shapes import Shape
from archive import Archive, rows
from sandbox import devices
from sandbox.contract import Candidate, Incorrect, Judgement, Measurement, Passed, Task, Timing, Verdict, Workload
from sandbox.errors import BadInput
from sandbox.toolchain import Toolchain

HERE = devices.cpu().name
INSIDE, BEYOND = {"N": 2000}, {"N": 20000}
FASTEST = """\
// 3: one loop, and wrong from 10000 elements on.
extern "C" void toy(float* out, const float* a, const float* b, int64_t N, void* workspace) {
    for (int64_t i = 0; i < (N < 10000 ? N : N - 1); ++i) out[i] = a[i] + b[i];
}
"""


def measured(ms: float) -> Measurement:
    return Measurement(rounds_ms=(ms, ms), median_ms=ms, low_ms=ms, high_ms=ms, samples=9)


def timed(workload: str, ms: float, **baselines: float) -> Passed:
    own = {"eager": measured(1.0)} | {name: measured(each) for name, each in baselines.items()}
    timing = Timing(workload=workload, candidate=measured(ms), baselines=own)
    return Passed(checks=(), timings=(timing,), speedup={}, latency_ms=ms)


@pytest.fixture
def toy(toy_folder: Path) -> Task:
    return tasks.load(str(toy_folder), "cpu")


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive.open(tmp_path / "archive.db")


def recorded(archive: Archive, task: Task, candidate: Candidate, verdict: Verdict, device: str = HERE) -> str:
    archive.add(candidate)
    archive.record(
        Judgement(
            candidate=candidate.id, task=task.name, task_version=task.version, target="cpu", device=device,
            verdict=verdict, seconds=1.0, judged_at="2026-01-02T03:04:05+00:00",
        )
    )  # fmt: skip
    return candidate.id


def won(archive: Archive, task: Task, source: str, ms: float, device: str = HERE) -> Candidate:
    """A candidate that passed on the task's workloads."""
    candidate = Candidate(task="toy", target="cpu", source=source, operator="seed", proposer="seed")
    timings = tuple(timed(w.name, ms).timings[0] for w in task.workloads)
    verdict = Passed(checks=(), timings=timings, speedup={}, latency_ms=ms, confirmed=True)
    recorded(archive, task, candidate, verdict, device)
    return candidate


def shape(**axes: int) -> Shape:
    return Shape(task="toy", values=axes, place="here")


def workload(**axes: int) -> Workload:
    return Workload(axes=axes)


def chosen(archive: Archive, toy: Task, *further: Shape) -> Chosen:
    return exporting.choose(archive, "cpu", [str(toy.folder)], (), further, "local", lambda text: None)


@pytest.mark.slow
def test_the_judge_decides_who_serves_a_shape_and_is_asked_once(archive: Archive, toy: Task) -> None:
    right = won(archive, toy, (toy.folder / "cpu" / "1_plain.cpp").read_text(), 0.5)
    wrong = won(archive, toy, FASTEST, 0.1)
    (part,) = chosen(archive, toy, shape(**BEYOND), shape(**INSIDE)).parts
    found = {j.task_version: j for c, j in archive.judgements("toy") if c.id == wrong.id}
    assert isinstance(found[toy.on(workload(**BEYOND)).version].verdict, Incorrect)
    inside = found[toy.on(workload(**INSIDE)).version].verdict
    assert isinstance(inside, Passed)
    assert [timing.workload for timing in inside.timings] == ["N2000 float32"]
    assert {check.workload for check in inside.checks} == {"N2000 float32"}
    beyond = archive.judged(right.id, toy.on(workload(**BEYOND)).version, "cpu", HERE)
    assert beyond is not None
    assert beyond.verdict.status == "Passed"
    assert part.winners["N1000 float32"].candidate.id == wrong.id, "beyond what was proven a kernel may be wrong"
    count = len(archive.judgements("toy"))
    assert count == 2 + 4
    assert chosen(archive, toy, shape(**BEYOND), shape(**INSIDE)).parts == (part,)
    assert len(archive.judgements("toy")) == count
    assert {row.task_version for row in rows(archive, "toy")} == {toy.version}, "shapes have no board"


def test_the_fastest_that_passed_serves_and_what_eager_beats_is_kept(archive: Archive, toy: Task) -> None:
    slow, fast = won(archive, toy, "// slow\n", 0.6), won(archive, toy, "// fast\n", 0.5)
    on = {name: toy.on(workload(N=n)) for name, n in (("N5 float32", 5), ("N6 float32", 6), ("N7 float32", 7))}
    recorded(archive, on["N5 float32"], slow, timed("N5 float32", 0.7))
    recorded(archive, on["N5 float32"], fast, timed("N5 float32", 0.8, **{"library:add": 0.4}))
    recorded(archive, on["N6 float32"], slow, timed("N6 float32", 1.7))
    recorded(archive, on["N6 float32"], fast, timed("N6 float32", 1.6))
    recorded(archive, on["N7 float32"], slow, timed("N7 float32", 0.7, **{"library:add": 0.35}))
    recorded(archive, on["N7 float32"], fast, timed("N7 float32", 0.8))
    found = chosen(archive, toy, shape(N=5), shape(N=6), shape(N=7))
    (part,) = found.parts
    assert {name: winner.candidate.id for name, winner in part.winners.items()} == {
        "N1000 float32": fast.id, "N4096 float32": fast.id, "N5 float32": slow.id, "N7 float32": slow.id,
    }  # fmt: skip
    assert [shape.name for shape in part.kept] == ["N6 float32"]
    assert {award.workload for award in found.awards} == set(part.winners)
    assert {remark.workload: remark.text for remark in found.remarks} == {
        "N6 float32": f"PyTorch keeps it: {fast.id[:12]} is 0.625 times as fast as eager",
        "N7 float32": "layers keep PyTorch's library:add: the kernel is 0.500 times as fast",
    }


def test_the_command_takes_shapes_from_flags_and_a_file(archive: Archive, toy: Task, tmp_path: Path) -> None:
    known = won(archive, toy, (toy.folder / "cpu" / "1_plain.cpp").read_text(), 0.5)
    for n, ms in ((5, 0.5), (6, 1.5)):
        recorded(archive, toy.on(workload(N=n)), known, timed(f"N{n} float32", ms))
    (tmp_path / "shapes.toml").write_text("[[toy]]\nN = 6\n")

    def export(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "agent", "export", "--archive", str(tmp_path / "archive.db"), "--json"]
        own = ("--task", str(toy.folder), "--target", "cpu", "--source-only", "--shapes", str(tmp_path / "shapes.toml"))
        variables = {**os.environ, "PYTHONPATH": str(tasks.bundled().parent), "XDG_CACHE_HOME": str(tmp_path)}
        return subprocess.run([*command, *own, *arguments], capture_output=True, text=True, env=variables, check=False)

    done = export("--shape", "toy:N=5")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert "N5 float32" in {award["workload"] for award in said["awards"]}
    assert [remark["workload"] for remark in said["remarks"]] == ["N6 float32"]
    refused = export("--shape", "toy:M=5")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--shape toy:M=5: task 'toy' has no axis or scalar 'M'; it has N, dtype" in refused.stderr


def test_who_is_wrong_inside_the_region_wins_nothing(archive: Archive, toy: Task) -> None:
    slow, fast = won(archive, toy, "// slow\n", 0.6), won(archive, toy, "// fast\n", 0.5)
    on = toy.on(workload(**INSIDE))
    recorded(archive, on, slow, timed("N2000 float32", 0.7))
    recorded(archive, on, fast, Incorrect(workload="N2000 float32", distribution="x", rule="error", evidence="far"))
    (part,) = chosen(archive, toy, shape(**INSIDE)).parts
    assert {winner.candidate.id for winner in part.winners.values()} == {slow.id}


def test_a_shape_needs_the_device_or_a_verdict_and_a_task_with_kernels(archive: Archive, toy: Task) -> None:
    won(archive, toy, "// other\n", 0.6, device="Another CPU (8 cores)")
    with pytest.raises(BadInput, match=r"has no verdict on N2000 float32 for Another CPU .* this machine has "):
        chosen(archive, toy, shape(**INSIDE))
    with pytest.raises(BadInput, match="no kernel of task 'layernorm' has passed for target 'cpu'"):
        chosen(archive, toy, Shape(task="layernorm", values={"N": 1, "D": 8}, place="here"))


def test_likeliest_are_the_fastest_on_the_nearest_workload(archive: Archive, toy: Task) -> None:
    found = [won(archive, toy, f"// {ms}\n", ms) for ms in (0.4, 0.2, 0.3, 0.5)]
    standing = [(c, j) for c, j in archive.judgements("toy") if c in found]
    assert [c.source for c in proving.likeliest(standing, toy, workload(**BEYOND))] == ["// 0.2\n", "// 0.3\n"]


def test_the_package_serves_a_shape_by_its_winner_and_leaves_what_is_kept_to_pytorch(
    archive: Archive, toy: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (toy.folder / "cpu" / "1_plain.cpp").read_text()
    first = won(archive, toy, source, 0.5)
    other = won(archive, toy, source.replace("a[i] + b[i]", "a[i] + b[i] + 1"), 0.9)
    for winner, n, ms in ((other, 20000, 0.5), (first, 20000, 0.6), (first, 2000, 1.5), (other, 2000, 1.6)):
        recorded(archive, toy.on(workload(N=n)), winner, timed(f"N{n} float32", ms))
    parts = chosen(archive, toy, shape(N=20000), shape(N=2000)).parts
    with Toolchain(tmp_path / "cache") as toolchain:
        composed = compose.compose(parts, toolchain, tmp_path / "out", "shaped")
    monkeypatch.syspath_prepend(str(composed.root))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin")
    package = importlib.import_module("shaped")
    one = {n: torch.ones(n) for n in (1000, 2000, 3000, 10000, 20000)}
    assert float(package.toy(one[20000], one[20000])[0]) == 3.0, "the winner of the shape, here told by its answer"
    assert float(package.toy(one[1000], one[1000])[0]) == 2.0
    with pytest.warns(UserWarning, match="toy: PyTorch keeps N=2000 float32: no kernel was faster"):
        package.toy(one[2000], one[2000])
    monkeypatch.setenv("WARPSMITH_FALLBACK", "error")
    package.toy(one[3000], one[3000])
    with pytest.raises(RuntimeError, match="PyTorch keeps N=2000"):
        package.toy(one[2000], one[2000])
    regions = importlib.import_module("shaped.regions")
    assert [regions.serves("toy", one[1000], N=n) for n in (77, 2000, 2001, 20000, 20001)] == [
        True, False, True, True, False,
    ]  # fmt: skip
    known = json.loads((composed.root / "shaped" / "workloads.json").read_text())["toy"]["workloads"]
    kinds = {(each["name"], each["kind"]) for each in known}
    assert {("N20000 float32", "shape"), ("N2000 float32", "outside"), ("N20001 float32", "outside")} <= kinds
    origin = package.provenance()["tasks"]["toy"]["shapes"]
    assert [(each["workload"], each["faster"]) for each in origin] == [
        ("N20000 float32", ""),
        ("N2000 float32", "PyTorch"),
    ]
    assert math.prod(origin[0]["sizes"].values()) == 20000
