"""Checks that make calls on several sets at one request, as our own runner does on a GPU; here with native code."""

import itertools
import random
from collections.abc import Iterator

import pytest

from sandbox.contract import Candidate, Cheated, Check, Incorrect, Task, TensorSpec, Verdict, Workload
from sandbox.courtroom import Courtroom, Drawn
from sandbox.devices import detect
from sandbox.judge import Judge
from sandbox.launch import Order
from sandbox.local import LocalLauncher
from sandbox.toolchain import Toolchain
from sandbox.trial import Rejected, Trial, _disagree, _one_by_one, _side_by_side, _slopes, _typical

CPU = detect("cpu")
DOUBLE = "for (int64_t i = 0; i < N; ++i) out[i] = 2 * x[i];"


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    with Toolchain(tmp_path_factory.mktemp("cache")) as toolchain, Judge(CPU, toolchain) as judge:
        yield judge


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("twice")
    (folder / "reference.py").write_text("def reference(x):\n    return x + x\n")
    return Task(
        name="twice",
        version="1",
        summary="2 * x",
        target="cpu",
        axes=("N",),
        outputs=(TensorSpec(name="out", shape=("N",)),),
        inputs=(TensorSpec(name="x", shape=("N",)),),
        workloads=(Workload(axes={"N": 50_000}),),
        held_out=(Workload(axes={"N": 99}),),
        bytes_moved="2*N*itemsize",
        flops="N",
        folder=folder,
    )


@pytest.fixture(scope="module")
def room(judge: Judge, task: Task) -> Courtroom:
    return judge.open(task)


def checked(judge: Judge, room: Courtroom, body: str, before: str = "") -> list[Check] | Verdict:
    """The checks that a kernel of this body passes, or the verdict that ends them."""
    head = 'extern "C" void twice(float* out, const float* x, int64_t N, void* workspace)'
    source = f"{before}\n#include <cstring>\n{head} {{ {body} }}\n"
    candidate = Candidate(task="twice", target="cpu", source=source, operator="import", proposer="test")
    build = judge.build(room.task, candidate)
    with LocalLauncher().worker(Order(device=CPU, memory_bytes=4 << 30)) as worker:
        trial = Trial(room, build, worker.peer, CPU, random.Random(1), 30.0)
        trial.in_a_row = True
        trial.attach()
        checks: list[Check] = []
        try:
            for workload in (*room.task.workloads, *room.task.held_out):
                trial.load(workload)
                trial.bind(workload)
                evidence = room.evidence
                draws = [*evidence.timed.get(workload.name, []), *evidence.checked[workload.name]]
                checks += trial.check(workload, draws)
        except Rejected as rejection:
            return rejection.verdict
    return checks


def drawn(name: str) -> Drawn:
    return Drawn(name, Workload(axes={"N": 9}), "normal", (), ())


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("sets", [1, 2, 3, 7])
@pytest.mark.parametrize("others", [0, 1, 9])
def test_every_step_is_taken_and_what_resembles_each_other_stays_on_one_set(
    timed: bool, sets: int, others: int
) -> None:
    draws = [drawn(f"d{i}") for i in range(others + 1)]
    lanes = _side_by_side(draws, timed, sets)
    assert 1 <= len(lanes) <= sets
    assert {(s.drawn.slot, s.change) for lane in lanes for s in lane} == {
        (s.drawn.slot, s.change) for s in _one_by_one(draws, timed)
    }
    assert max(map(len, lanes)) <= len(_one_by_one(draws, timed))
    calls = [step for turn in itertools.zip_longest(*lanes) for step in turn if step is not None]
    pairs = [(a, b) for line in (*lanes, calls) for a, b in itertools.pairwise(line)]
    for change in ["patched", "moved"] if timed else ["patched"]:
        assert any(a.drawn is b.drawn and {a.change, b.change} == {"plain", change} for a, b in pairs)
    if timed:  # an answer kept of whatever call came last is of no use
        behind = {(a.change, b.change) for a, b in itertools.pairwise(calls) if a.drawn is b.drawn is draws[0]}
        assert ("plain", "patched") in behind
        assert behind & {("plain", "moved"), ("moved", "plain")}
    (keeping,) = [lane for lane in lanes if any(step.keep for step in lane)]
    assert any(step.recall for step in keeping)


def test_honest_kernel_passes_with_a_check_for_every_draw(judge: Judge, room: Courtroom) -> None:
    checks = checked(judge, room, DOUBLE)
    assert isinstance(checks, list)
    drawn = {
        c.distribution for group in (room.evidence.timed, room.evidence.checked) for d in group.values() for c in d
    }
    assert {check.distribution for check in checks} == drawn


def test_answers_kept_by_pointer_are_caught(judge: Judge, room: Courtroom) -> None:
    before = "#include <map>\n#include <vector>\nstatic std::map<const float*, std::vector<float>> kept;"
    body = f"auto& k = kept[x]; if (k.empty()) {{ {DOUBLE} k.assign(out, out + N); }} memcpy(out, k.data(), N * 4);"
    found = checked(judge, room, body, before)
    assert isinstance(found, Cheated)
    assert found.rule == "answers kept between calls"


def test_answers_kept_by_a_sum_are_caught(judge: Judge, room: Courtroom) -> None:
    before = "#include <cmath>\n#include <vector>\nstatic std::vector<float> kept; static double known = 1e300;"
    body = f"""
    double sum = 0; for (int64_t i = 0; i < N; ++i) sum += x[i];
    bool anew = std::fabs(sum - known) > 1e-3 || (int64_t)kept.size() != N;
    if (anew) {{ {DOUBLE} kept.assign(out, out + N); known = sum; }}
    memcpy(out, kept.data(), N * 4);"""
    found = checked(judge, room, body, before)
    assert isinstance(found, Cheated)
    assert found.rule == "answers kept between calls"


def test_workspace_is_poisoned_between_calls_of_one_request(judge: Judge, room: Courtroom) -> None:
    before = "// workspace: 64\n#include <cstdint>"
    body = f"{DOUBLE} int* w = (int*)workspace; if (w[0] == 77) out[0] += 1000; w[0] = 77;"
    assert isinstance(checked(judge, room, body, before), list)


def test_one_wrong_call_among_several_is_found(judge: Judge, room: Courtroom) -> None:
    body = f"static int calls = 0; {DOUBLE} if (++calls == 2) out[N / 2] += 1;"
    assert isinstance(checked(judge, room, body), Incorrect)


def test_write_to_another_set_is_caught(judge: Judge, room: Courtroom) -> None:
    """The sets lie in one mapping, at distances that a kernel can guess."""
    body = f"{DOUBLE} float* guess = out; for (int i = 0; i < 3000; ++i) guess[N + i] = 0;"
    found = checked(judge, room, body)
    assert isinstance(found, Incorrect)
    assert found.rule in ("out-of-bounds write", "input changed")


def test_host_that_is_late_is_no_disagreement_of_clocks() -> None:
    """As much as 20 ms of a process that waited for its turn, in every other request, over calls of 0.3 ms."""
    rng = random.Random(1)

    def run(count: int) -> tuple[float, float]:
        late = rng.uniform(0, 0.02) if rng.random() < 0.5 else 0.0
        return 0.001 + 0.0003 * count + late, 0.3 * count

    found = [_slopes(run, 10) for _ in range(1000)]
    assert all(agree for _, _, agree in found)
    assert all(events_ms == pytest.approx(0.3) for _, events_ms, _ in found)


@pytest.mark.parametrize("late_s", [0.0, 0.02])
def test_clocks_disagree_where_each_call_hides_work(late_s: float) -> None:
    """However late the host is, whatever it was asked first."""
    calls = itertools.count()

    def run(count: int) -> tuple[float, float]:
        return 0.001 + 0.0004 * count + (late_s if next(calls) < 2 else 0.0), 0.3 * count

    wall_ms, events_ms, agree = _slopes(run, 10)
    assert not agree
    assert (wall_ms, events_ms) == (pytest.approx(0.4), pytest.approx(0.3))


def test_late_call_counts_in_a_block_of_the_candidate_alone() -> None:
    events_ms = [0.2, 0.2, 4.1]
    assert _typical("eager", events_ms) == 0.2
    assert _typical("candidate", events_ms) == pytest.approx(1.5)


@pytest.mark.parametrize(("rounds_ms", "more"), [([0.22, 0.23], False), ([1.5, 0.22], True)])
def test_rounds_that_lie_far_apart_say_too_little(rounds_ms: list[float], more: bool) -> None:
    assert _disagree({"candidate": [0.3, 0.31], "eager": rounds_ms}) is more
