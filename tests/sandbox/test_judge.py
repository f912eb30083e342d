"""The judge with its real referee, real compiler and real workers, on a task small enough to take seconds."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from sandbox.contract import Candidate, Fill, Passed, Task, TensorSpec, Verdict, Workload
from sandbox.devices import detect
from sandbox.errors import TaskError, WorkerLost
from sandbox.judge import Judge
from sandbox.launch import Order, Worker
from sandbox.local import LocalLauncher
from sandbox.toolchain import Toolchain

REFERENCE = """\
def reference(total, x, y):
    total += 1
    return x + y

def library(target):
    def refuses(total, x, y):
        raise RuntimeError("no such backend")
    def wrong(total, x, y):
        return x - y
    return {"refuses": refuses, "wrong": wrong}
"""
LOOP = "for (int64_t i = 0; i < N; ++i) out[i] = x[i] + y[i]; for (int64_t i = 0; i < 4; ++i) total[i] += 1;"
HEADERS = "".join(f"#include <{name}>\n" for name in ("csignal", "cstdlib", "cstring", "new", "thread", "unistd.h"))


def candidate(body: str, before: str = "") -> Candidate:
    """A kernel of the task below with the given body."""
    head = 'extern "C" void add(float* out, float* total, const float* x, const float* y, int64_t N, void* workspace)'
    return Candidate(
        task="add", target="cpu", source=f"{HEADERS}{before}\n{head} {{ {body} }}\n", operator="import", proposer="test"
    )


class Workers(LocalLauncher):
    """Counts the workers that were asked for."""

    started = 0

    def worker(self, order: Order) -> AbstractContextManager[Worker]:
        self.started += 1
        return super().worker(order)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("add")
    (folder / "reference.py").write_text(REFERENCE)
    vector = lambda name: TensorSpec(name=name, shape=("N",))  # noqa: E731
    return Task(
        name="add",
        version="1",
        summary="x + y, and a counter changed in place",
        target="cpu",
        axes=("N",),
        outputs=(vector("out"),),
        inouts=(TensorSpec(name="total", shape=("4",)),),
        inputs=(vector("x"), TensorSpec(name="y", shape=("N",), fill=Fill(kind="weight"))),
        workloads=(Workload(axes={"N": 100_000}), Workload(axes={"N": 30_000})),
        held_out=(Workload(axes={"N": 77}),),
        bytes_moved="3*N*itemsize",
        flops="N",
        folder=folder,
    )


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    with (
        Toolchain(tmp_path_factory.mktemp("cache")) as toolchain,
        Judge(detect("cpu"), toolchain, call_timeout_s=2.0) as judge,
    ):
        yield judge


def verdict(judge: Judge, task: Task, body: str, before: str = "") -> Verdict:
    return judge.judge(task, candidate(body, before)).verdict


def test_honest_kernel_passes_with_timings_on_every_search_workload(judge: Judge, task: Task) -> None:
    judgement = judge.judge(task, candidate(LOOP))
    found = judgement.verdict
    assert isinstance(found, Passed)
    assert [timing.workload for timing in found.timings] == [workload.name for workload in task.workloads]
    assert {"eager", "compile"} <= set(found.timings[0].baselines)
    assert {check.workload for check in found.checks} == {w.name for w in (*task.workloads, *task.held_out)}
    assert set(found.speedup) == set(found.timings[0].baselines)
    assert set(found.timings[0].missing) == {"library:refuses", "library:wrong"}
    assert not found.confirmed
    assert judgement.candidate == candidate(LOOP).id
    assert "torch" in judgement.versions


def test_baselines_that_fail_or_lie_are_left_out_with_the_reason(judge: Judge, task: Task) -> None:
    room = judge.open(task)
    name = task.workloads[0].name
    assert "no such backend" in room.failures[name]["library:refuses"]
    assert "wrong" in room.failures[name]["library:wrong"]
    assert "library:wrong" not in room.baselines[name]


def test_whoever_is_far_ahead_of_everything_known_is_timed_in_a_second_worker(
    judge: Judge, task: Task, tmp_path: Path
) -> None:
    (tmp_path / "reference.py").write_text(
        "import time\n\ndef reference(total, x, y):\n    time.sleep(0.005)\n    total += 1\n    return x + y\n"
    )
    slow = task.model_copy(update={"folder": tmp_path, "version": "slow"})
    workers = Workers()
    with Judge(judge.device, judge.toolchain, workers, call_timeout_s=2.0) as own:
        assert isinstance(own.judge(slow, candidate(LOOP)).verdict, Passed)
        assert workers.started == 2


def test_confirming_measures_again_with_more_rounds(judge: Judge, task: Task) -> None:
    found = judge.confirm(task, candidate(LOOP)).verdict
    assert isinstance(found, Passed)
    assert found.confirmed
    assert len(found.timings[0].candidate.rounds_ms) >= 10


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (LOOP.replace("x[i] + y[i]", "x[i] + 1.001f*y[i]"), "error"),
        (LOOP.replace("i < N", "i < N - 1"), "error"),
        (LOOP.replace("i < N", "i < N - N % 8"), "error"),
        ("for (int64_t i = 0; i < 4; ++i) total[i] += 1;", "error"),
        (LOOP.replace("total[i] += 1", "total[i] += 2"), "error"),
        (LOOP + "out[N] = 0;", "out-of-bounds write"),
        (LOOP + "out[-1] = 0;", "out-of-bounds write"),
        (LOOP + "total[4] = 0;", "out-of-bounds write"),
        (LOOP + "const_cast<float*>(x)[3] = 0;", "input changed"),
        ("if (N < 1000) {" + LOOP + "} else std::memcpy(out, x, N * 4);", "error"),
    ],
)
def test_wrong_kernel_is_incorrect(judge: Judge, task: Task, body: str, rule: str) -> None:
    found = verdict(judge, task, body)
    assert found.status == "Incorrect"
    assert found.rule == rule


def test_answer_kept_from_the_first_call_is_caught(judge: Judge, task: Task) -> None:
    body = "if (seen == N) { std::memcpy(out, kept, N*4); return; } " + LOOP + " seen = N; std::memcpy(kept, out, N*4);"
    found = verdict(judge, task, body, "static float kept[200000]; static int64_t seen;")
    assert found.status == "Cheated"
    assert found.rule == "answers kept between calls"


@pytest.mark.parametrize(
    ("body", "before", "rule"),
    [
        # Right for the first calls, which the checks make, and idle in the timed blocks.
        ("if (++calls > 40) return; " + LOOP, "static int calls;", "wrong when timed"),
        # Works on a thread that is still busy when the call returns.
        (
            "std::thread([=] { for (volatile int64_t i = 0; i < 3000000; ++i) {} " + LOOP + " }).detach();",
            "",
            None,
        ),
        # Recognises data by a few of its elements.
        (
            "if (x[0] == first && x[N / 2] == middle && N == seen) { std::memcpy(out, kept, N * 4);"
            "  for (int64_t i = 0; i < 4; ++i) total[i] += 1; return; } "
            + LOOP
            + " first = x[0]; middle = x[N / 2]; seen = N; std::memcpy(kept, out, N * 4);",
            "static float kept[200000], first, middle; static int64_t seen;",
            None,
        ),
    ],
)
def test_tricks_with_calls_and_time_are_caught(
    judge: Judge, task: Task, body: str, before: str, rule: str | None
) -> None:
    found = verdict(judge, task, body, before)
    assert found.status in ("Cheated", "Incorrect")
    if rule:
        assert found.status == "Cheated"
        assert found.rule == rule


def test_writing_to_buffers_of_another_call_is_out_of_bounds(judge: Judge, task: Task) -> None:
    # One set of buffers lies behind the other at the same distance as the next tensor's guard zones suggest.
    found = verdict(judge, task, LOOP + " if (N == 77) for (int i = 0; i < 77; ++i) (out + 2048)[i] = 0;")
    assert found.status == "Incorrect"
    assert found.rule in ("out-of-bounds write", "input changed")


@pytest.mark.parametrize(
    ("reference", "trivial"),
    [("return x * 0", "zeros"), ("return x + 1e-9 * y", "a copy of x"), ("return x * 0 + 2", "a constant")],
)
def test_workload_that_a_trivial_answer_passes_is_refused(
    tmp_path: Path, task: Task, reference: str, trivial: str
) -> None:
    (tmp_path / "reference.py").write_text(f"def reference(total, x, y):\n    {reference}\n")
    collapsed = task.model_copy(update={"folder": tmp_path})
    with (
        Toolchain(tmp_path) as toolchain,
        Judge(detect("cpu"), toolchain) as judge,
        pytest.raises(TaskError, match=f"{trivial} would pass"),
    ):
        judge.open(collapsed)


def test_candidates_judged_in_parallel_get_the_same_verdicts(judge: Judge, task: Task) -> None:
    wrong = LOOP.replace("x[i] + y[i]", "x[i] - y[i]")
    bodies = {"Passed": LOOP, "Incorrect": wrong, "BuildFailed": "no C++", "LaunchFailed": "std::abort();"}
    wanted = {candidate(body).id: status for status, body in bodies.items()}
    found = {j.candidate: j.verdict.status for j in judge.judge_all(task, [candidate(b) for b in bodies.values()])}
    assert found == wanted


def test_only_normal_contents_are_moved_about(judge: Judge, task: Task) -> None:
    """Of extreme ones PyTorch's own error changes with every move, and right kernels were refused now and then."""
    evidence = judge.open(task).evidence
    for workload in (*task.workloads, *task.held_out):
        first = (*evidence.timed.get(workload.name, ()), *evidence.checked[workload.name])[0]
        assert first.distribution in ("timed", "normal")


def test_duel_finds_which_of_two_kernels_is_faster(judge: Judge, task: Task) -> None:
    slow = candidate(f"for (volatile int i = 0; i < 300000; ++i) {{}} {LOOP}")
    found = judge.duel(task, candidate(LOOP), slow, rounds=6, processes=3)
    assert found.faster
    assert found.interval.low > 1.5
    assert not judge.duel(task, slow, candidate(LOOP), rounds=6, processes=3).faster


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("*(volatile int*)8 = 1;", "SIGSEGV"),
        ("std::abort();", "SIGABRT"),
        ("_exit(0);", "exited with code 0"),
        ("std::raise(SIGKILL);", "SIGKILL"),
        (
            "for (;;) { volatile char* p = new char[64 << 20]; p[0] = 1; }",
            "SIGABRT",
        ),
    ],
)
def test_crash_is_a_failed_launch(judge: Judge, task: Task, body: str, reason: str) -> None:
    found = verdict(judge, task, body)
    assert found.status == "LaunchFailed"
    assert reason in found.reason


def test_endless_loop_times_out_and_the_next_candidate_is_judged(judge: Judge, task: Task) -> None:
    start = time.monotonic()
    assert verdict(judge, task, 'for (;;) { out[0] += 1; asm volatile(""); }').status == "TimedOut"
    assert time.monotonic() - start < 10
    assert verdict(judge, task, LOOP).status == "Passed"


def test_children_die_with_their_worker(judge: Judge, task: Task) -> None:
    name = f"orphan{os.getpid()}"
    body = f'if (!fork()) {{ prctl(PR_SET_NAME, "{name}"); for (;;) pause(); }} ' + LOOP
    found = verdict(judge, task, body, "#include <sys/prctl.h>")
    assert found.status == "Cheated"
    assert found.rule == "work outside the call"
    time.sleep(0.2)
    left = [process for process in psutil.process_iter(["name", "status"]) if process.info["name"] == name]
    assert [process for process in left if process.info["status"] != psutil.STATUS_ZOMBIE] == []


def test_worker_sees_no_secret_of_the_environment(judge: Judge, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARPSMITH_TEST_KEY", "secret")
    body = 'if (getenv("WARPSMITH_TEST_KEY")) std::abort(); ' + LOOP
    assert verdict(judge, task, body).status == "Passed"


def test_text_that_does_not_compile_is_build_failed_with_the_compilers_message(judge: Judge, task: Task) -> None:
    found = verdict(judge, task, "return nonsense;")
    assert found.status == "BuildFailed"
    assert "nonsense" in found.log
    assert "kernel.cpp:8" in found.log


def test_wrong_plan_is_build_failed_with_its_line(judge: Judge, task: Task) -> None:
    found = verdict(judge, task, LOOP, "// workspace: 3*Q")
    assert found.status == "BuildFailed"
    assert "line 7: unknown name 'Q'" in found.log


def test_referee_that_dies_is_our_fault_and_not_the_candidates(tmp_path: Path, task: Task) -> None:
    with Toolchain(tmp_path) as toolchain, Judge(detect("cpu"), toolchain) as judge:
        room = judge.open(task)
        os.kill(room.referee.processes()[0], signal.SIGKILL)
        with pytest.raises(WorkerLost, match="SIGKILL"):
            judge.judge(task, candidate(LOOP))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def reference(total, x, y):\n    return x + y.missing\n", "AttributeError"),
    ],
)
def test_reference_that_fails_is_bad_input(tmp_path: Path, task: Task, text: str, reason: str) -> None:
    (tmp_path / "reference.py").write_text(text)
    with (
        Toolchain(tmp_path) as toolchain,
        Judge(detect("cpu"), toolchain) as judge,
        pytest.raises(TaskError, match=f"reference.py: {reason}"),
    ):
        judge.open(task.model_copy(update={"folder": tmp_path}))


def test_workload_on_which_pytorch_overflows_is_refused(tmp_path: Path, task: Task) -> None:
    (tmp_path / "reference.py").write_text("def reference(total, x, y):\n    return (x + y) * 1e30 * 1e30\n")
    with (
        Toolchain(tmp_path) as toolchain,
        Judge(detect("cpu"), toolchain) as judge,
        pytest.raises(TaskError, match="N100000 float32: the reference gives NaN or infinity in float32"),
    ):
        judge.open(task.model_copy(update={"folder": tmp_path}))


def test_everything_dies_with_a_killed_host(tmp_path: Path, task: Task) -> None:
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from sandbox.contract import Task
        from sandbox.devices import detect
        from sandbox.judge import Judge
        from sandbox.toolchain import Toolchain
        with Toolchain(Path(sys.argv[2])) as toolchain, Judge(detect("cpu"), toolchain) as judge:
            judge.open(Task.model_validate_json(sys.argv[1]))
            print("open", flush=True)
            time.sleep(100)
    """)
    root = str(Path(__file__).parents[2])
    host = subprocess.Popen(
        [sys.executable, "-c", script, task.model_dump_json(), str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert host.stdout is not None
    assert host.stdout.readline() == b"open\n"
    children = psutil.Process(host.pid).children(recursive=True)
    assert children
    host.kill()
    host.wait()
    host.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []


def test_candidate_of_the_same_text_or_the_same_code_gets_the_verdict_of_its_twin(tmp_path: Path, task: Task) -> None:
    with Toolchain(tmp_path) as toolchain, Judge(detect("cpu"), toolchain, reuse=True) as judge:
        first = judge.judge(task, candidate(LOOP))
        second = judge.judge(task, candidate(f"  // the same\n {LOOP} /* again */"))
        third = judge.judge(task, candidate(LOOP.replace("y[i]", "(y)[i]")))
        fourth = judge.judge(task, candidate(LOOP.replace("y[i]", "y[i] + 0.0f")))
    assert second.verdict == third.verdict == first.verdict
    assert second.duplicate_of == third.duplicate_of == first.candidate
    assert len({first.candidate, second.candidate, third.candidate}) == 3
    assert fourth.duplicate_of is None
