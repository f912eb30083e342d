"""Two small tasks for composing: `affine` on the CPU, `rowsum` on GPUs; and who makes candidates of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import tasks
from sandbox.contract import Candidate, Device, Interval, Judgement, Measurement, Passed, Task, Timing
from sandbox.toolchain import Toolchain

CPU = Device(name="a CPU", target="cpu", arch="x86_64", threads=2)
H100 = Device(name="NVIDIA H100", target="cuda", arch="sm_90a", sm_count=132, smem_optin=232448)
A10 = Device(name="NVIDIA A10", target="cuda", arch="sm_86", sm_count=72, smem_optin=101376)

# out = scale * x + bias, rows shifted in `state`; the workspace carries a copy of the row.
AFFINE_TOML = """\
name = "affine"
summary = "scale * x + bias, counting calls"
axes = ["N", "D"]
bytes = "2*N*D*itemsize"
flops = "2*N*D"
outputs = [{ name = "out", shape = ["N", "D"] }, { name = "argument", shape = ["N*2"], dtype = "int32" }]
inouts = [{ name = "state", shape = ["N"] }]
inputs = [
    { name = "x", shape = ["N", "D"] },
    { name = "bias", shape = ["D"] },
    { name = "p", shape = ["N"], dtype = "int32", fill = { kind = "integers", low = "0", high = "D-1" } },
]
scalars = [{ name = "flip", type = "int" }, { name = "scale", type = "float", default = 2.5 }]
[cpu]
workloads = [
    { axes = { N = 64, D = 8 }, scalars = { flip = 0, scale = 2.5 } },
    { axes = { N = 4096, D = 8 }, scalars = { flip = 0, scale = 2.5 } },
    { axes = { N = 64, D = 16 }, scalars = { flip = 1, scale = 0.5 } },
]
held_out = [
    { axes = { N = 3, D = 8 }, scalars = { flip = 1, scale = 1.0 } },
    { axes = { N = 5, D = 12 }, scalars = { flip = 0, scale = 1.0 } },
]
"""
AFFINE_REFERENCE = """\
import torch


def reference(state, x, bias, p, *, flip, scale):
    sign = -1 if flip else 1
    out = sign * scale * x + bias
    state += out.sum(1)
    return out, torch.stack([p, p * 2], 1).reshape(-1).int()
"""
AFFINE = """\
// MARK: rows through the workspace. Here to be told from others.
// workspace: D*CHUNK*4
// zero: workspace
// static: D flip
#include <cmath>
#ifdef __AVX2__
#include <immintrin.h>  /* #include <nowhere.h> */
#endif
#ifndef CHUNK
#define CHUNK 1  // tune: 1 2
#endif
// tune-if: CHUNK <= N
#define WEIGHT(x) \\
    (STATIC_FLIP ? -(x) : (x))
template <class T> T weigh(T x) { return WEIGHT(x) + T(MARK); }
inline float offset() { return MARK; }
#ifdef SEEN
#error "seen twice: macros of the first pass must be gone in the second"
#endif
#define SEEN
struct Row { float total() const { return MARK; } };
extern "C" void affine(float* out, int32_t* argument, float* state, const float* x, const float* bias, const int32_t* p,
                       int64_t N, int64_t D, int flip, float scale, void* workspace) {
    float* row = static_cast<float*>(workspace);
    if (D != STATIC_D || flip != STATIC_FLIP || row[D - 1] != 0 || reinterpret_cast<uintptr_t>(row) % 64) return;
    for (int64_t n = 0; n < N; ++n) {
#pragma omp simd
        for (int64_t d = 0; d < D; ++d) row[d] = weigh(scale * x[n * D + d]);
        for (int64_t d = 0; d < D; ++d) out[n * D + d] = row[d] + bias[d] + offset() + Row().total();
        for (int64_t d = 0; d < D; ++d) state[n] += out[n * D + d];
        argument[2 * n] = p[n], argument[2 * n + 1] = 2 * p[n];
    }
}
"""


ROWSUM_TOML = """\
name = "rowsum"
summary = "the sum of each row, times scale"
axes = ["N", "D"]
bytes = "N*D*itemsize"
flops = "N*D"
outputs = [{ name = "out", shape = ["N"] }]
inputs = [{ name = "x", shape = ["N", "D"] }]
scalars = [{ name = "scale", type = "float" }]
[cuda]
workloads = [
    { axes = { N = 64, D = 4096 }, scalars = { scale = 1.0 }, dtype = "float16" },
    { axes = { N = 1000, D = 100 }, scalars = { scale = 1.0 }, dtype = "float32" },
]
held_out = [
    { axes = { N = 7, D = 999 }, scalars = { scale = 1.0 }, dtype = "bfloat16" },
    { axes = { N = 64, D = 100 }, scalars = { scale = 1.0 }, dtype = "float16" },
]
"""
ROWSUM_REFERENCE = "def reference(x, *, scale):\n    return x.sum(1) * scale\n"
TWO_PASS = """\
// 1: partial sums, then one block per row adds them up.
// launch partial: grid(N, cdiv(D, CHUNK)) block(THREADS) smem(max(THREADS*4, smem_optin - 1024))
// launch finish: grid(min(N, sm_count)) block(32, 2) when(D > CHUNK) cooperative
// workspace: N*cdiv(D, CHUNK)*4
// zero: workspace
// tune-if: CHUNK >= 2*THREADS
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#ifndef THREADS
#define THREADS 64    // tune: 64 128
#endif
#ifndef CHUNK
#define CHUNK 1024    // tune: 512 1024
#endif
extern "C" __global__ void partial(scalar_t* out, const scalar_t* x, int64_t N, int64_t D, float scale,
                                   void* workspace) {
    if (threadIdx.x == 0) static_cast<float*>(workspace)[blockIdx.x] = float(x[blockIdx.x * D]);
}
extern "C" __global__ void finish(scalar_t* out, const scalar_t* x, int64_t N, int64_t D, float scale,
                                  void* workspace) {
    for (int64_t n = blockIdx.x; n < N; n += gridDim.x) out[n] = scalar_t(scale * float(x[n * D]));
}
"""
TENSOR_MAP = """\
// 2: clusters and a tensor map; Hopper only.
// launch whole: grid(2*cdiv(N, 2)) block(32) smem(1024) cluster(2)
// tensormap x_map: x view(1, N, D) box(1, 8, 128//itemsize) swizzle(128B)
// static: D
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void whole(scalar_t* out, const scalar_t* x, int64_t N, int64_t D, float scale, void* workspace,
                                 const __grid_constant__ CUtensorMap x_map) {
    if (blockIdx.x < N) out[blockIdx.x] = scalar_t(scale * float(x[blockIdx.x * STATIC_D]));
}
"""


# Out of place, so that there is a gradient; nothing is static.
SCALED_TOML = """\
name = "scaled"
summary = 'x * w * "factor" \\ and no more'
axes = ["N", "D"]
bytes = "2*N*D*itemsize"
flops = "2*N*D"
outputs = [{ name = "out", shape = ["N", "min(D, cdiv(2*D, 2))"] }]
inputs = [{ name = "x", shape = ["N", "D"] }, { name = "w", shape = ["D"], fill = { kind = "weight" } }]
scalars = [{ name = "factor", type = "float", default = 1.0 }, { name = "negate", type = "int", default = 0 }]
[cpu]
workloads = [{ axes = { N = 64, D = 16 }, scalars = { factor = 1.0, negate = 0 } }]
held_out = [{ axes = { N = 3, D = 5 }, scalars = { factor = 2.0, negate = 1 } }]
"""
SCALED_REFERENCE = """\
def reference(x, w, *, factor, negate):
    out = x * w * factor
    return -out if negate else out
"""
SCALED = """\
// 1: one loop.
extern "C" void scaled(float* out, const float* x, const float* w, int64_t N, int64_t D, float factor, int negate,
                       void* workspace) {
    for (int64_t i = 0; i < N * D; ++i) out[i] = (negate ? -1 : 1) * x[i] * w[i % D] * factor;
}
"""


def marked(mark: int) -> str:
    """A source whose outputs tell that it ran: 0 adds nothing, 1 adds 3. Only that of 0 names the CPU."""
    text = AFFINE.replace("MARK", str(mark))
    return text if mark == 0 else text.replace("immintrin.h", "cstring")


def candidate(task: Task, source: str, **tunables: int) -> Candidate:
    return Candidate(
        task=task.name, target=task.target, source=source, tunables=tunables, operator="seed", proposer="seed"
    )


def judgement_of(task: Task, winner: Candidate, device: Device = H100) -> Judgement:
    def measured(ms: float) -> Measurement:
        return Measurement(rounds_ms=(ms,), median_ms=ms, low_ms=ms, high_ms=ms, samples=10)

    name = task.workloads[0].name
    timing = Timing(workload=name, candidate=measured(0.02), baselines={"eager": measured(0.05)})
    speedup = {"eager": Interval(ratio=2.5, low=2.4, high=2.6)}
    return Judgement(
        candidate=winner.id,
        task=task.name,
        task_version=task.version,
        target=task.target,
        device=device.name,
        verdict=Passed(checks=(), timings=(timing,), speedup=speedup, latency_ms=0.02),
        seconds=1,
        judged_at="2026-11-22T00:00:00+00:00",
    )


def write_task(folder: Path, toml: str, reference: str) -> Path:
    for target in ("cpu", "cuda"):
        (folder / target).mkdir(parents=True)
    (folder / "task.toml").write_text(toml)
    (folder / "reference.py").write_text(reference)
    return folder


@pytest.fixture(scope="session")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toolchain]:
    with Toolchain(tmp_path_factory.mktemp("cache")) as toolchain:
        yield toolchain


@pytest.fixture(scope="session")
def affine(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = write_task(tmp_path_factory.mktemp("tasks") / "affine", AFFINE_TOML, AFFINE_REFERENCE)
    return tasks.load(str(folder), "cpu")


@pytest.fixture(scope="session")
def rowsum(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = write_task(tmp_path_factory.mktemp("tasks") / "rowsum", ROWSUM_TOML, ROWSUM_REFERENCE)
    return tasks.load(str(folder), "cuda")


@pytest.fixture(scope="session")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = write_task(tmp_path_factory.mktemp("tasks") / "scaled", SCALED_TOML, SCALED_REFERENCE)
    return tasks.load(str(folder), "cpu")
