"""Which device a kernel is asked for: the one at hand, or one elsewhere that the archive knows by name."""

from __future__ import annotations

from typing import Literal

from agent import tasks
from archive import Archive
from sandbox import devices
from sandbox.contract import Device, Target
from sandbox.errors import BadInput

HERE = "this machine's"


def at_hand(target: Target) -> Device | None:
    """The device of this machine; None where a GPU is wanted and there is none."""
    if target == "cuda" and "missing" in devices.asked_driver():
        return None
    return devices.detect(target)


def choose(archive: Archive, task: str, target: Literal["auto", "cuda", "cpu"], name: str | None) -> tuple[Device, str]:
    """The device that is meant, and why, in words. BadInput where there is none, or more than one.

    `name` is the whole or the beginning of a name in the archive, or a GPU's as its driver gives it. Without it: the
    device at hand, else, for a target that this machine lacks, the one on which the task was judged last.
    """
    here = [found for each in _targets(target) if (found := at_hand(each))]
    if name is not None:
        return _named(archive, target, name, here)
    return (here[0], HERE) if here else (_judged_last(archive, task), "where this task was judged last")


def _targets(target: Literal["auto", "cuda", "cpu"]) -> tuple[Target, ...]:
    return ("cuda", "cpu") if target == "auto" else (target,)


def _named(
    archive: Archive, target: Literal["auto", "cuda", "cpu"], name: str, here: list[Device]
) -> tuple[Device, str]:
    own: dict[str, Target] = {device.name: device.target for device in here}
    known = own | {j.device: j.target for _, j in archive.judgements() if j.target in _targets(target)}
    fits = [name] if name in known else [device for device in known if device.lower().startswith(name.lower())]
    if len(fits) > 1:
        raise BadInput(f"device {name!r} fits {len(fits)}: {'; '.join(fits)}; wanted more of the name")
    if not fits and target == "cpu":
        raise BadInput(f"no CPU {name!r} in the archive; wanted one of {'; '.join(known)}")
    if fits and fits[0] in own:
        return next(device for device in here if device.name == fits[0]), HERE
    found = fits[0] if fits else name
    return devices.elsewhere(found, known.get(found, "cuda")), "as asked for"


def _judged_last(archive: Archive, task: str) -> Device:
    judged = archive.judgements(tasks.load(task, "cuda").name, "cuda")
    if not judged:
        raise BadInput(
            f"this machine has no GPU, and the archive has no judgement of {task} on one: give --device NAME, such as "
            "'NVIDIA A10', or import the archive of a machine that judges"
        )
    return devices.elsewhere(judged[-1][1].device, "cuda")
