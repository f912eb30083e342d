"""The toolchain with the real compilers: NVRTC and g++."""

import ctypes
import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.contract import Artifact, Target
from sandbox.errors import ToolchainMissing
from sandbox.toolchain import CompileFailed, CompileTimedOut, Toolchain

pytest.importorskip("cuda.bindings.nvrtc", reason="needs the extra [cuda]")

CUDA = """\
#include <cuda_fp16.h>
extern "C" __global__ void twice(scalar_t* out, const scalar_t* a, int64_t N) {
    __shared__ float tile[64];
    int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
    if (i < N) tile[threadIdx.x] = float(a[i]);
    __syncthreads();
    if (i < N) out[i] = scalar_t(FACTOR * tile[threadIdx.x ^ 1]);
}
"""
CPU = """\
#include <cmath>
namespace { float twice_of(float x) { return FACTOR * x; } }
extern "C" void twice(scalar_t* out, const scalar_t* a, int64_t N, void* workspace) {
    #pragma omp parallel for simd
    for (int64_t i = 0; i < N; ++i) out[i] = twice_of(a[i]);
}
"""
SOURCES: dict[Target, str] = {"cuda": CUDA, "cpu": CPU}
ARCH: dict[Target, str] = {"cuda": "sm_86", "cpu": "x86_64"}
MACROS: dict[Target, dict[str, str]] = {
    "cuda": {"scalar_t": "__half", "FACTOR": "2"},
    "cpu": {"scalar_t": "float", "FACTOR": "2"},
}
# 16 million instantiations, at a depth that no compiler objects to.
ENDLESS = """\
template <int A, int B> struct Deep { static constexpr long n = Deep<A - 1, B>::n + Deep<A - 1, B + (1 << A)>::n; };
template <int B> struct Deep<0, B> { static constexpr long n = B; };
static_assert(Deep<24, 0>::n != 1, "");
"""
TARGETS: tuple[Target, ...] = ("cuda", "cpu")
both_targets = pytest.mark.parametrize("target", TARGETS)


@pytest.fixture
def toolchain(tmp_path: Path) -> Iterator[Toolchain]:
    with Toolchain(tmp_path / "cache") as toolchain:
        yield toolchain


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Toolchain]:
    with Toolchain(tmp_path / "cache", compile_timeout_s=1.5) as toolchain:
        yield toolchain


def build(toolchain: Toolchain, target: Target, source: str | None = None) -> Artifact:
    return toolchain.build(source or SOURCES[target], target, MACROS[target], ARCH[target])


def log_of_failure(toolchain: Toolchain, target: Target, source: str) -> str:
    with pytest.raises(CompileFailed) as failure:
        build(toolchain, target, source)
    return failure.value.log


def compile_processes() -> list[int]:
    """Process ids of this process's children that run compiler.py, by /proc."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            command = (status.parent / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == os.getpid() and b"compiler.py" in command:
            found.append(int(status.parent.name))
    return found


# ---------------------------------------------------------------- success


def test_cuda_source_becomes_a_cubin_with_its_resources(toolchain: Toolchain) -> None:
    artifact = build(toolchain, "cuda")
    content = artifact.path.read_bytes()
    assert content.startswith(b"\x7fELF")
    assert artifact.sha256 == hashlib.sha256(content).hexdigest()
    assert artifact.path.stat().st_mode & 0o777 == 0o444
    (kernel,) = artifact.kernels
    assert (kernel.kernel, kernel.smem_bytes, kernel.spill_bytes) == ("twice", 256, 0)
    assert 0 < kernel.registers < 64
    assert toolchain.occupancy(kernel, threads=64, smem_bytes=0, arch="sm_86") == pytest.approx(32 / 48)


def test_cpu_source_becomes_a_library_that_computes(toolchain: Toolchain) -> None:
    library = ctypes.CDLL(str(build(toolchain, "cpu").path))
    values, out = (ctypes.c_float * 3)(1, 2, 3), (ctypes.c_float * 3)()
    library.twice(out, values, ctypes.c_int64(3), None)
    assert list(out) == [2, 4, 6]


def test_library_exports_extern_c_and_nothing_else(toolchain: Toolchain) -> None:
    source = 'int shared_by_name(int x) { return x + 1; }\nextern "C" int twice(int x) { return shared_by_name(x); }'
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", build(toolchain, "cpu", source).path], capture_output=True, text=True, check=True
    )
    assert [line.split()[-1] for line in symbols.stdout.splitlines()] == ["twice"]


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"])
def test_every_known_architecture_compiles_here(toolchain: Toolchain, arch: str) -> None:
    assert toolchain.build(CUDA, "cuda", MACROS["cuda"], arch).kernels[0].kernel == "twice"


def test_ptx_is_text_for_the_virtual_architecture(toolchain: Toolchain) -> None:
    artifact = toolchain.ptx(CUDA, MACROS["cuda"], "sm_80")
    assert ".target sm_80" in artifact.path.read_text(errors="replace")
    assert artifact.path.suffix == ".ptx"


def test_tensor_maps_and_integer_types_need_no_header(toolchain: Toolchain) -> None:
    source = """\
extern "C" __global__ void twice(uint8_t* out, const __grid_constant__ CUtensorMap q_map) {
    static_assert(sizeof(CUtensorMap) == 128 && alignof(CUtensorMap) == 64, "");
    *reinterpret_cast<uint64_t*>(out) = reinterpret_cast<uint64_t>(&q_map);
}"""
    assert toolchain.build(source, "cuda", {}, "sm_90a").kernels


@pytest.mark.parametrize("header", ["cstdint", "stdint.h", "cmath", "math.h", "cuda.h", "cuda_runtime.h", "cfloat"])
def test_headers_included_by_habit_are_there(toolchain: Toolchain, header: str) -> None:
    source = f"#include <{header}>\n{CUDA}// CUtensorMap"
    assert build(toolchain, "cuda", source).kernels


def test_warm_build_takes_a_fraction_of_a_second(toolchain: Toolchain) -> None:
    build(toolchain, "cuda")
    started = time.monotonic()
    assert not build(toolchain, "cuda", CUDA + "// another").cached
    assert time.monotonic() - started < 0.5


def test_windows_line_ends_and_byte_order_mark_are_taken_in_stride(toolchain: Toolchain) -> None:
    assert build(toolchain, "cuda", "\ufeff" + CUDA.replace("\n", "\r\n")).kernels


# ---------------------------------------------------------------- failure


def test_cuda_error_names_the_line_of_the_source(toolchain: Toolchain) -> None:
    log = log_of_failure(toolchain, "cuda", CUDA.replace("float tile[64]", "flaot tile[64]"))
    assert 'kernel.cu(3): error: identifier "flaot" is undefined' in log
    assert "/" not in log


def test_cpu_error_names_the_line_of_the_source(toolchain: Toolchain) -> None:
    log = log_of_failure(toolchain, "cpu", CPU.replace("twice_of(a[i])", "thrice_of(a[i])"))
    assert "kernel.cpp:5:" in log
    assert "error: 'thrice_of' was not declared" in log
    assert "warpsmith-compile" not in log


def test_error_within_a_header_hides_where_it_lies(toolchain: Toolchain) -> None:
    log = log_of_failure(toolchain, "cuda", "#define short 5\n#include <cuda_fp16.h>\n")
    assert "\ncuda_fp16.h(" in f"\n{log}"
    assert "site-packages" not in log
    assert "/include/" not in log


def test_undefined_function_fails_the_build_and_not_the_load(toolchain: Toolchain) -> None:
    log = log_of_failure(toolchain, "cpu", 'void missing();\nextern "C" void twice() { missing(); }')
    assert "undefined reference to `missing()'" in log
    assert "/tmp" not in log


def test_too_much_shared_memory_is_ptxas_error(toolchain: Toolchain) -> None:
    log = log_of_failure(toolchain, "cuda", CUDA.replace("tile[64]", "tile[64000]"))
    assert "too much shared data" in log


@both_targets
def test_flood_of_errors_is_cut(toolchain: Toolchain, target: Target) -> None:
    message = "y" * 500
    source = "\n".join(f'static_assert(sizeof(int) == {n}, "{message}");' for n in range(5, 900))
    assert len(log_of_failure(toolchain, target, source)) < 9000


@both_targets
def test_screened_source_never_reaches_a_compiler(toolchain: Toolchain, target: Target) -> None:
    log = log_of_failure(toolchain, target, '\n#include "/etc/passwd"\n')
    assert log.startswith(f"kernel.{'cu' if target == 'cuda' else 'cpp'}:2: error: #include takes")


ASSEMBLED_PATHS = {
    "string pieces": 'asm(".inc" "bin \\"/etc/hostname\\"");',
    "escapes": 'asm(".\\x69ncbin \\"/etc/hostname\\"");',
    "stringified pieces": '#define S(x) #x\n#define T(x) S(x)\nasm("." T(inc) "lude \\"/etc/hostname\\"");',
    "assembler macro": 'asm(".macro m x; .inc\\\\x \\"/etc/hostname\\"; .endm; m bin");',
    "assembler loop": 'asm(".irp x, bin; .inc\\\\x \\"/etc/hostname\\"; .endr");',
}


@pytest.mark.parametrize("source", ASSEMBLED_PATHS.values(), ids=ASSEMBLED_PATHS.keys())
def test_assembly_that_reads_a_file_is_refused_however_it_is_spelled(toolchain: Toolchain, source: str) -> None:
    assert "assembly may not read files" in log_of_failure(toolchain, "cpu", source)


def test_compile_process_cannot_open_files_of_this_machine(toolchain: Toolchain, tmp_path: Path) -> None:
    secret = tmp_path / "secret.h"
    secret.write_text("#error read the secret\n")
    request = {"name": "k.cu", "kind": "cubin", "options": [], "headers": {}}
    with toolchain._nvrtc() as process:
        if not process.greeting["confined"]:
            pytest.skip("this kernel has no Landlock")
        answer, _ = process.ask(request, f'#include "{secret}"'.encode(), 10)
    assert "cannot open source file" in answer["log"] or "could not open source file" in answer["log"]


def test_missing_compiler_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with Toolchain(tmp_path / "cache") as toolchain, pytest.raises(ToolchainMissing, match=r"apt-get install g\+\+"):
        build(toolchain, "cpu")


def test_missing_nvrtc_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    monkeypatch.setattr(sys, "path", [])
    with Toolchain(tmp_path / "cache") as toolchain:
        with pytest.raises(ToolchainMissing, match=r"No module named 'cuda'.*pip install \"warpsmith\[cuda\]\""):
            build(toolchain, "cuda")
        assert "nvrtc" not in toolchain.versions()


# ---------------------------------------------------------------- time-outs and deaths


@both_targets
def test_endless_compilation_is_stopped_and_the_next_build_works(impatient: Toolchain, target: Target) -> None:
    build(impatient, target)
    started = time.monotonic()
    with pytest.raises(CompileTimedOut, match=r"took longer than 1\.5 s"):
        build(impatient, target, ENDLESS)
    assert time.monotonic() - started < 4
    assert compile_processes() == []
    assert not build(impatient, target, SOURCES[target] + "// after").cached


def test_compiler_killed_while_idle_goes_unnoticed(toolchain: Toolchain) -> None:
    build(toolchain, "cuda")
    (process,) = compile_processes()
    os.kill(process, signal.SIGKILL)
    assert not build(toolchain, "cuda", CUDA + "// after").cached


def test_compiler_killed_midway_is_started_again(toolchain: Toolchain) -> None:
    build(toolchain, "cuda")
    slow = "#include <cooperative_groups.h>\n" + CUDA
    (process,) = compile_processes()
    killer = threading.Timer(0.2, os.kill, (process, signal.SIGKILL))
    killer.start()
    assert build(toolchain, "cuda", slow).kernels
    assert compile_processes() != [process]


def test_compiler_out_of_memory_is_started_again(toolchain: Toolchain) -> None:
    build(toolchain, "cuda")
    (process,) = compile_processes()
    resource.prlimit(process, resource.RLIMIT_AS, (1, 1))
    assert build(toolchain, "cuda", "#include <cooperative_groups.h>\n" + CUDA).kernels
    assert compile_processes() != [process]


def test_compiler_that_always_crashes_is_a_failed_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "bin" / "c++"
    compiler.parent.mkdir()
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "fragile 1.0" || kill -9 $PPID\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with Toolchain(tmp_path / "cache") as toolchain:
        assert log_of_failure(toolchain, "cpu", CPU) == "the compiler crashed (SIGKILL)"
        assert toolchain.versions()["c++"] == "fragile 1.0"
    assert not list((tmp_path / "cache").glob("??/*"))


HOST = """\
import sys
from pathlib import Path
from sandbox.toolchain import Toolchain
Toolchain(Path(sys.argv[1])).build(Path(sys.argv[2]).read_text(), sys.argv[3], {}, "sm_86")
"""


@both_targets
def test_compile_process_dies_with_the_host(tmp_path: Path, target: Target) -> None:
    (tmp_path / "endless").write_text(ENDLESS)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, tmp_path / "cache", tmp_path / "endless", target],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    wait_for(lambda: len(running_in(scratch)) >= (1 if target == "cuda" else 3))
    host.kill()
    host.wait()
    wait_for(lambda: running_in(scratch) == [])


def running_in(directory: Path) -> list[str]:
    """Processes whose working directory lies in `directory`."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            place = str(link.readlink())
        except OSError:
            continue
        if place.startswith(str(directory)):
            found.append(link.parent.name)
    return found


def wait_for(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.05)


def test_compilers_see_no_keys(monkeypatch: pytest.MonkeyPatch, toolchain: Toolchain) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    build(toolchain, "cuda")
    (process,) = compile_processes()
    assert b"sk-test" not in Path(f"/proc/{process}/environ").read_bytes()


# ---------------------------------------------------------------- cache


@both_targets
def test_same_build_comes_from_the_cache(toolchain: Toolchain, target: Target) -> None:
    first = build(toolchain, target)
    again = build(toolchain, target)
    assert again == first.model_copy(update={"cached": True})


def test_cache_outlives_the_toolchain(tmp_path: Path) -> None:
    for cached in (False, True):
        with Toolchain(tmp_path / "cache") as toolchain:
            assert build(toolchain, "cpu").cached is cached


@pytest.mark.parametrize("change", ["macros", "arch", "source"])
def test_different_build_is_kept_apart(toolchain: Toolchain, change: str) -> None:
    build(toolchain, "cuda")
    macros = MACROS["cuda"] | ({"FACTOR": "3"} if change == "macros" else {})
    other = toolchain.build(
        CUDA + (" " if change == "source" else ""), "cuda", macros, "sm_90a" if change == "arch" else "sm_86"
    )
    assert not other.cached


@both_targets
def test_failure_is_cached(toolchain: Toolchain, target: Target) -> None:
    log = log_of_failure(toolchain, target, "nonsense")
    assert len(list(toolchain.cache.root.glob("??/*.json"))) == 1
    started = time.monotonic()
    assert log_of_failure(toolchain, target, "nonsense") == log
    assert time.monotonic() - started < 0.02


@pytest.mark.parametrize("damage", [b"", b"\x7fELF something else"])
def test_damaged_artifact_is_built_again(toolchain: Toolchain, damage: bytes) -> None:
    first = build(toolchain, "cpu")
    first.path.chmod(0o644)
    first.path.write_bytes(damage)
    again = build(toolchain, "cpu")
    assert not again.cached
    assert hashlib.sha256(again.path.read_bytes()).hexdigest() == again.sha256
    assert again.path.stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("damage", ["", "{", '{"result": {"outcome": "built"}}'])
def test_damaged_note_is_built_again(toolchain: Toolchain, damage: str) -> None:
    note = build(toolchain, "cpu").path.with_suffix(".json")
    note.chmod(0o644)
    note.write_text(damage)
    assert not build(toolchain, "cpu").cached
    assert build(toolchain, "cpu").cached


def test_lost_artifact_is_built_again(toolchain: Toolchain) -> None:
    build(toolchain, "cpu").path.unlink()
    assert build(toolchain, "cpu").path.exists()


TWO = """\
import sys
from pathlib import Path
from sandbox.toolchain import Toolchain
with Toolchain(Path(sys.argv[1])) as toolchain:
    for n in range(8):
        print(toolchain.build(f'extern "C" __global__ void k{n}() {{}}', "cuda", {}, "sm_86").sha256)
"""


def test_two_processes_share_a_cache(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO, str(tmp_path / "cache")]
    root = Path(__file__).parents[2]
    hosts = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)]
    outputs = [host.communicate()[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0]
    assert outputs[0] == outputs[1]
    assert len(list((tmp_path / "cache").glob("??/*.cubin"))) == 8
    assert not list((tmp_path / "cache").glob("??/.part-*"))


def test_threads_share_a_toolchain(toolchain: Toolchain) -> None:
    artifacts: dict[int, Artifact] = {}

    def one(n: int) -> None:
        artifacts[n] = toolchain.build(f'extern "C" __global__ void k{n}() {{}}', "cuda", {}, "sm_86")

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: artifact.kernels[0].kernel for n, artifact in artifacts.items()} == {n: f"k{n}" for n in range(4)}


def test_prune_removes_what_was_unused_for_longest(toolchain: Toolchain) -> None:
    sources = [f'extern "C" void k{n}() {{}}' for n in range(3)]
    artifacts = [build(toolchain, "cpu", source) for source in sources]
    for age, artifact in zip((10, 30, 20), artifacts, strict=True):
        os.utime(artifact.path.with_suffix(".json"), (time.time() - age,) * 2)
    build(toolchain, "cpu", sources[1])
    sizes = [a.path.stat().st_size + a.path.with_suffix(".json").stat().st_size for a in artifacts]
    assert toolchain.prune(sum(sizes) - 1) == sizes[2]
    assert [artifact.path.exists() for artifact in artifacts] == [True, True, False]


def test_versions_name_both_compilers(toolchain: Toolchain) -> None:
    versions = toolchain.versions()
    assert versions["nvrtc"].count(".") == 1
    assert "g++" in versions["c++"] or "clang" in versions["c++"]
