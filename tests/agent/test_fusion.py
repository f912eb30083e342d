"""Tasks of several parts: the unfused pair before the real judge, and what comes of kernels that a model fused."""

from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path

import pytest

from agent import fusion, pair, parts, steps, tasks, words
from agent.config import Budget
from agent.engineer.engineer import Desk, Engineer, Writer
from agent.engineer.prototypes import definition_fault
from agent.engineer.records import Message
from agent.models import prices
from agent.models.endpoint import Failed, Reply
from agent.models.ledger import Ledger
from agent.models.recording import Recorded
from agent.pair import NoPair
from agent.parts import Chain
from agent.steps import Clients, Composition, Event, Judged, Unused
from archive import Archive, Run
from sandbox import plan as launch_plan
from sandbox.contract import BuildFailed, Candidate, Interval, Passed, Target, Task, Verdict
from sandbox.devices import cross, detect
from sandbox.errors import TaskError
from sandbox.judge import Duel, Judge
from sandbox.launch import choose
from sandbox.toolchain import Toolchain
from tests.agent.engineer.test_engineer import ScriptedModel
from tests.agent.test_graph import CPU, ScriptedJudge

TASK = """\
name = "{name}"
summary = "{summary}"
axes = {axes}
bytes = "N*4"
flops = "N"
outputs = [{{ name = "out", shape = {out} }}]
inputs = [{{ name = "x", shape = {x} }}{more}]
scalars = [{{ name = "a", type = "float" }}]

[cpu]
workloads = [ {{ axes = {sizes}, scalars = {{ a = 2.5 }} }}, {{ axes = {other}, scalars = {{ a = 0.5 }} }} ]
held_out = [ {{ axes = {odd}, scalars = {{ a = -1.0 }} }} ]
"""
SCALE = """\
// The product by way of the workspace, which is cleared first.
// workspace: N*itemsize
// zero: workspace
#include <algorithm>
#ifndef STEP
#define STEP 4  // tune: 1 2 4
#endif
#define TWICE 2
static float product(float a, float x) { return a * x; }
extern "C" void scale(float* out, const float* x, int64_t N, float a, void* workspace) {
    float* sums = static_cast<float*>(workspace);
    for (int64_t i = 0; i < N; i += STEP)
        for (int64_t j = i; j < std::min<int64_t>(N, i + STEP); ++j) sums[j] += product(a, x[j]);
    std::copy(sums, sums + N, out);
}
"""
MEANS = """\
// A row at a time; its length is known to the compiler.
// static: D
#include <cmath>
#ifndef STEP
#define STEP 1  // tune: 1 2
#endif
#define TWICE 4
namespace {
constexpr int64_t product = STATIC_D;
}
extern "C" void means(float* out, const float* x, const float* w, int64_t N, int64_t D, float a, void* workspace) {
    for (int64_t n = 0; n < N; ++n) {
        double sum = 0;
        for (int64_t d = 0; d < product; ++d) sum += double(x[n * D + d]) * w[d];
        out[n] = float(sum / product) + a;
    }
}
"""
SCALED_MEANS = """\
// {name}
extern "C" void scaled_means(float* out, const float* x, const float* w, int64_t B, int64_t H, int64_t S, int64_t D,
                             float a, void* workspace) {{
    for (int64_t b = 0; b < B; ++b)
        for (int64_t s = 0; s < S; ++s) {{
            double sum = 0;
            for (int64_t h = 0; h < H; ++h)
                for (int64_t d = 0; d < D; ++d) sum += double(a * x[((b * H + h) * S + s) * D + d]) * w[h * D + d];
            out[b * S + s] = float(sum / (H * D)) + a + 0 * {number};
        }}
}}
"""
PARTS = """\
between = { scaled = ["B", "H", "S", "D"] }

[[parts]]
task = "scale"
axes = { N = "B*H*S*D" }
tensors = { out = "scaled" }

[[parts]]
task = "means"
axes = { N = "B*S", D = "H*D" }
tensors = { x = "scaled" }
permute = { x = [0, 2, 1, 3] }
"""


def fused(number: int) -> str:
    return f"```cpp\n{SCALED_MEANS.format(name=f'fused {number}', number=number)}```"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tasks: `scaled_means` is `scale`, then `means` of its joined heads."""
    root = tmp_path / "seeds"
    weights = ', { name = "w", shape = ["D"] }'
    joined = weights.replace('["D"]', '["H*D"]')
    sizes = ("{ N = 512 }", "{ N = 96 }", "{ N = 7 }")
    rows = ("{ N = 24, D = 16 }", "{ N = 8, D = 48 }", "{ N = 5, D = 7 }")
    heads = ("{ B = 2, H = 3, S = 8, D = 16 }", "{ B = 1, H = 2, S = 4, D = 24 }", "{ B = 3, H = 1, S = 5, D = 7 }")
    _write(root / "scale", TASK, SCALE, "a*x", '["N"]', '["N"]', '["N"]', "", sizes)
    _write(root / "means", TASK, MEANS, "x@w/x.shape[1]+a", '["N", "D"]', '["N"]', '["N", "D"]', weights, rows)
    reference = "(a*x).transpose(1,2).flatten(2)@w/(x.shape[1]*x.shape[3])+a"
    axes = '["B", "H", "S", "D"]'
    seed = SCALED_MEANS.format(name="1: one loop", number=0)
    _write(
        root / "scaled_means",
        TASK.replace("N*4", "B*4").replace('"N"', '"B"'),
        seed,
        reference,
        axes,
        '["B", "S"]',
        axes,
        joined,
        heads,
    )
    (root / "scaled_means" / "parts.toml").write_text(PARTS)
    return root


def _write(
    folder: Path, toml: str, kernel: str, reference: str, axes: str, out: str, x: str, more: str, sizes: tuple[str, ...]
) -> None:
    (folder / "cpu").mkdir(parents=True)
    given = dict(zip(("sizes", "other", "odd"), sizes, strict=True))
    text = toml.format(name=folder.name, summary=folder.name, axes=axes, out=out, x=x, more=more, **given)
    (folder / "task.toml").write_text(text)
    arguments = "x, w" if more else "x"
    (folder / "reference.py").write_text(f"def reference({arguments}, *, a):\n    return {reference}\n")
    (folder / "cpu" / "1_plain.cpp").write_text(kernel)


def seed(folder: Path, name: str) -> Candidate:
    return tasks.seeds(tasks.load(str(folder / name), "cpu"))[0]


def chain_of(task: Task) -> Chain:
    found = parts.read(task)
    assert found is not None
    return found


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_parts_of_the_bundled_task_fit(target: Target) -> None:
    chain = chain_of(tasks.load("attention_layernorm", target))
    assert [piece.task.name for piece in chain.pieces] == ["attention", "layernorm"]
    assert {name: tensor.shape for name, tensor in chain.between.items()} == {"heads": ("B", "H", "S", "D")}


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("name", "wanted", "between"),
    [
        ("kv_cache", ["kv_append", "decode_attention"], {}),
        ("mlp", ["swiglu", "linear"], {"hidden": ("M", "N")}),
    ],
)
def test_parts_of_tasks_with_in_outs_and_with_swapped_axes_fit(
    name: str, target: Target, wanted: list[str], between: dict[str, tuple[str, ...]]
) -> None:
    chain = chain_of(tasks.load(name, target))
    assert [piece.task.name for piece in chain.pieces] == wanted
    assert {name: tensor.shape for name, tensor in chain.between.items()} == between


def test_other_tasks_have_no_parts() -> None:
    assert parts.read(tasks.load("vector_add", "cpu")) is None


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"scale"', '"scales"', "unknown task 'scales'"),
        ("B*H*S*D", "B*H*S", r"its out is \[48\] where scaled is \[2, 3, 8, 16\], on B2 H3 S8 D16 float32"),
        ("B*H*S*D", "B*K", "its axis N is made of K, which is no axis of scaled_means"),
        ('out = "scaled"', 'y = "scaled"', "it has no y, named under tensors"),
        ('x = "scaled"', 'x = "other"', "its x is other, which is no tensor of scaled_means and of no earlier part"),
        ("[0, 2, 1, 3]", "[0, 2, 1]", r"permute: x = \[0, 2, 1\], wanted dimensions \[0, 1, 2, 3\]"),
        ("permute", "transpose", "Extra inputs are not permitted"),
        ('x = "scaled" }', 'x = "scaled", out = "sums" }', "no part writes out"),
        ('out = "scaled"', 'out = "x"', "it writes out, which is x, an input of scaled_means"),
        ("[[parts]]", "[[part]]", "parts"),
        ('"H", "S", "D"]', '"H", "S"]', r"its out is \[768\] where scaled is \[2, 3, 8\], on B2"),
    ],
)
def test_parts_that_do_not_fit_say_why(folder: Path, old: str, new: str, reason: str) -> None:
    (folder / "scaled_means" / "parts.toml").write_text(PARTS.replace(old, new))
    with pytest.raises(TaskError, match=reason):
        parts.read(tasks.load(str(folder / "scaled_means"), "cpu"))


# ---------------------------------------------------------------- the pair


@pytest.mark.slow
def test_pair_of_kernels_with_the_same_names_in_them_passes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have a macro, a tunable and a function of one name; one needs a cleared workspace, one a static axis."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    task = tasks.load(str(folder / "scaled_means"), "cpu")
    kernels = [seed(folder, "scale").model_copy(update={"tunables": {"STEP": 2}}), seed(folder, "means")]
    unfused = pair.unfused(task, chain_of(task), kernels)
    launcher, _ = choose("local")
    with (
        Toolchain(tmp_path / "builds", launcher=launcher) as toolchain,
        Judge(detect("cpu"), toolchain, launcher) as judge,
    ):
        verdict = judge.judge(task, unfused).verdict
        assert isinstance(verdict, Passed), verdict
        assert judge.duel(task, seed(folder, "scaled_means"), unfused, rounds=2, processes=1).interval.ratio > 0
    launcher.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kv_cache", "mlp"])
def test_pair_of_bundled_kernels_passes_and_a_fused_kernel_is_weighed_against_it(
    name: str, tmp_path: Path, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caches that are changed in place by the first and read by the second; axes that swap their names."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    task = tasks.load(name, "cpu")
    task = task.model_copy(update={"workloads": task.held_out[1:2], "held_out": task.held_out[2:]})
    chain = chain_of(task)
    kernels = [tasks.seeds(piece.task)[1] for piece in chain.pieces]
    for kernel in kernels:
        archive.add(kernel)
    unfused = pair.unfused(task, chain, kernels)
    fused = tasks.seeds(task)[1].model_copy(
        update={"operator": "compose", "proposer": "scripted", "parents": unfused.parents}
    )
    launcher, _ = choose("local")
    with (
        Toolchain(tmp_path / "builds", launcher=launcher) as toolchain,
        Judge(detect("cpu"), toolchain, launcher) as judge,
    ):
        verdict = judge.judge(task, unfused).verdict
        weighed = fusion.weighed(judge, task, fused, judge.judge(task, fused), archive)
    launcher.close()
    assert isinstance(verdict, Passed), verdict
    assert isinstance(weighed.verdict, Passed)
    against = weighed.verdict.against
    assert against is not None
    assert (against.pair, against.speedup is not None) == (unfused.id, True)
    assert fusion.kept(weighed) == against.faster


def test_prompt_is_told_what_is_changed_in_place() -> None:
    task = tasks.load("kv_cache", "cpu")
    assert pair.glue_words(task, chain_of(task)) == [
        "`k_cache` [B, Hkv, L, D] is changed in place by kv_append.",
        "`v_cache` [B, Hkv, L, D] is changed in place by kv_append.",
    ]


def test_pair_says_what_it_is_and_what_lies_between(folder: Path) -> None:
    task = tasks.load(str(folder / "scaled_means"), "cpu")
    kernels = [seed(folder, "scale"), seed(folder, "means")]
    unfused = pair.unfused(task, chain_of(task), kernels)
    assert unfused.parents == tuple(kernel.id for kernel in kernels)
    assert unfused.note == f"scale {kernels[0].id[:10]}, then means {kernels[1].id[:10]}, unfused"
    assert (unfused.operator, unfused.proposer) == ("compose", pair.PROPOSER)
    assert pair.glue_words(task, chain_of(task)) == [
        "`scaled` [B, H, S, D] goes from one part to the next.",
        "`x` [N, D] of means is `scaled` laid out as [B, S, H, D].",
    ]


def test_kernels_that_do_not_go_into_one_file_say_why(folder: Path) -> None:
    task = tasks.load(str(folder / "scaled_means"), "cpu")
    chain, kernels = chain_of(task), [seed(folder, "scale"), seed(folder, "means")]
    block = kernels[0].model_copy(update={"source": SCALE.replace('extern "C" void', 'extern "C" { void') + "}"})
    with pytest.raises(NoPair, match='a block of extern "C"'):
        pair.unfused(task, chain, [block, kernels[1]])


@pytest.mark.parametrize(("arch", "seeds"), [("sm_80", (1, 0)), ("sm_90a", (2, 1)), ("sm_90a", (3, 1))])
def test_pair_of_bundled_kernels_compiles_for_gpus(tmp_path: Path, arch: str, seeds: tuple[int, int]) -> None:
    """Kernels with tensor maps, with two launches and with static axes; no GPU has run them."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs the extra [cuda]")
    task = tasks.load("attention_layernorm", "cuda")
    chain = chain_of(task)
    kernels = [tasks.seeds(piece.task)[at] for piece, at in zip(chain.pieces, seeds, strict=True)]
    unfused = pair.unfused(task, chain, kernels)
    plan = launch_plan.parse(unfused.source, task)
    own = [launch_plan.parse(kernel.source, piece.task) for kernel, piece in zip(kernels, chain.pieces, strict=True)]
    assert [launch.kernel for launch in plan.launches] == [
        *(f"part_1_{launch.kernel}" for launch in own[0].launches),
        "glue_turned_2_x",
        *(f"part_2_{launch.kernel}" for launch in own[1].launches),
    ]
    assert not definition_fault(unfused.source, task, plan)
    with Toolchain(tmp_path / "builds") as toolchain:
        macros = launch_plan.macros(task, plan, task.workloads[0], {})
        built = toolchain.build(unfused.source, "cuda", macros, arch)
    assert {kernel.kernel for kernel in built.kernels} == {launch.kernel for launch in plan.launches}


@pytest.mark.parametrize("arch", ["sm_86", "sm_90a"])
@pytest.mark.parametrize("name", ["kv_cache", "mlp"])
def test_pair_of_kernels_with_in_outs_or_swapped_axes_compiles_for_gpus(tmp_path: Path, name: str, arch: str) -> None:
    """The workspace of flash decoding depends on the device, which the last part's may; no GPU has run them."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs the extra [cuda]")
    task = tasks.load(name, "cuda")
    chain = chain_of(task)
    unfused = pair.unfused(task, chain, [tasks.seeds(piece.task)[1] for piece in chain.pieces])
    plan = launch_plan.parse(unfused.source, task)
    assert not definition_fault(unfused.source, task, plan)
    assert launch_plan.resolve(plan, task, task.workloads[0], {}, cross(arch)).launches
    with Toolchain(tmp_path / "builds") as toolchain:
        macros = launch_plan.macros(task, plan, task.workloads[0], {})
        built = toolchain.build(unfused.source, "cuda", macros, arch)
    assert {kernel.kernel for kernel in built.kernels} == {launch.kernel for launch in plan.launches}


# ---------------------------------------------------------------- in a run


class DuellingJudge(ScriptedJudge):
    """Every duel ends as `outcome` says; who fought whom is remembered."""

    def __init__(self, speed: Callable[[Candidate], tuple[float, ...] | Verdict], outcome: Duel) -> None:
        super().__init__(speed)
        self.outcome = outcome
        self.duels: list[tuple[str, str]] = []

    def duel(self, task: Task, challenger: Candidate, champion: Candidate) -> Duel:
        self.duels.append((challenger.id, champion.id))
        return self.outcome


FASTER = Duel(Interval(ratio=1.23, low=1.18, high=1.29), faster=True, rounds=12)
SLOWER = Duel(Interval(ratio=1.01, low=0.97, high=1.05), faster=False, rounds=12)


class Workshop:
    """A run on the fused task, on an archive that may know kernels of its parts, and a model with scripted answers."""

    def __init__(self, folder: Path, archive: Archive, answers: list[str], outcome: Duel = FASTER) -> None:
        self.folder, self.archive = folder, archive
        self.task = tasks.load(str(folder / "scaled_means"), "cpu")
        self.judge = DuellingJudge(self.speed, outcome)
        self.model = ScriptedModel(answers)
        self.events: list[Event] = []
        self.run = Run(task=self.task.name, task_version=self.task.version, target="cpu", device=CPU.name, rng_seed=0)

    def speed(self, candidate: Candidate) -> tuple[float, ...] | Verdict:
        if "broken" in candidate.source:
            return BuildFailed(log="error: broken")
        return (2.0, 2.0) if "fused" in candidate.source else (4.0, 4.0)

    def with_parts_judged(self) -> "Workshop":
        for name in ("scale", "means"):
            known = seed(self.folder, name)
            self.archive.add(known)
            self.archive.record(self.judge.judge(tasks.load(str(self.folder / name), "cpu"), known))
        return self

    def search(self, evals: int) -> list[Judged]:
        self.archive.start_run(self.run)
        writer = Writer(Recorded(self.model, self.archive, self.run.id, prices.FREE), prices.FREE, 0)
        seeds = tasks.seeds(self.task)
        desk = Desk(
            task=self.task,
            seeds=seeds,
            device=CPU,
            rng_seed=0,
            archive=self.archive,
            run_id=self.run.id,
            writers=[writer],
            ledger=Ledger(Decimal(1)),
            budget_evals=evals,
            report=self.events.append,
        )
        clients = Clients(
            archive=self.archive,
            judge=self.judge,
            task=self.task,
            seeds=seeds,
            proposer=Engineer(desk),
            budget=Budget(evals=evals),
            compose=lambda winners: Composition(Path(), "p", True, ""),
            report=self.events.append,
        )
        while steps.optimise(clients, self.run.id) is None:
            pass
        return steps.trajectory(self.archive, self.run.id)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive.open(tmp_path / "a.db") as archive:
        yield archive


class Fuser(ScriptedModel):
    """Answers prompts that ask for one kernel in place of several, and repairs; to all others it says no."""

    def complete(self, messages: Sequence[Message]) -> Reply | Failed:
        asked = messages[1].content.startswith(("# What is asked: one kernel in place of", "# What is asked: mend"))
        return super().complete(messages) if asked else Failed(kind="refused", reason="no", seconds=0.1, attempts=1)


def test_model_is_shown_the_best_kernels_of_the_parts_and_what_lies_between(folder: Path, archive: Archive) -> None:
    shop = Workshop(folder, archive, [fused(1)]).with_parts_judged()
    shop.model = Fuser([fused(1)])
    _, (unfused, _), (made, judgement) = shop.search(3)
    kernels = [seed(folder, "scale"), seed(folder, "means")]
    assert (unfused.proposer, unfused.parents) == (pair.PROPOSER, tuple(kernel.id for kernel in kernels))
    assert (made.operator, made.proposer, made.parents) == ("compose", "scripted", unfused.parents)
    prompt = shop.model.asked[0][1].content
    assert all(kernel.source.strip() in prompt for kernel in kernels)
    assert "`x` [N, D] of means is `scaled` laid out as [B, S, H, D]." in prompt
    assert shop.judge.duels == [(made.id, unfused.id)]
    assert "; fused, 1.23 (1.18–1.29)× the best unfused pair" in words.verdict_words(judgement)
    assert steps.finalists(steps.latest(archive, shop.run.id), shop.task)[0].id == made.id


def test_pair_is_that_of_the_best_kernels_that_go_into_one_file(folder: Path, archive: Archive) -> None:
    shop = Workshop(folder, archive, []).with_parts_judged()
    scale = tasks.load(str(folder / "scale"), "cpu")
    block = SCALE.replace('extern "C" void', 'extern "C" { void') + "}  // fused: the faster one"
    best = seed(folder, "scale").model_copy(update={"source": block})
    archive.add(best)
    archive.record(shop.judge.judge(scale, best))
    found = fusion.prepared(shop.task, archive, CPU)
    assert isinstance(found, fusion.Fusion)
    assert [elite.candidate.id for elite in found.elites] == [seed(folder, name).id for name in ("scale", "means")]


def test_fused_kernel_that_is_not_faster_than_the_pair_wins_nothing(folder: Path, archive: Archive) -> None:
    shop = Workshop(folder, archive, [], SLOWER).with_parts_judged()
    shop.model = Fuser([fused(1)])
    *_, (made, judgement) = shop.search(3)
    assert "1.01 (0.97–1.05)× the best unfused pair: not measurably faster, dropped" in words.verdict_words(judgement)
    assert made.id not in {candidate.id for candidate in steps.finalists(steps.latest(archive, shop.run.id), shop.task)}
    assert archive.judged(made.id, shop.task.version, "cpu", CPU.name) == judgement


def test_fused_kernel_that_is_repaired_is_weighed_too(folder: Path, archive: Archive) -> None:
    shop = Workshop(folder, archive, []).with_parts_judged()
    shop.model = Fuser([fused(1).replace("fused", "broken"), fused(2)])
    _, (unfused, _), (broken, _), (mended, judgement) = shop.search(4)
    assert (mended.operator, mended.parents) == ("repair", (broken.id,))
    assert shop.judge.duels == [(mended.id, unfused.id)]
    assert isinstance(judgement.verdict, Passed)
    assert judgement.verdict.against is not None


def test_without_kernels_of_the_parts_nothing_is_fused_and_one_line_says_why(folder: Path, archive: Archive) -> None:
    shop = Workshop(folder, archive, ["no"])
    assert [candidate.operator for candidate, _ in shop.search(2)][:1] == ["seed"]
    reasons = [event.reason for event in shop.events if isinstance(event, Unused)]
    assert reasons[0] == (
        "nothing is fused: the archive has no scale kernel that passed on test cpu; run that task first"
    )
    assert not any("in place of" in messages[1].content for messages in shop.model.asked)
