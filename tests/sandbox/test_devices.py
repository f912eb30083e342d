"""Finding the device at hand, and standing in for one that is not."""

import os
import sys

import pytest

from sandbox.devices import asked_driver, compile_arch, cross, detect, driver_version, elsewhere, gpu
from sandbox.errors import BadInput

H100 = {
    "name": "NVIDIA H100 80GB HBM3",
    "driver": "13.0",
    "sm_count": 132,
    "l2_bytes": 52428800,
    "smem_optin": 232448,
    "major": 9,
    "minor": 0,
}

GPU_MISSING = "missing" in asked_driver()
no_gpu = pytest.mark.skipif(not GPU_MISSING, reason="there is a GPU")


def test_cpu_is_named_with_its_usable_cores() -> None:
    device = detect("cpu")
    assert device.target == "cpu"
    assert device.threads == len(os.sched_getaffinity(0))
    assert device.name.endswith(f"({device.threads} cores)" if device.threads > 1 else "(1 core)")
    assert device.arch == os.uname().machine


@no_gpu
def test_auto_without_gpu_is_the_cpu() -> None:
    assert detect("auto") == detect("cpu")
    assert driver_version() is None


@no_gpu
def test_cuda_without_gpu_says_why_and_what_else() -> None:
    with pytest.raises(BadInput, match=r"needs an NVIDIA GPU: .+; use target 'cpu'"):
        detect("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(GPU_MISSING, reason="there is no GPU")
def test_gpu_at_hand_is_found_without_a_context_in_this_process() -> None:
    device = detect("cuda")
    assert device == detect("auto")
    assert device.sm_count > 0
    assert "cuda.bindings" not in sys.modules


def test_driver_figures_go_with_those_of_the_datasheet() -> None:
    device = gpu(H100)
    assert (device.arch, device.sm_count, device.smem_optin) == ("sm_90a", 132, 232448)
    assert device.bandwidth_gbs == 3352
    assert device.tflops["float16"] == 989.4


def test_gpu_without_datasheet_has_no_peaks() -> None:
    device = gpu(H100 | {"name": "NVIDIA Unheard-of", "major": 8, "minor": 7})
    assert (device.arch, device.bandwidth_gbs, device.tflops) == ("sm_87", None, {})


def test_driver_agrees_with_the_stand_in() -> None:
    assert cross("sm_90a") == gpu(H100)


@pytest.mark.parametrize(
    ("bare", "arch"), [("sm_80", "sm_80"), ("sm_86", "sm_86"), ("sm_90", "sm_90a"), ("sm_100", "sm_100a")]
)
def test_architectures_with_instructions_of_their_own_get_a_suffix(bare: str, arch: str) -> None:
    assert compile_arch(bare) == arch


def test_sm_86_is_an_a10() -> None:
    device = cross("sm_86")
    assert (device.name, device.arch, device.sm_count, device.bandwidth_gbs) == ("NVIDIA A10", "sm_86", 72, 600)


def test_gpu_elsewhere_keeps_the_name_it_was_judged_under() -> None:
    assert elsewhere("NVIDIA H100 80GB HBM3", "cuda") == gpu(H100)
    assert elsewhere("NVIDIA A10", "cuda") == cross("sm_86")
    with pytest.raises(BadInput, match=r"no figures of GPU 'NVIDIA Unheard-of' are known; wanted one of NVIDIA A10"):
        elsewhere("NVIDIA Unheard-of", "cuda")


def test_cpu_elsewhere_has_the_cores_of_its_name() -> None:
    assert elsewhere("Some CPU @ 2.20GHz (16 cores)", "cpu").threads == 16
    assert elsewhere("box", "cpu").threads == 0


def test_unknown_architecture_is_bad_input() -> None:
    with pytest.raises(BadInput, match=r"'sm_12'; known are"):
        cross("sm_12")
