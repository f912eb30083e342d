"""A package on a GPU that it has no code for: NVRTC compiles its kernels there, else the driver takes their PTX."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agent import tasks
from agent.compose import Part, Winner
from agent.export import coverage, tree, wheel
from agent.export.coverage import Op, Specialisation
from sandbox.toolchain import Toolchain
from tests.agent.export.conftest import A10

CODE = """
import torch
from portable import calls
rng = torch.Generator(device="cuda").manual_seed(0)
for call in calls.calls():
    if call.kind == "held-out":
        values = calls.draw(call, "cuda", rng)
        wanted = calls.exact(call, values)
        limits = calls.limits(call, values, wanted)
        got = calls.answer(call.operator, call, values)
        assert calls.within([calls.distance(a, b) for a, b in zip(got, wanted)], limits), call.name
"""


def with_code_for(op: Op, *archs: str) -> Op:
    """The same with no other compiled code."""

    def less(spec: Specialisation) -> Specialisation:
        return spec.model_copy(update={"images": tuple(image for image in spec.images if image.arch in archs)})

    variants = (
        variant.model_copy(update={"specialisations": tuple(map(less, variant.specialisations))})
        for variant in op.variants
    )
    return op.model_copy(update={"variants": tuple(variants)})


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="no GPU beyond sm_86"
)
@pytest.mark.parametrize("archs", [("sm_86",), ("sm_86", "compute_80")])
def test_code_comes_from_nvrtc_and_without_its_recipe_from_ptx(archs: tuple[str, ...], tmp_path: Path) -> None:
    task = tasks.load("layernorm", "cuda")
    seed = next(seed for seed in tasks.seeds(task) if seed.note == "2_row_in_registers.cu")
    part = Part(task=task, device=A10, winners={w.name: Winner(candidate=seed) for w in task.workloads})
    with Toolchain(tmp_path / "cache") as toolchain:
        (op,) = coverage.ops([part], toolchain)
        tree.write(tree.files(tree.library((with_code_for(op, *archs),), "portable")), tmp_path / "portable")
    built = wheel.build_wheel(tmp_path / "portable", tmp_path)
    site = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site))
    subprocess.run([*pip, str(built)], check=True)
    if "compute_80" in archs:
        (site / "portable" / "kernels.json").unlink()
    environment = {**os.environ, "PYTHONPATH": str(site), "WARPSMITH_FALLBACK": "error"}
    done = subprocess.run([sys.executable, "-P", "-c", CODE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
