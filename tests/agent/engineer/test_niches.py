"""The cell of a kernel, read off text, plan, compiler and profiler; the best of each cell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import tasks
from agent.engineer.niches import Cell, bottleneck, cell, elites, memory_strategy, tensor_cores
from agent.engineer.scores import scored
from sandbox import devices
from sandbox.contract import Candidate
from sandbox.plan import Plan, parse


@pytest.mark.parametrize(
    ("body", "smem", "static_bytes", "wanted"),
    [
        ("out[i] = a[i];", "", 0, "direct"),
        ("// float4 later\nout[i] = a[i];", "", 0, "direct"),
        ("float4 v = p[i];", "", 0, "vectorised"),
        ('asm("ld.global.v4.f32 {}");', "", 0, "vectorised"),
        ("__shared__ float tile[64][64];", "", 16384, "shared"),
        ("__shared__ float partial[32];", "", 128, "direct"),
        ("__shared__ float partial[32]; uint4 v;", "", 128, "vectorised"),
        ("__shared__ float tile[N];", "", None, "shared"),
        ("extern __shared__ char dynamic[];", "N*4", 0, "shared"),
        ('asm("cp.async.cg.shared.global [%0], [%1], 16;");', "N*4", 0, "async_copy"),
        ("__pipeline_memcpy_async(a, b, 16);", "", 0, "async_copy"),
        ("/* cp.async */ __shared__ float tile[N];", "", 8192, "shared"),
        ('asm("cp.async.bulk.tensor.2d.shared::cluster.global.tile [%0];");', "N*4", 0, "tma"),
    ],
)
def test_memory_strategy_on_cuda(kernel, make_task, body, smem, static_bytes, wanted) -> None:
    candidate = kernel(body, smem=smem)
    assert memory_strategy(candidate, parse(candidate.source, make_task()), static_bytes) == wanted


def test_tensor_map_in_the_plan_is_tma(kernel, make_task) -> None:
    candidate = kernel(head="// tensormap a_map: a box(64)")
    assert memory_strategy(candidate, parse(candidate.source, make_task()), 0) == "tma"


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("for (int64_t i = 0; i < N; ++i) sum += in[i];", "scalar"),
        ("#pragma omp simd\nfor (int64_t i = 0; i < N; ++i) out[i] = a[i];", "simd"),
        ("#pragma omp parallel for\nfor (int64_t i = 0; i < N; ++i) out[i] = a[i];", "scalar"),
        ("for (int64_t i = 0; i < N; i += 8) x = _mm256_loadu_ps(a + i);", "simd"),
        ("typedef float vec __attribute__((vector_size(32)));", "simd"),
        ("for (int j0 = 0; j0 < keys; j0 += TILE) {\n#pragma omp simd\n}", "blocked"),
        ("// for (j = 0; j < n; j += TILE)\nfor (;;) {}", "scalar"),
    ],
)
def test_memory_strategy_on_cpu(code, wanted) -> None:
    candidate = Candidate(task="toy", target="cpu", source=code, operator="seed", proposer="test")
    assert memory_strategy(candidate, Plan(), None) == wanted
    assert tensor_cores(candidate) == "n/a"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("#include <mma.h>", "none"),
        ("// wgmma would be faster", "none"),
        ('asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32");', "mma"),
        ("nvcuda::wmma::fragment<> f;", "mma"),
        ('asm("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16"); ldmatrix();', "wgmma"),
        ('asm("tcgen05.mma.cta_group::1.kind::f16");', "tcgen05"),
    ],
)
def test_tensor_cores(kernel, body, wanted) -> None:
    assert tensor_cores(kernel(body)) == wanted


@pytest.mark.parametrize(
    ("task", "seed", "wanted"),
    [
        ("vector_add", "1_scalar.cu", ("direct", "none")),
        ("vector_add", "2_vectorised.cu", ("vectorised", "none")),
        ("layernorm", "2_row_in_registers.cu", ("vectorised", "none")),
        ("mlp", "2_tensor_cores.cu", ("async_copy", "mma")),
        ("attention", "3_wgmma.cu", ("tma", "wgmma")),
        ("attention", "1_online.cpp", ("blocked", "n/a")),
        ("layernorm", "1_two_pass.cpp", ("simd", "n/a")),
        ("vector_add", "1_parallel.cpp", ("simd", "n/a")),
    ],
)
def test_cells_of_seeds(judgement, task, seed, wanted) -> None:
    target = "cuda" if seed.endswith(".cu") else "cpu"
    loaded = tasks.load(task, target)
    candidate = next(c for c in tasks.seeds(loaded) if c.note == seed)
    device = devices.cross("sm_90") if target == "cuda" else devices.cpu()
    (entry,) = scored([(candidate, judgement(candidate, 0.0, smem_bytes=256))])
    found = cell(entry, loaded, device)
    assert (found.memory, found.tensor_cores) == wanted


# ---------------------------------------------------------------- what limits it


@pytest.mark.parametrize(
    ("counters", "wanted"),
    [
        ([{"duration": 1, "SM throughput": 90, "memory throughput": 40}], "compute"),
        ([{"duration": 1, "SM throughput": 40, "memory throughput": 70}], "memory"),
        ([{"duration": 1, "SM throughput": 40, "DRAM throughput": 70}], "memory"),
        ([{"duration": 1, "SM throughput": 30, "memory throughput": 59}], "latency"),
        (
            [
                {"duration": 1, "SM throughput": 90, "memory throughput": 10},
                {"duration": 9, "SM throughput": 10, "memory throughput": 90},
            ],
            "memory",
        ),
    ],
)
def test_counters_of_the_longest_kernel_decide(kernel, judgement, make_task, gpu, profile, counters, wanted) -> None:
    found = judgement(kernel(), 0.0, profile=profile(*counters))
    assert bottleneck(found.verdict, make_task(), gpu) == wanted


@pytest.mark.parametrize(
    ("flops", "shares", "wanted"),
    [
        ("N", (0.8, 0.7), "memory"),
        ("1000*N", (0.8, 0.7), "compute"),
        ("1000*N", (0.1, 0.2), "latency"),
        ("N", (None, None), "memory"),
        ("1000*N", (None, None), "compute"),
    ],
)
def test_without_counters_the_roofline_decides(
    kernel, judgement, make_task, gpu, profile, flops, shares, wanted
) -> None:
    for counted in (None, profile(tool="none"), profile({"registers": 32})):
        found = judgement(kernel(), 0.0, shares=shares, profile=counted)
        assert bottleneck(found.verdict, make_task(flops=flops), gpu) == wanted


def test_perf_tells_idle_cores_and_nothing_else(kernel, judgement, make_task, profile) -> None:
    cpu = devices.cpu().model_copy(update={"threads": 8})
    idle, busy = (judgement(kernel(), 0.0, profile=profile({"cores busy": n}, tool="perf")) for n in (2.0, 7.5))
    task = make_task(target="cpu")
    assert bottleneck(idle.verdict, task, cpu) == "latency"
    assert bottleneck(busy.verdict, task, cpu) == "memory"


# ---------------------------------------------------------------- elites


BODIES = ("", "float4 v;", 'asm("cp.async.cg");', 'asm("mma.sync");')


@given(drawn=st.lists(st.tuples(st.sampled_from(BODIES), st.none() | st.integers(-2, 2)), max_size=12))
def test_elites_are_the_best_of_their_cells(kernel, judgement, make_task, gpu, drawn) -> None:
    candidates = [kernel(f"{body} int c{i};") for i, (body, _) in enumerate(drawn)]
    history = [(c, judgement(c, score)) for c, (_, score) in zip(candidates, drawn, strict=True)]
    found = elites(history, make_task(), gpu)
    passed = {body for body, score in drawn if score is not None}
    assert len(found) == len(passed)
    for entry in scored(history):
        own = cell(entry, make_task(), gpu)
        assert found[own].score >= entry.score
    for own, entry in found.items():
        assert cell(entry, make_task(), gpu) == own


def test_earliest_of_equals_is_kept(judged, make_task, gpu) -> None:
    first, second = judged("a", 1.0), judged("b", 1.0)
    assert elites([first, second], make_task(), gpu) == {
        Cell(bottleneck="memory", memory="direct", tensor_cores="none"): scored([first])[0]
    }
