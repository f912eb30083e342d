"""Which device is meant by a name, or by none."""

from collections.abc import Callable

import pytest

from agent.asking.device import HERE, at_hand, choose
from agent.asking.setting import Setting
from sandbox.contract import Candidate, Target
from sandbox.errors import BadInput
from tests.agent.asking.conftest import DEVICE, judgement

Judged = Callable[..., Candidate]
H100 = "NVIDIA H100 80GB HBM3"


def on(setting: Setting, candidate: Candidate, device: str, target: Target) -> None:
    found = judgement(setting, candidate, 1.0)
    setting.archive.record(found.model_copy(update={"device": device, "target": target}))


def test_without_a_name_it_is_the_one_at_hand(setting: Setting, judged: Judged) -> None:
    judged("int a;", 1.0)
    assert choose(setting.archive, "layernorm", "cpu", None) == (at_hand("cpu"), HERE)


def test_archived_device_is_known_by_the_beginning_of_its_name(setting: Setting, judged: Judged) -> None:
    on(setting, judged("int a;", 1.0), H100, "cuda")
    found, why = choose(setting.archive, "layernorm", "auto", "some cpu")
    assert (found, why) == (DEVICE, "as asked for")
    assert choose(setting.archive, "layernorm", "cuda", "nvidia h100")[0].arch == "sm_90a"


def test_gpu_that_the_archive_never_saw_is_one_of_the_known_ones(setting: Setting) -> None:
    assert choose(setting.archive, "layernorm", "auto", "NVIDIA A10")[0].arch == "sm_86"
    with pytest.raises(BadInput, match="no figures of GPU 'Voodoo' are known"):
        choose(setting.archive, "layernorm", "cuda", "Voodoo")


def test_name_that_fits_none_or_two_is_refused(setting: Setting, judged: Judged) -> None:
    kernel = judged("int a;", 1.0)
    on(setting, kernel, "Some CPU (8 cores)", "cpu")
    with pytest.raises(BadInput, match=r"device 'Some' fits 2: Some CPU \(4 cores\); Some CPU \(8 cores\)"):
        choose(setting.archive, "layernorm", "cpu", "Some")
    with pytest.raises(BadInput, match=r"no CPU 'Voodoo' in the archive; wanted one of .*Some CPU \(4 cores\)"):
        choose(setting.archive, "layernorm", "cpu", "Voodoo")
