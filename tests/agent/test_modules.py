"""PyTorch modules as tasks for kernels of the contract: what is derived of each, and recorded replies that pass."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from agent import checking, session, steps, tasks
from agent.engineer.engineer import Desk, Engineer, Writer
from agent.engineer.reply import read_source
from agent.importing import Imported, read
from agent.models import prices
from agent.models.command import Command
from agent.models.ledger import Ledger
from agent.models.recording import Recorded
from archive import Archive, Run
from sandbox.contract import Candidate, Incorrect, Judgement, Passed, Task
from sandbox.devices import detect
from sandbox.errors import BadInput, TaskError
from sandbox.judge import Judge
from sandbox.launch import choose
from sandbox.referee import oracle
from sandbox.referee.batching import sizes
from sandbox.signature import shape_of
from sandbox.toolchain import Toolchain

MODULES = Path(__file__).parent / "modules"
ANSWER = shlex.join([sys.executable, str(Path(__file__).parent / "answer.py")])
"""A program that answers from the replies beside the modules."""
REPAIRED = {path.name.split(".")[0] for path in MODULES.glob("*.repair.md")}
"""Modules whose first reply is wrong."""


class Derived(NamedTuple):
    """What is wanted of a module: parameters before the axis, outputs' shapes, batch sizes of its own and held out."""

    parameters: str
    outputs: tuple[str, ...]
    size: int = 0
    held_out: tuple[int, ...] = ()
    axis: str = "B"
    mode: str = "train"


def f(*names: str) -> str:
    return ", ".join(f"const scalar_t* {name}" for name in names)


WANTED = {
    "scaled_relu_add": Derived(f("x", "y"), ("B, 512",), 64, (1, 49, 32)),
    "gelu_tanh": Derived(f("x"), ("B, 1024",), 32, (1, 25, 16)),
    "masked_scale": Derived(f("x") + ", const uint8_t* mask", ("B, 256",), 32, (1, 25, 16)),
    "row_sum": Derived(f("x"), ("B, 1, 64",), 48, (1, 37, 24)),
    "column_mean": Derived(f("x"), ("256",), 128, (1, 97, 64)),
    "row_argmax": Derived(f("x"), ("B", "B"), 64, (1, 49, 32)),
    "softmax": Derived(f("x"), ("B, 1000",), 64, (1, 49, 32)),
    "cross_entropy": Derived(f("logits") + ", const int64_t* target", ("1",), 64, (1, 49, 32)),
    "layer_norm": Derived(f("x", "norm_weight", "norm_bias"), ("B, 16, 384",), 32, (1, 25, 16)),
    "rms_norm": Derived(f("x", "weight"), ("B, 512",), 96, (1, 73, 48)),
    "batch_norm_relu": Derived(f("x", "norm_weight", "norm_bias"), ("B, 128",), 64, (49, 32)),
    "group_norm": Derived(f("x", "norm_weight", "norm_bias"), ("B, 32, 64",), 16, (1, 13, 8)),
    "square_matmul": Derived(f("A", "B"), ("batch, 96",), 96, (1, 73, 48), axis="batch"),
    "gemm_bias_gelu": Derived(f("x", "linear_weight", "linear_bias"), ("B, 192",), 64, (1, 49, 32)),
    "gemm_residual": Derived(f("x", "weight"), ("B, 160",), 64, (1, 49, 32)),
    "gemm_dropout": Derived(f("x", "linear_weight", "linear_bias"), ("B, 64",), 64, (1, 49, 32), mode="eval"),
    "causal_attention": Derived(f("q", "k", "v") + ", const uint8_t* seen", ("B, 48, 32",), 8, (1, 7, 4)),
    "self_attention": Derived(f("x", "qkv_weight", "out_weight", "out_bias"), ("16*B, 64",), 4, (1, 3, 2)),
    "gated_mlp": Derived(f("x", "gate_weight", "up_weight", "down_weight"), ("B, 96",), 32, (1, 25, 16)),
    "recurrent_state": Derived(f("x", "cell_weight", "cell_bias", "state"), ("24, 80",)),
    "conv_relu_pool": Derived(f("x", "conv_weight", "conv_bias"), ("B, 8, 8, 8",), 6, (1, 5, 3)),
    "rms_norm_swiglu": Derived(f("x", "norm_weight", "gate_weight", "up_weight"), ("B, 12, 128",), 4, (1, 3, 2)),
    "residual_mlp": Derived(
        f("x", "norm_weight", "norm_bias", "inner_weight", "inner_bias", "outer_weight", "outer_bias"),
        ("B, 64",),
        32,
        (1, 25, 16),
    ),
    "masked_cumsum": Derived(f("x") + ", const uint8_t* mask", ("B, 200",), 24, (1, 19, 12)),
    "huber_loss": Derived(f("predictions", "targets"), ("1",), 32, (1, 25, 16)),
}


@pytest.fixture(autouse=True, scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@cache
def imported(name: str) -> Imported:
    """Each module is run once for all the tests that want its task."""
    return read(Path(path_of(name)), "cpu")


def warpsmith(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, in the test's empty folder."""
    variables = {**os.environ, "PYTHONPATH": str(tasks.bundled().parent), "XDG_DATA_HOME": str(Path.cwd())}
    command = [sys.executable, "-m", "agent", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300, check=False)


def path_of(name: str) -> str:
    return str(MODULES / f"{name}.py")


def test_every_module_is_wanted() -> None:
    assert WANTED.keys() == {path.stem for path in MODULES.glob("*.py")}


@pytest.mark.parametrize("name", WANTED)
def test_module_becomes_a_task_whose_inputs_can_be_drawn_at_every_size(name: str) -> None:
    wanted, made = WANTED[name], imported(name)
    found = checking.checked(made.task, why_fixed=made.why_fixed)
    axis = f"int64_t {wanted.axis}, " if wanted.size else ""
    assert f", {wanted.parameters}, {axis}void* workspace)" in found.prototype
    assert found.prototype.startswith(f'extern "C" void {name}(')
    assert tuple(", ".join(p.shape) for p in found.parameters if p.role == "output") == wanted.outputs
    assert found.axes == ((wanted.axis,) if wanted.size else ())
    spelt = f"{wanted.axis}{wanted.size} float32" if wanted.size else "float32"
    assert [size.name for size in found.workloads] == [spelt]
    assert [size.name for size in found.held_out] == [f"{wanted.axis}{size} float32" for size in wanted.held_out]
    assert all(0 < size.floor_bytes <= size.held_bytes for size in (*found.workloads, *found.held_out))
    assert found.mode.startswith(wanted.mode)
    assert bool(found.why_fixed) == (not wanted.size)
    assert_drawn_at_every_size(made.task)


def assert_drawn_at_every_size(task: Task) -> None:
    module = oracle.load_reference(task)
    for seed, workload in enumerate((*task.workloads, *task.held_out)):
        values = module.draw(seed, "normal", "cpu", workload.axes)
        assert [tuple(value.shape) for value in values] == [shape_of(spec, workload) for spec in task.inputs]
        wanted = oracle.expected(task, module, values, workload)
        assert [tuple(value.shape) for value in wanted] == [shape_of(spec, workload) for spec in task.outputs]
        reached = oracle.achieved(task, module.reference, values, workload)
        assert all(oracle.distance(got, want)[0] < 1e-4 for got, want in zip(reached, wanted, strict=True))


def test_rows_of_a_larger_batch_are_all_different() -> None:
    module = oracle.load_reference(imported("softmax").task)
    drawn = module.draw(1, "normal", "cpu", {"B": 150})[0]
    assert drawn.shape == (150, 1000)
    assert len({tuple(row[:4].tolist()) for row in drawn}) == 150


def test_state_of_the_module_is_an_input_that_is_drawn_anew() -> None:
    task = imported("recurrent_state").task
    module = oracle.load_reference(task)
    first, other = (module.draw(seed, "normal", "cpu", {})[-1] for seed in (1, 2))
    assert not bool((first == other).any())
    assert module.rigid == (3,)


def test_sizes_are_one_an_odd_one_and_half() -> None:
    assert [sizes(n) for n in (1, 2, 3, 4, 16, 64)] == [[3, 2], [1, 3], [1, 5, 2], [1, 3, 2], [1, 13, 8], [1, 49, 32]]


def test_batch_is_part_of_the_version(tmp_path: Path) -> None:
    text = Path(path_of("softmax")).read_text()
    (tmp_path / "softmax.py").write_text(text)
    before = read(tmp_path / "softmax.py", "cpu").task.version
    assert read(tmp_path / "softmax.py", "cpu", kernels=False).task.version != before
    (tmp_path / "softmax.py").write_text(text.replace("64", "80"))
    assert read(tmp_path / "softmax.py", "cpu").task.version != before


# ---------------------------------------------------------------- files that cannot be tasks

HEAD = "import torch\nfrom torch import nn\n\nclass Model(nn.Module):\n    def forward(self, {}):\n        {}\n\n"
TAIL = "def get_inputs():\n    return [{}]\n\ndef get_init_inputs():\n    return []\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\n", "no Model, get_inputs, get_init_inputs; wanted class Model"),
        (HEAD.format("x", "return x"), "no get_inputs, get_init_inputs; wanted"),
        ("import torch\n\nimport nowhere\n", "line 3: ModuleNotFoundError: No module named 'nowhere'"),
        ("import torch\n\ndef (:\n", "line 3: SyntaxError"),
        (HEAD.format("x", "return {'y': x}") + TAIL.format("torch.randn(4, 8)"), "returned a dict; wanted a tensor"),
        (HEAD.format("x", "return x[x > 0]") + TAIL.format("torch.randn(64, 8)"), "wanted the same each time"),
        (HEAD.format("x", "return torch.rand_like(x)") + TAIL.format("torch.randn(4, 8)"), "other answers to the same"),
        (HEAD.format("x", "return x.cdouble()") + TAIL.format("torch.randn(4, 8)"), "an output is complex128, wanted"),
        (HEAD.format("x", "return x @ x") + TAIL.format("torch.randn(4, 8)"), "line 6: RuntimeError: mat1 and mat2"),
    ],
)
def test_file_that_is_no_task_says_why(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "file.py").write_text(text)
    with pytest.raises(TaskError) as caught:
        checking.check(str(tmp_path / "file.py"), "cpu")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("forward", "inputs", "why"),
    [
        ("x.reshape(64, 8)", "torch.randn(64, 8)", "with 32 rows in place of 64: RuntimeError: shape '[64, 8]'"),
        ("x[:40]", "torch.randn(64, 8)", "with 32 rows in place of 64: an output is [32, 8] where it was [40, 8]"),
        ("x.sum(1, keepdim=True)", "torch.randn(8, 8).tril()", "argument 0 has a structure"),
        ("x.repeat(2, 1)[1:]", "torch.randn(64, 8)", "an output is [97, 8] where it was [127, 8]"),
        ("3 * x", "torch.randn(())", "no input has a dimension"),
    ],
)
def test_batch_that_is_no_axis_says_why(tmp_path: Path, forward: str, inputs: str, why: str) -> None:
    (tmp_path / "file.py").write_text(HEAD.format("x", f"return {forward}") + TAIL.format(inputs))
    found = checking.check(str(tmp_path / "file.py"), "cpu")
    assert why in found.why_fixed
    assert (found.axes, found.held_out) == ((), ())


def test_names_that_c_has_taken_are_changed(tmp_path: Path) -> None:
    text = HEAD.format("out, double, workspace, B", "return out + double + workspace + B")
    (tmp_path / "7_tanh_.py").write_text(text + TAIL.format("*[torch.randn(4, 8) for _ in range(4)]"))
    found = checking.check(str(tmp_path / "7_tanh_.py"), "cpu")
    assert f"tanh_task(scalar_t* out, {f('out_0', 'double_1', 'workspace_2', 'B')}, int64_t batch," in found.prototype


# ---------------------------------------------------------------- the command line


def test_check_prints_what_was_derived_and_exits_with_2_where_nothing_was(tmp_path: Path) -> None:
    done = warpsmith("tasks", "check", path_of("rms_norm"), "--target", "cpu")
    assert done.returncode == 0, done.stderr
    assert (
        'extern "C" void rms_norm(scalar_t* out, const scalar_t* x, const scalar_t* weight, int64_t B,' in done.stdout
    )
    assert "B73 float32" in done.stdout
    shown = warpsmith("tasks", "check", "layernorm", "--target", "cuda", "--json")
    assert 'extern "C" __global__ void layernorm(' in json.loads(shown.stdout)["prototype"]
    (tmp_path / "file.py").write_text("x = 1\n")
    refused = warpsmith("tasks", "check", str(tmp_path / "file.py"), "--target", "cpu")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "wanted class Model(nn.Module)" in refused.stderr


def test_run_without_a_kernel_says_how_to_give_one() -> None:
    done = warpsmith("run", "--task", path_of("softmax"), "--target", "cpu")
    assert done.returncode == 2
    assert (
        "has no seed kernels: give some with --seed-kernel FILE, or a model that writes them with --model NAME"
        in done.stderr
    )
    assert done.stderr.count("\n") == 1


def test_own_kernels_come_before_those_of_the_task(toy_folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.cpp"
    own.write_text((toy_folder / "cpu" / "1_plain.cpp").read_text())
    task = tasks.load(str(toy_folder), "cpu")
    assert [seed.note for seed in tasks.seeds(task, [own])][:2] == ["mine.cpp", "1_plain.cpp"]
    suitable, _ = session.suitable(task, detect("cpu"), [own])
    assert suitable[0].note == "mine.cpp"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("mine.cu", "x", r"wanted a \.cpp file"),
        ("1_plain.cpp", "x", "2 seeds are called 1_plain.cpp"),
        ("gone.cpp", None, "no file"),
        ("mine.cpp", "int x;\n", "has no function toy"),
    ],
)
def test_own_kernel_that_cannot_be_used_is_bad_input(
    toy_folder: Path, tmp_path: Path, name: str, text: str | None, reason: str
) -> None:
    if text:
        (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=reason):
        tasks.seeds(tasks.load(str(toy_folder), "cpu"), [tmp_path / name])


# ---------------------------------------------------------------- recorded replies


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    launcher, _ = choose("local")
    with pytest.MonkeyPatch.context() as patch:
        # Its compiler would take longer than everything else here, and nobody looks at what it is compared with.
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        with (
            Toolchain(tmp_path_factory.mktemp("builds"), launcher=launcher) as toolchain,
            Judge(detect("cpu"), toolchain, launcher) as judge,
        ):
            yield judge
    launcher.close()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with Archive.open(tmp_path_factory.mktemp("archive") / "a.db") as archive:
        yield archive


def engineer(task: Task, archive: Archive, run: Run) -> Engineer:
    """With nobody to ask but the program."""
    writer = Writer(Recorded(Command(ANSWER), archive, run.id, prices.FREE), prices.FREE, 0)
    return Engineer(
        Desk(
            task=task,
            seeds=[],
            device=detect("cpu"),
            rng_seed=0,
            archive=archive,
            run_id=run.id,
            writers=[writer],
            ledger=Ledger(Decimal(1)),
            budget_evals=4,
            report=lambda event: None,
        )
    )


def proposed_and_judged(judge: Judge, archive: Archive, task: Task, count: int) -> list[tuple[Candidate, Judgement]]:
    run = Run(task=task.name, task_version=task.version, target="cpu", device=detect("cpu").name, rng_seed=0)
    archive.start_run(run)
    thinker = engineer(task, archive, run)
    for _ in range(count):
        (made,) = thinker.propose([(c, j.verdict) for c, j in steps.trajectory(archive, run.id)], 1)
        archive.add(made)
        archive.record(judge.judge(task, made), run.id)
    return steps.trajectory(archive, run.id)


def source_of(name: str) -> str:
    source = read_source((MODULES / f"{name}.md").read_text(), imported(name).task, None, "stop")
    assert isinstance(source, str), source
    return source


def test_there_is_a_reply_for_every_module() -> None:
    assert len(WANTED) >= 20
    assert {path.name.split(".")[0] for path in MODULES.glob("*.md")} == WANTED.keys()
    assert len(REPAIRED) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", WANTED)
def test_module_is_translated_by_its_recorded_reply(judge: Judge, archive: Archive, name: str) -> None:
    """What does not pass at once is repaired, by the reply to a prompt that says what was wrong."""
    task = imported(name).task
    judged = proposed_and_judged(judge, archive, task, 2 if name in REPAIRED else 1)
    assert [candidate.operator for candidate, _ in judged] == ["translate", "repair"][: len(judged)]
    verdict = judged[-1][1].verdict
    assert isinstance(verdict, Passed), verdict
    assert {check.workload for check in verdict.checks} == {w.name for w in (*task.workloads, *task.held_out)}
    assert "eager" in verdict.speedup
    refused = [judgement.verdict.status for _, judgement in judged[:-1]]
    assert refused == {"masked_scale": ["BuildFailed"], "group_norm": ["Incorrect"]}.get(name, [])


@pytest.mark.slow
def test_kernel_that_only_knows_the_size_of_the_file_fails_on_a_held_out_one(judge: Judge) -> None:
    task = imported("rms_norm").task
    source = source_of("rms_norm").replace("b < B;", "b < (B < 96 ? B / 2 : B);")
    only = Candidate(task=task.name, target="cpu", source=source, operator="import", proposer="file")
    verdict = judge.judge(task, only).verdict
    assert isinstance(verdict, Incorrect), verdict
    assert verdict.workload in {workload.name for workload in task.held_out}


@pytest.mark.slow
def test_run_starts_from_the_users_kernel_and_composes_it(tmp_path: Path) -> None:
    (tmp_path / "mine.cpp").write_text(source_of("rms_norm"))
    arguments = ["--task", path_of("rms_norm"), "--seed-kernel", str(tmp_path / "mine.cpp"), "--sandbox", "local"]
    budget = ["--budget-evals", "2", "--archive", str(tmp_path / "a.db"), "--out", str(tmp_path / "out")]
    done = warpsmith("run", *arguments, "--target", "cpu", *budget, "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["winners"].keys() == {"B96 float32"}
    assert outcome["ok"], outcome["message"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "verdicts"), [("huber_loss", {"Passed": 1}), ("group_norm", {"Passed": 1, "Incorrect": 1})]
)
def test_run_translates_a_module_with_recorded_replies(tmp_path: Path, name: str, verdicts: dict[str, int]) -> None:
    places = ["--archive", str(tmp_path / "a.db"), "--out", str(tmp_path / "out"), "--sandbox", "local"]
    budget = ["--budget-evals", str(sum(verdicts.values())), "--budget-seconds", "1000"]
    done = warpsmith("run", "--task", path_of(name), "--target", "cpu", "--command", ANSWER, *places, *budget, "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["verdicts"], outcome["ok"]) == (verdicts, True), outcome
    assert outcome["leaderboard"][0]["operator"] == ("repair" if "Incorrect" in verdicts else "translate")
