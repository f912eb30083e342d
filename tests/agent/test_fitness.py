"""Seeds that a device cannot run are passed over with a reason, before anything is compiled or judged."""

from pathlib import Path

import pytest

from agent import fitness, session, tasks
from agent.proposers.tuner import Tuner
from sandbox import devices, plan
from sandbox.errors import BadInput

FORBIDDEN = "// tune-if: BLOCK > 64\n"


@pytest.mark.parametrize("arch", ["sm_80", "sm_86"])
def test_hopper_seeds_are_passed_over_on_ampere_with_the_reason(arch: str) -> None:
    task, device = tasks.load("attention", "cuda"), devices.cross(arch)
    reasons = fitness.passed_over(task, tasks.seeds(task), device)
    assert list(reasons) == ["3_wgmma.cu", "4_persistent.cu"]
    assert all(f"does not hold on {device.name}" in reason for reason in reasons.values())
    assert all("tune-if smem_optin" in reason for reason in reasons.values())


def test_nothing_is_passed_over_on_hopper() -> None:
    task = tasks.load("attention", "cuda")
    assert fitness.passed_over(task, tasks.seeds(task), devices.cross("sm_90")) == {}


def test_launch_that_does_not_fit_is_a_reason() -> None:
    task, device = tasks.load("attention", "cuda"), devices.cross("sm_86")
    seed = tasks.seeds(task)[-1]
    unconstrained = plan.parse(seed.source.replace("// tune-if: ", "// was: "), task)
    assert "beyond the device's" in fitness.misfit(task, unconstrained, seed.tunables, device)


def test_search_starts_from_the_suitable_seeds(toy_folder: Path) -> None:
    forbid(toy_folder / "cpu" / "2_blocked.cpp")
    task, device = tasks.load(str(toy_folder), "cpu"), devices.cpu()
    seeds, reasons = session.suitable(task, device)
    assert [seed.note for seed in seeds] == ["1_plain.cpp", "10_other.cpp"]
    assert list(reasons) == ["2_blocked.cpp"]
    assert Tuner(task, seeds, device, 0).propose([], 9) == seeds


def test_task_without_a_suitable_seed_is_bad_input(toy_folder: Path) -> None:
    (toy_folder / "cpu" / "1_plain.cpp").unlink()
    for name in ("2_blocked.cpp", "10_other.cpp"):
        forbid(toy_folder / "cpu" / name)
    with pytest.raises(BadInput, match=r"no seed kernel of task 'toy' suits .*: 2_blocked\.cpp: tune-if BLOCK > 64"):
        session.suitable(tasks.load(str(toy_folder), "cpu"), devices.cpu())


def forbid(seed: Path) -> None:
    seed.write_text(FORBIDDEN + seed.read_text())
