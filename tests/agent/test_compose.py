"""The final extension, built by the real compilers: what it computes, chooses, refuses and records.

On cuda the host side runs against a driver of our own that writes down what it is asked, since CI has no GPU.
"""

import hashlib
import importlib
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agent import tasks
from agent.compose import Composed, Winner, compose, verify
from agent.export.cpu import directives, renames
from agent.export.signature import axis_sources, schema
from agent.export.wheel import build_wheel
from sandbox.contract import Candidate, Device, Interval, Judgement, Measurement, Passed, Task, Timing, Workload
from sandbox.errors import BadInput
from sandbox.plan import ResolvedPlan, plan_of, resolve
from sandbox.toolchain import Toolchain

CPU = Device(name="a CPU", target="cpu", arch="x86_64", threads=2)
H100 = Device(name="NVIDIA H100", target="cuda", arch="sm_90a", sm_count=132, smem_optin=232448)


@pytest.fixture(scope="module")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toolchain]:
    with Toolchain(tmp_path_factory.mktemp("cache")) as toolchain:
        yield toolchain


def write_task(folder: Path, toml: str, reference: str) -> Path:
    for target in ("cpu", "cuda"):
        (folder / target).mkdir(parents=True)
    (folder / "task.toml").write_text(toml)
    (folder / "reference.py").write_text(reference)
    return folder


def candidate(task: Task, source: str, **tunables: int) -> Candidate:
    return Candidate(
        task=task.name, target=task.target, source=source, tunables=tunables, operator="seed", proposer="seed"
    )


def load_extension(composed: Composed) -> Any:
    """Build and import the package in this process; its name is its own, so nothing is in the way."""
    sys.path.insert(0, str(composed.root))
    try:
        return importlib.import_module(composed.package)
    finally:
        sys.path.remove(str(composed.root))


# ---------------------------------------------------------------- cpu

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
ONES = "(torch.ones(64), torch.ones(64, 8), torch.ones(8), torch.ones(64, dtype=torch.int32))"
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


@pytest.fixture(scope="module")
def affine(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = write_task(tmp_path_factory.mktemp("tasks") / "affine", AFFINE_TOML, AFFINE_REFERENCE)
    return tasks.load(str(folder), "cpu")


@pytest.fixture(scope="module")
def marked(affine: Task, toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Composed:
    """Three winners whose outputs tell who ran, all with helpers of the same names: +0, +3 and +30 000."""
    sources = [AFFINE.replace("MARK", str(mark)) for mark in (0, 1, 10000)]
    winners = {w.name: Winner(candidate=candidate(affine, s)) for w, s in zip(affine.workloads, sources, strict=True)}
    return compose(affine, winners, toolchain, CPU, tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def extension(marked: Composed, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.mktemp("built")))
        return load_extension(marked)


def arguments(n: int, d: int) -> list[torch.Tensor]:
    return [torch.zeros(n), torch.randn(n, d), torch.randn(d), torch.arange(n, dtype=torch.int32) % d]


def as_dtype(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {name: arguments[name].to(dtype) for name in ("state", "x", "bias")}


def mark_of(extension: Any, n: int, d: int, flip: int) -> float:
    """What the candidate that took the call adds to a correct output."""
    state, x, bias, p = arguments(n, d)
    out, _ = extension.affine(state, x, bias, p, flip, 1.0)
    return round(float((out - (-x if flip else x) - bias).mean()), 1)


def test_each_workload_takes_its_own_winner_though_helpers_share_names(extension: Any) -> None:
    assert mark_of(extension, 64, 8, 0) == 0
    assert mark_of(extension, 4096, 8, 0) == 3
    assert mark_of(extension, 64, 16, 1) == 30000


def test_other_shapes_take_the_nearest_workload_in_log_space(extension: Any) -> None:
    assert mark_of(extension, 300, 8, 0) == 0
    assert mark_of(extension, 700, 8, 0) == 3


def test_statics_nobody_won_are_served_by_the_nearest_winner(marked: Composed, extension: Any) -> None:
    assert mark_of(extension, 3, 8, 1) == 0
    assert mark_of(extension, 5, 12, 0) == 30000
    assert len(marked.served) == 5


def test_outputs_inouts_defaults_and_keywords(extension: Any) -> None:
    state, x, bias, p = arguments(64, 8)
    before = x.clone()
    out, argument = extension.affine(state, x, bias, p=p, flip=0)
    torch.testing.assert_close(out, 2.5 * x + bias)
    torch.testing.assert_close(state, out.sum(1))
    assert argument.dtype == torch.int32
    assert argument.tolist() == torch.stack([p, 2 * p], 1).reshape(-1).tolist()
    assert torch.equal(x, before)


def test_inputs_that_are_not_contiguous_or_aligned_are_copied(extension: Any) -> None:
    state, x, bias, p = arguments(64, 8)
    wanted, _ = extension.affine(torch.zeros(64), x, bias, p, 0)
    shifted = torch.cat([torch.zeros(1), bias])[1:]
    got, _ = extension.affine(state, x.T.contiguous().T, shifted, p, 0)
    assert torch.equal(got, wanted)


def test_empty_tensors_give_empty_outputs(extension: Any) -> None:
    out, argument = extension.affine(*arguments(0, 8), 0)
    assert (out.shape, argument.shape) == ((0, 8), (0,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"x": torch.randn(64, 9)}, r"bias has shape \[8\], wanted \[D\] = \[9\]"),
        (lambda a: a | {"x": torch.randn(64)}, r"x has shape \[64\], wanted \[N, D\]"),
        (lambda a: a | {"p": torch.zeros(63, dtype=torch.int32)}, r"p has shape \[63\], wanted \[N\] = \[64\]"),
        (lambda a: a | {"p": torch.zeros(64)}, "p is Float, wanted Int"),
        (lambda a: a | {"bias": torch.zeros(8).double()}, "bias is Double, wanted Float"),
        (lambda a: a | as_dtype(a, torch.double), "state is Double, wanted Half, BFloat16 or Float"),
        (lambda a: a | {"state": torch.zeros(128)[::2]}, r"state is changed in place and must be contiguous"),
        (lambda a: a | {"state": torch.zeros(65)[1:]}, "state .* must begin at a multiple of 64 bytes"),
        (lambda a: a | {"flip": 7}, "nothing here serves N=64 D=8 flip=7 float32; there is float32, D = 8, flip = 0; "),
        (lambda a: a | {"flip": 2**40}, "flip = 1099511627776 does not fit an int"),
        (lambda a: a | as_dtype(a, torch.half), "nothing here serves N=64 D=8 flip=0 float16"),
    ],
)  # fmt: skip
def test_a_call_that_cannot_be_served_says_why(extension: Any, change: Any, message: str) -> None:
    state, x, bias, p = arguments(64, 8)
    with pytest.raises(RuntimeError, match=f"affine: {message}"):
        extension.affine(**change({"state": state, "x": x, "bias": bias, "p": p, "flip": 0}))


@pytest.mark.filterwarnings("ignore")
def test_the_operator_passes_opcheck(marked: Composed, extension: Any) -> None:
    operator = getattr(torch.ops, marked.package).affine.default
    torch.library.opcheck(operator, (*arguments(64, 8), 0, 2.5))


def test_verify_reports_disagreement_with_eager_loudly(affine: Task, marked: Composed) -> None:
    report = verify(marked.root, affine)
    assert not report.ok
    assert report.message.startswith("3 of 5 workloads disagree with eager PyTorch: N4096 D8 flip=0 float32: error ")
    assert [check.ok for check in report.checks] == [True, False, False, True, False]


def test_sources_and_provenance_say_where_everything_comes_from(affine: Task, marked: Composed) -> None:
    known = json.loads((marked.root / "provenance.json").read_text())
    assert known["task_version"] == affine.version
    first = known["candidates"][known["workloads"]["N64 D8 flip=0 float32"]["candidate"]]
    assert (marked.root / first["source"]).read_text() == AFFINE.replace("MARK", "0")
    assert first["tunables"] == {"CHUNK": 1}
    assert first["specialisations"][0]["statics"] == {"D": 8, "flip": 0}
    assert not first["specialisations"][0]["artifacts"]["x86_64"]["judged"]
    assert "/work" not in (marked.root / "provenance.json").read_text()


def test_a_tree_is_replaced_whole_and_its_name_follows_its_content(
    affine: Task, toolchain: Toolchain, tmp_path: Path
) -> None:
    winner = {affine.workloads[0].name: Winner(candidate=candidate(affine, AFFINE.replace("MARK", "0")))}
    first = compose(affine, winner, toolchain, CPU, tmp_path)
    (first.root / "stale").touch()
    assert compose(affine, winner, toolchain, CPU, tmp_path) == first
    assert not (first.root / "stale").exists()
    tuned = {affine.workloads[0].name: Winner(candidate=candidate(affine, AFFINE.replace("MARK", "0"), CHUNK=2))}
    assert compose(affine, tuned, toolchain, CPU, tmp_path).package != first.package
    assert sorted(path.name[:17] for path in tmp_path.iterdir()) == ["warpsmith_affine_", "warpsmith_affine_"]


def test_winners_that_do_not_belong_are_refused(affine: Task, toolchain: Toolchain, tmp_path: Path) -> None:
    good = candidate(affine, AFFINE.replace("MARK", "0"))
    name = affine.workloads[0].name
    for winners, message in (
        ({}, "no winners"),
        ({"N1": Winner(candidate=good)}, "no such workload"),
        ({name: Winner(candidate=good.model_copy(update={"task": "other"}))}, "is for other on cpu, wanted affine"),
        ({name: Winner(candidate=candidate(affine, AFFINE.replace("MARK", "nothing")))}, "does not compile"),
    ):
        with pytest.raises(BadInput, match=message):
            compose(affine, winners, toolchain, CPU, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_axis_that_no_argument_shows_is_refused(affine: Task) -> None:
    blind = affine.model_copy(update={"axes": ("N", "D", "M")})
    with pytest.raises(BadInput, match="axis M cannot be read from the arguments"):
        axis_sources(blind)


def test_schema_marks_inouts_and_keeps_defaults_that_pytorch_allows(affine: Task) -> None:
    wanted = "affine(Tensor(a!) state, Tensor x, Tensor bias, Tensor p, int flip, float scale=2.5) -> (Tensor, Tensor)"
    assert schema(affine) == wanted
    swapped = affine.model_copy(update={"scalars": affine.scalars[::-1]})
    assert schema(swapped).endswith("Tensor p, float scale, int flip) -> (Tensor, Tensor)")


def test_a_wheel_carries_the_library_and_works_without_the_sources(marked: Composed, tmp_path: Path) -> None:
    wheel = build_wheel(marked.root, tmp_path)
    assert wheel.name.endswith("-cp310-abi3-linux_x86_64.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    call = f"import torch, {marked.package} as e; print(e.affine(*{ONES}, 0)[0])"
    done = subprocess.run(
        [sys.executable, "-c", call], cwd=tmp_path / "installed", capture_output=True, text=True, check=True
    )
    assert "3.5000" in done.stdout


def test_directives_skip_comments_and_pragmas_of_code() -> None:
    source = AFFINE + '#pragma GCC diagnostic ignored "-Wall"\nconst char* s = "// #include <no>";\n'
    assert [line.split()[0] for line in directives(source)] == [
        "#include", "#ifdef", "#include", "#endif", "#ifndef", "#define", "#endif", "#define",
        "#ifdef", "#error", "#endif", "#define", "#pragma",
    ]  # fmt: skip
    assert directives("/*\n#include <a>\n*/ // #include <b>\n") == []


def test_everything_with_c_linkage_is_renamed() -> None:
    source = (
        'extern "C" inline int helper(int a) { return a; }\n// extern "C" void no();\nextern "C" void f(float* x) {}'
    )
    assert renames(source, "f", "k1") == {"f": "f_k1", "helper": "helper_k1"}


# ---------------------------------------------------------------- cuda

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
held_out = [{ axes = { N = 7, D = 999 }, scalars = { scale = 1.0 }, dtype = "bfloat16" }]
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
FAKE_DRIVER = str(Path(__file__).with_name("fake_driver.cpp"))
MAIN = r"""
#include <cstdio>
#include <cstdlib>
#include "driver.h"
using namespace PACKAGE;
int main(int, char** argv) {
  Problem p{Dtype(std::atoi(argv[1])), std::atoi(argv[1]) == 2 ? 4 : 2, std::atol(argv[2]), std::atol(argv[3]), 0.5f};
  try {
    const Machine machine = machine_of(0);
    const ContextScope scope(0);
    const Candidate& chosen = choose(p, machine);
    std::printf("chosen %s\nworkspace %ld\n", chosen.id, chosen.workspace_bytes(p, machine));
    for (int i = 0; i < 2; ++i) chosen.run(p, {(void*)0x100, (void*)0x200}, (void*)0x300, machine);
  } catch (const std::exception& error) {
    std::printf("error %s\n", error.what());
  }
}
"""


@pytest.fixture(scope="module")
def rowsum(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = write_task(tmp_path_factory.mktemp("tasks") / "rowsum", ROWSUM_TOML, ROWSUM_REFERENCE)
    return tasks.load(str(folder), "cuda")


@pytest.fixture(scope="module")
def sums(rowsum: Task, toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Composed:
    two_pass, mapped = candidate(rowsum, TWO_PASS, CHUNK=512), candidate(rowsum, TENSOR_MAP)
    judgement = judgement_of(rowsum, two_pass)
    first, second = (w.name for w in rowsum.workloads)
    winners = {first: Winner(candidate=two_pass, judgement=judgement), second: Winner(candidate=mapped)}
    return compose(rowsum, winners, toolchain, H100, tmp_path_factory.mktemp("out"))


def judgement_of(task: Task, winner: Candidate) -> Judgement:
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
        device=H100.name,
        verdict=Passed(checks=(), timings=(timing,), speedup=speedup, latency_ms=0.02),
        seconds=1,
        judged_at="2026-11-22T00:00:00+00:00",
    )


@pytest.fixture(scope="module")
def host(sums: Composed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated host side, without the binding, linked to a main of our own beside a scripted driver."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "main.cpp").write_text(MAIN.replace("PACKAGE", sums.package))
    for name in ("libcuda.so.1", "libtorch_cuda.so"):
        subprocess.run(
            ["g++", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), FAKE_DRIVER], check=True
        )
    csrc = sums.root / "csrc"
    sources = [str(path) for path in sorted(csrc.glob("*.cpp")) if path.name != "binding.cpp"]
    command = ["g++", "-O0", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{csrc}", "-o", str(folder / "main")]
    subprocess.run([*command, str(folder / "main.cpp"), *sources, "-ldl"], check=True)
    return folder


def drive(host: Path, workload: Workload, capability: int = 90, fail: int = 0) -> dict[str, list[str]]:
    """What the driver was asked, by first word."""
    dtype = ["float16", "bfloat16", "float32"].index(workload.dtype)
    figures = {"SMS": H100.sm_count, "SMEM": H100.smem_optin, "CAPABILITY": capability, "FAIL": fail}
    environment = {
        **os.environ,
        **{name: str(value) for name, value in figures.items()},
        "LD_LIBRARY_PATH": str(host),
        "LD_PRELOAD": str(host / "libtorch_cuda.so"),
    }
    command = [str(host / "main"), str(dtype), str(workload.axes["N"]), str(workload.axes["D"])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    asked: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        word, _, rest = line.partition(" ")
        asked.setdefault(word, []).append(rest)
    return asked


def resolved(task: Task, source: str, workload: Workload, **tunables: int) -> ResolvedPlan:
    plan, values = plan_of(candidate(task, source, **tunables), task)
    return resolve(plan, task, workload, values, H100)


@pytest.mark.parametrize("d", [4096, 100])
def test_generated_launches_are_those_of_the_resolved_plan(rowsum: Task, host: Path, d: int) -> None:
    workload = Workload(axes={"N": 64, "D": d}, scalars={"scale": 0.5}, dtype="float16")
    plan = resolved(rowsum, TWO_PASS, workload, CHUNK=512)
    asked = drive(host, workload)
    assert asked["workspace"] == [str(plan.workspace_bytes)]
    assert asked["clear"] == [f"300 0 {plan.workspace_bytes}"] * 2
    wanted = [
        f"{launch.kernel} {' '.join(map(str, (*launch.grid, *launch.block)))} {launch.smem_bytes} stream=0x700"
        f"{' attribute=2:1,0,0' if launch.cooperative else ''} out=0x100 x=0x200 N=64 D={d} scale=0.5 workspace=0x300"
        for launch in plan.launches
    ]
    assert asked["launch"] == wanted * 2
    assert asked["load"] == ["ELF 0"], "loaded once"
    assert [a for a in asked["attribute"] if a.split()[1] == "8"] == [f"partial 8 {plan.launches[0].smem_bytes}"]


def test_clusters_and_tensor_maps_reach_the_driver(rowsum: Task, host: Path) -> None:
    asked = drive(host, rowsum.workloads[1])
    assert asked["map"] == ["7 0x200 100/400/32/1 1000/400000/8/1 1/0/1/1 3 3"] * 2
    assert asked["launch"][0].startswith("whole 1000 1 1 32 1 1 1024 stream=0x700 attribute=4:2,1,1 out=0x100")


def test_an_older_gpu_gets_the_candidate_that_runs_there(rowsum: Task, sums: Composed, host: Path) -> None:
    assert drive(host, rowsum.workloads[0], capability=86)["load"] == ["ELF 0"]
    assert drive(host, rowsum.workloads[0], capability=120)["load"] == ["ptx 0"]
    refusal = drive(host, rowsum.workloads[1], capability=86)["error"][0]
    assert refusal.startswith("rowsum: nothing here serves N=1000 D=100 float32 on sm_86; there is float16; bfloat16; ")


def test_a_failing_launch_names_the_kernel_and_the_error(rowsum: Task, host: Path) -> None:
    assert drive(host, rowsum.workloads[0], fail=1)["error"] == ["rowsum: launch partial: scripted failure (1)"]


def test_the_code_embedded_is_the_code_that_was_judged(rowsum: Task, sums: Composed, toolchain: Toolchain) -> None:
    known = json.loads((sums.root / "provenance.json").read_text())
    award = known["workloads"][rowsum.workloads[0].name]
    assert award["speedup"] == {"eager": 2.5}
    origin = known["candidates"][award["candidate"]]
    spec = origin["specialisations"][0]
    judged = toolchain.build(TWO_PASS, "cuda", spec["macros"], "sm_90a")
    assert spec["artifacts"]["sm_90a"] == {"sha256": judged.sha256, "judged": True}
    assert {arch: made["judged"] for arch, made in spec["artifacts"].items()} == {
        "sm_90a": True, "sm_80": False, "sm_86": False, "compute_80": False,
    }  # fmt: skip
    (array,) = (sums.root / "csrc" / "code").glob(f"code_{award['candidate'][:12]}_0_sm_90a.inc")
    words = [int(word, 16) for word in re.findall(r"0x([0-9a-f]+)", array.read_text())]
    code = struct.pack(f"<{len(words)}Q", *words)[: judged.path.stat().st_size]
    assert hashlib.sha256(code).hexdigest() == judged.sha256


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_a_cuda_extension_builds_imports_and_refuses_clearly_without_a_gpu(
    rowsum: Task, sums: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    extension = load_extension(sums)
    with pytest.raises(RuntimeError, match="rowsum: x is not on cuda; this extension was built for cuda"):
        extension.rowsum(torch.ones(4, 4), 1.0)
    report = verify(sums.root, rowsum)
    assert (report.ok, report.ran, report.message) == (True, False, "built and imported; not run: no GPU")
