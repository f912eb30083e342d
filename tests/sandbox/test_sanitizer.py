"""Reports of sanitizers as records, in the form of compute-sanitizer 2025 and of g++ 12's AddressSanitizer.

On cpu also for real: a library built with the checks, called in a worker.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import devices, launch
from sandbox.contract import SanitizerReport
from sandbox.instruments import Call, Outcome
from sandbox.sanitizer import asan_runtime, read_asan, read_report, sanitize
from sandbox.toolchain import Toolchain
from sandbox.worker import wire
from sandbox.worker.layout import lay_out

OUT_OF_BOUNDS = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at shift(float *, const float *, long)+0xd0 in kernel.cu:9
=========     by thread (31,0,0) in block (0,0,0)
=========     Access at 0x7f241b0001e0 is out of bounds
=========     and is 33 bytes after the nearest allocation at 0x7f241b000000 of size 448 bytes
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: cuLaunchKernelEx [0x1234] in libcuda.so.1
=========
========= Invalid __global__ write of size 4 bytes
=========     at shift(float *, const float *, long)+0xd0 in kernel.cu:9
=========     by thread (30,0,0) in block (0,0,0)
=========     Access at 0x7f241b0001dc is out of bounds
=========     and is 29 bytes after the nearest allocation at 0x7f241b000000 of size 448 bytes
=========
========= Invalid __shared__ read of size 16 bytes
=========     at at_row(int)+0xb0
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x8 is misaligned
=========         Device Frame: gather+0x30
=========
========= ERROR SUMMARY: 3 errors
"""
RACE = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at sum(int *, int *)+0x90 in kernel.cu:41
=========     and Read access at sum(int *, int *)+0x100 in kernel.cu:51 [508 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
RACE_WARNING = """\
========= COMPUTE-SANITIZER
========= Warning: Race reported between Write access at 0x90 in sum
=========     and Read access at 0x120 in sum [62 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)
"""
UNINITIALISED = """\
========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at finish(float *, void *)+0x70
=========     by thread (31,0,0) in block (1,0,0)
=========     Address 0x7f3c7ec000fc
=========
========= ERROR SUMMARY: 1 error
"""
CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
NO_CUDA = """\
========= COMPUTE-SANITIZER
========= Error: process didn't terminate successfully
========= Error: Target application terminated before first instrumented API call
"""
ASAN = """\
=================================================================
==12343==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x606000002ca0 at pc 0x7f6684135251 bp 0x7f66 sp 0x7f
READ of size 4 at 0x606000002ca0 thread T1
    #0 0x7f6684135250  (/proc/self/fd/9+0x1250)

0x606000002ca0 is located 0 bytes to the right of 64-byte region [0x606000002c60,0x606000002ca0)
allocated by thread T0 here:
    #0 0x7f66850b89cf  (/usr/lib/x86_64-linux-gnu/libasan.so.8.0.0+0xb89cf)
"""


def said(report: str, trouble: str = "") -> Outcome:
    return Outcome(report=report, trouble=trouble, seconds=2.5)


def test_accesses_out_of_bounds_are_counted_by_kernel_and_kind() -> None:
    report = read_report("memcheck", said(OUT_OF_BOUNDS, "B1: CUDA_ERROR_LAUNCH_FAILED"))
    assert report.errors == 3
    assert [(fault.kernel, fault.what, fault.count) for fault in report.kernels] == [
        ("shift", "Invalid __global__ write of size 4 bytes", 2),
        ("gather", "Invalid __shared__ read of size 16 bytes", 1),
    ]
    where = [fault.where for fault in report.kernels]
    assert where[0] == "Access is out of bounds and is 33 bytes after the nearest allocation of size 448 bytes"
    assert where[1] == "Address is misaligned"


def test_an_excerpt_holds_no_address_and_no_host_frame() -> None:
    excerpt = read_report("memcheck", said(OUT_OF_BOUNDS)).excerpt
    assert "0x7f" not in excerpt
    assert "Host Frame" not in excerpt
    assert excerpt.startswith("Invalid __global__ write of size 4 bytes\n")


def test_a_race_names_both_accesses() -> None:
    report = read_report("racecheck", said(RACE))
    assert report.errors == 1
    assert report.kernels[0].kernel == "sum"
    assert report.kernels[0].what == "Race reported between Write access"
    assert report.kernels[0].where.startswith("and Read access at sum(int *, int *)")


def test_a_hazard_within_a_warp_is_a_warning_and_no_error() -> None:
    report = read_report("racecheck", said(RACE_WARNING))
    assert report.errors == 0
    assert report.kernels[0].what == "warning: Race reported between Write access"
    assert report.kernels[0].kernel == "sum"


def test_uninitialised_reads_are_found() -> None:
    report = read_report("initcheck", said(UNINITIALISED))
    assert (report.errors, report.kernels[0].kernel) == (1, "finish")


def test_a_clean_report_has_no_errors() -> None:
    report = read_report("memcheck", said(CLEAN))
    assert (report.errors, report.kernels, report.excerpt, report.seconds) == (0, (), "", 2.5)


@pytest.mark.parametrize(("report", "trouble"), [("", "call took more than 60 s"), (NO_CUDA, ""), (CLEAN, "call died")])
def test_a_tool_that_came_to_no_result_neither_accuses_nor_acquits(report: str, trouble: str) -> None:
    found = read_report("memcheck", said(report, trouble))
    assert found.errors is None
    assert found.excerpt.startswith("no result: ")
    assert (trouble or "terminated before first instrumented API call") in found.excerpt


def test_what_was_found_before_the_worker_died_counts() -> None:
    torn = OUT_OF_BOUNDS[: OUT_OF_BOUNDS.index("========= ERROR SUMMARY")]
    assert read_report("memcheck", said(torn, "killed by SIGKILL")).errors == 3


def test_address_sanitizer_names_access_and_place() -> None:
    report = read_asan(said(ASAN, "worker exited with code 1"), "layernorm")
    assert report.errors == 1
    assert report.kernels[0].kernel == "layernorm"
    assert report.kernels[0].what == "heap-buffer-overflow: READ of size 4"
    assert report.kernels[0].where == "0 bytes to the right of 64-byte region"
    assert report.excerpt == (
        "AddressSanitizer: heap-buffer-overflow: READ of size 4, 0 bytes to the right of 64-byte region"
    )


def test_address_sanitizer_is_silent_about_a_right_kernel() -> None:
    assert read_asan(said(""), "layernorm").errors == 0
    assert read_asan(said("", "the worker did not start"), "layernorm").errors is None


def test_the_runtime_is_named_as_the_loader_finds_it() -> None:
    assert asan_runtime() is None or asan_runtime().startswith("libasan.so.")  # type: ignore[union-attr]


# ---------------------------------------------------------------- for real

TOY = """
extern "C" void toy(float* out, const float* in, int64_t N, void* workspace) {{
    for (int64_t i = 0; i < N; ++i) out[i] = 2 * in[i + {shift}];
}}
"""
N = 1000


@pytest.fixture
def toolchain(tmp_path: Path) -> Iterator[Toolchain]:
    with Toolchain(tmp_path) as opened:
        yield opened


def address(toolchain: Toolchain, source: str) -> SanitizerReport:
    layout = lay_out([4 * N, 4 * N], sets=1, workspace_bytes=0)
    arena = wire.memory_file("arena", layout.total)
    built = toolchain.sanitized(source, {}, devices.cpu().arch)
    launcher, _ = launch.choose("local")
    bind = {
        "key": built.sha256,
        "sets": [layout.offsets(0)],
        "workspace": layout.workspace,
        "outputs": 1,
        "tensors": [{"size": 4 * N, "shape": [N], "dtype": "float32"}] * 2,
        "scalars": [["axis", N]],
        "plan": {"workspace_bytes": 0, "zero_workspace": False, "launches": [], "tensormaps": []},
    }
    load = {"key": built.sha256, "entry": "toy", "form": "kernel"}
    call = Call(
        workload="N1000 float32",
        artifact=built.path,
        load=load,
        bind=bind,
        outputs=1,
        arena=arena,
        arena_bytes=layout.total,
    )
    try:
        return sanitize(launcher, devices.cpu(), [call], ["address"])[0]
    finally:
        launcher.close()
        os.close(arena)


@pytest.mark.skipif(asan_runtime() is None, reason="g++ has no libasan.so")
def test_a_right_library_runs_clean(toolchain: Toolchain) -> None:
    report = address(toolchain, TOY.format(shift=0))
    assert (report.errors, report.kernels) == (0, ())


@pytest.mark.skipif(asan_runtime() is None, reason="g++ has no libasan.so")
def test_a_library_that_reads_past_its_input_is_caught(toolchain: Toolchain) -> None:
    report = address(toolchain, TOY.format(shift=1))
    assert report.errors == 1
    assert report.kernels[0].kernel == "toy"
    assert report.kernels[0].what.startswith("heap-buffer-overflow: READ of size ")
    assert report.kernels[0].where.endswith("4000-byte region")
