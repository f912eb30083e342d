"""Every seed kernel, for real: CUDA ones through NVRTC for an A10 and an H100, CPU ones through the whole judge."""

from collections.abc import Iterator

import pytest

from agent import tasks
from sandbox import plan
from sandbox.contract import Passed, Target
from sandbox.devices import cross, detect
from sandbox.judge import Judge
from sandbox.toolchain import Toolchain

TASKS = (
    "vector_add",
    "layernorm",
    "attention",
    "attention_layernorm",
    "kv_cache",
    "mlp",
    "kv_append",
    "decode_attention",
    "swiglu",
    "linear",
)
SEEDS: dict[Target, list[tuple[str, str]]] = {
    target: [(name, seed.note) for name in TASKS for seed in tasks.seeds(tasks.load(name, target))]
    for target in ("cuda", "cpu")
}
HOPPER_ONLY = ("3_wgmma.cu", "4_wgmma.cu", "4_persistent.cu")


@pytest.fixture(scope="module")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toolchain]:
    with Toolchain(tmp_path_factory.mktemp("cache")) as toolchain:
        yield toolchain


@pytest.fixture(scope="module")
def judge(toolchain: Toolchain) -> Iterator[Judge]:
    with Judge(detect("cpu"), toolchain) as judge:
        yield judge


def test_every_task_is_there_with_at_least_two_seeds_for_each_target() -> None:
    assert set(TASKS) == set(tasks.available())
    for target, seeds in SEEDS.items():
        for name in TASKS:
            assert len([note for task, note in seeds if task == name]) >= 2, (target, name)


@pytest.mark.parametrize("target", ["cuda", "cpu"])
@pytest.mark.parametrize("name", TASKS)
def test_seeds_declare_tunables_and_their_defaults_are_allowed(name: str, target: Target) -> None:
    task = tasks.load(name, target)
    device = cross("sm_90a") if target == "cuda" else detect("cpu")
    tunables = [plan.parse(seed.source, task).tunables for seed in tasks.seeds(task)]
    assert any(tunables)
    for seed in tasks.seeds(task):
        assert plan.allowed(plan.parse(seed.source, task), task, seed.tunables, device), seed.note


@pytest.mark.parametrize("arch", ["sm_86", "sm_90a"])
@pytest.mark.parametrize(("name", "note"), SEEDS["cuda"])
def test_cuda_seed_compiles_for_every_workload_without_spills(
    toolchain: Toolchain, name: str, note: str, arch: str
) -> None:
    task, device = tasks.load(name, "cuda"), cross(arch)
    seed = next(seed for seed in tasks.seeds(task) if seed.note == note)
    own, tunables = plan.plan_of(seed, task)
    for workload in (*task.workloads, *task.held_out):
        artifact = toolchain.build(seed.source, "cuda", plan.macros(task, own, workload, tunables), arch)
        assert {launch.kernel for launch in own.launches} <= {kernel.kernel for kernel in artifact.kernels}
        assert sum(kernel.spill_bytes for kernel in artifact.kernels) == 0
        if arch == "sm_86" and note in HOPPER_ONLY:
            assert not plan.allowed(own, task, tunables, device)
        else:
            assert plan.resolve(own, task, workload, tunables, device).launches


@pytest.mark.parametrize("arch", ["sm_86", "sm_90a"])
@pytest.mark.parametrize("name", TASKS)
def test_some_cuda_seed_of_every_task_runs_on_every_architecture(name: str, arch: str) -> None:
    task, device = tasks.load(name, "cuda"), cross(arch)
    allowed = [s for s in tasks.seeds(task) if plan.allowed(plan.parse(s.source, task), task, s.tunables, device)]
    assert len(allowed) >= 2


@pytest.mark.parametrize(("name", "note"), SEEDS["cpu"])
def test_cpu_seed_passes_the_judge(judge: Judge, name: str, note: str) -> None:
    task = tasks.load(name, "cpu")
    seed = next(seed for seed in tasks.seeds(task) if seed.note == note)
    verdict = judge.judge(task, seed).verdict
    assert isinstance(verdict, Passed), verdict
    assert {"eager", "compile"} <= set(verdict.speedup)
