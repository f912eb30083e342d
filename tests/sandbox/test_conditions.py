"""What a GPU was like while it was timed, and when that makes timings decide nothing."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandbox.contract import Conditions, Device, Task, Workload
from sandbox.courtroom import Courtroom
from sandbox.referee import conditions


class Refusal(Exception):
    pass


class Library:
    """An NVML that tells what it is made to tell; no GPU here has any other."""

    NVMLError = Refusal
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = "sm", "memory", "gpu"
    nvmlClocksEventReasonSwPowerCap = 4
    nvmlClocksEventReasonHwSlowdown = 8
    nvmlClocksEventReasonSwThermalSlowdown = 32
    nvmlClocksEventReasonHwThermalSlowdown = 64
    nvmlClocksEventReasonHwPowerBrakeSlowdown = 128

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def answer(handle: str, which: str = "") -> Any:
            if name + which not in self.told:
                raise Refusal
            return self.told[name + which]

        return answer


def test_clocks_and_what_holds_them_down_are_told() -> None:
    told = {
        "nvmlDeviceGetCurrentClocksEventReasons": 4 | 64,
        "nvmlDeviceGetClockInfosm": 1410,
        "nvmlDeviceGetClockInfomemory": 2619,
        "nvmlDeviceGetTemperaturegpu": 71,
        "nvmlDeviceGetPowerUsage": 691_500,
    }
    found = Conditions(idle_ms=0.01, **conditions.clocks(Library(told), "gpu 0"))
    assert (found.sm_mhz, found.memory_mhz, found.temperature_c, found.power_w) == (1410, 2619, 71, 691.5)
    assert found.slowed == ("thermal slowdown by hardware", "power cap")


def test_what_a_gpu_does_not_tell_stays_open() -> None:
    found = conditions.clocks(Library({"nvmlDeviceGetClockInfosm": 1980}), "gpu 0")
    assert found == {"sm_mhz": 1980, "memory_mhz": None, "temperature_c": None, "power_w": None, "slowed": []}


@pytest.fixture
def room() -> Courtroom:
    task = Task(
        name="t",
        version="1",
        summary="",
        target="cuda",
        axes=("N",),
        outputs=(),
        inputs=(),
        workloads=(Workload(axes={"N": 1}),),
        bytes_moved="N",
        flops="N",
        folder=Path(),
    )
    return Courtroom(task, Device(name="gpu", target="cuda", arch="sm_90a"), random.Random(0))


def seen(**figures: Any) -> Conditions:
    return Conditions.model_validate({"idle_ms": 0.02, "sm_mhz": 1980, **figures})


def test_a_quiet_gpu_at_its_clock_disturbs_nothing(room: Courtroom) -> None:
    assert room.disturbance(seen()) == ""
    assert room.disturbance(seen(sm_mhz=1900, slowed=("power cap",))) == ""
    assert room.disturbance(Conditions(idle_ms=0.02)) == ""


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"idle_ms": 2.5}, "busy with somebody else"),
        ({"slowed": ("thermal slowdown by hardware", "power cap")}, "held down: thermal slowdown by hardware"),
        ({"sm_mhz": 1200}, "ran at 1200 MHz, where it had 1980 MHz before"),
    ],
)
def test_a_busy_or_throttled_gpu_is_said_to_be_so(room: Courtroom, figures: dict[str, Any], words: str) -> None:
    room.disturbance(seen())
    assert words in room.disturbance(seen(**figures))
