"""ptxas reports of several compilers, and occupancy against NVIDIA's calculator."""

import pytest

from sandbox.contract import KernelResources
from sandbox.errors import BadInput
from sandbox.resources import gpu_named, gpus, limits, limits_by_arch, occupancy, parse_ptxas, without_chatter

NVRTC_13 = """\
kernel.cu(3): warning #177-D: variable "x" was declared but never referenced
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'partial' for 'sm_90a'
ptxas info    : Function properties for partial
ptxas         .     256 bytes stack frame, 24 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16384 bytes smem
ptxas info    : Compile time = 15.175 ms
ptxas info    : Compiling entry function 'finish' for 'sm_90a'
ptxas info    : Function properties for finish
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
ptxas info    : Compile time = 2.055 ms
"""

NVCC_12 = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1fPf' for 'sm_86'
ptxas info    : Function properties for _Z6helperf
    64 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
ptxas info    : Function properties for _Z1fPf
    16 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, 4352 bytes smem, 360 bytes cmem[0]
"""


def test_nvrtc_report_gives_resources_by_kernel() -> None:
    assert parse_ptxas(NVRTC_13) == (
        KernelResources(kernel="partial", registers=255, spill_bytes=64, smem_bytes=16384, stack_bytes=256),
        KernelResources(kernel="finish", registers=8, spill_bytes=0, smem_bytes=0, stack_bytes=0),
    )


def test_nvcc_report_counts_the_entry_and_not_its_callees() -> None:
    assert parse_ptxas(NVCC_12) == (
        KernelResources(kernel="_Z1fPf", registers=40, spill_bytes=8, smem_bytes=4352, stack_bytes=16),
    )


def test_warnings_stay_when_the_report_goes() -> None:
    assert without_chatter(NVRTC_13) == NVRTC_13.splitlines()[0]


@pytest.mark.parametrize(
    ("arch", "registers", "threads", "smem_bytes", "share"),
    [
        ("sm_80", 32, 256, 0, 1.0),  # 8 blocks of 8 warps
        ("sm_80", 64, 256, 0, 0.5),  # registers: 32 warps
        ("sm_80", 255, 128, 0, 0.125),  # 8192 registers a warp: 2 warps per partition
        ("sm_80", 33, 256, 0, 0.75),  # 33 registers are given as 40: 48 warps
        ("sm_80", 32, 128, 80 * 1024, 0.125),  # 81 KB a block, 164 KB: 2 blocks of 4 warps
        ("sm_80", 32, 32, 0, 0.5),  # 32 blocks of one warp
        ("sm_86", 32, 1024, 0, 2 / 3),  # 1536 threads: one block
        ("sm_86", 40, 256, 0, 1.0),  # 48 warps
        ("sm_86", 32, 32, 0, 1 / 3),  # 16 blocks of one warp
        ("sm_86", 32, 256, 48 * 1024, 1 / 3),  # 2 blocks
        ("sm_86", 32, 256, 49.5 * 1024, 1 / 6),  # with its reserved KB one block too many
        ("sm_89", 32, 32, 0, 0.5),  # 24 blocks of one warp
        ("sm_90", 168, 384, 227 * 1024, 0.1875),  # one block of 12 warps
        ("sm_90a", 32, 128, 113 * 1024, 0.125),  # 2 blocks of 4 warps in 228 KB
        ("sm_100", 32, 256, 0, 1.0),
        ("sm_120", 32, 32, 0, 0.5),
        ("sm_86", 32, 128, 100 * 1024, 0.0),  # 99 KB is the most a block can have
        ("sm_90", 255, 1024, 0, 0.0),  # 32 warps of 8192 registers do not fit
        ("sm_90", 32, 1025, 0, 0.0),
    ],
)
def test_occupancy_is_that_of_nvidias_calculator(
    arch: str, registers: int, threads: int, smem_bytes: float, share: float
) -> None:
    assert occupancy(registers, threads, int(smem_bytes), limits(arch)) == pytest.approx(share)


def test_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"unknown architecture 'sm_35'; known are sm_80, sm_86"):
        limits("sm_35")


@pytest.mark.parametrize(
    ("driver_name", "name"),
    [
        ("NVIDIA A10", "NVIDIA A10"),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB"),
        ("NVIDIA A100-PCIE-40GB", "NVIDIA A100-SXM4-40GB"),
        ("NVIDIA A100 80GB PCIe", "NVIDIA A100 80GB PCIe"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("NVIDIA H100 NVL", "NVIDIA H100 NVL"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("NVIDIA L4", "NVIDIA L4"),
        ("NVIDIA L40S", "NVIDIA L40S"),
        ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("NVIDIA B200", "NVIDIA B200"),
    ],
)
def test_driver_name_finds_the_product(driver_name: str, name: str) -> None:
    product = gpu_named(driver_name)
    assert product is not None
    assert product.name == name


@pytest.mark.parametrize(
    "driver_name", ["NVIDIA A10G", "NVIDIA L40", "NVIDIA GeForce RTX 4090 D", "NVIDIA GH200 480GB"]
)
def test_product_without_figures_is_not_taken_for_a_sibling(driver_name: str) -> None:
    assert gpu_named(driver_name) is None


def test_every_architecture_has_a_product_to_stand_for_it() -> None:
    products = {product.name: product.arch for product in gpus()}
    assert {products[figures.gpu] for figures in limits_by_arch().values()} == set(limits_by_arch())
