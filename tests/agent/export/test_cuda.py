"""The host side of a cuda extension, against a driver of our own that writes down what it is asked: CI has no GPU."""

import hashlib
import importlib
import json
import os
import re
import struct
import subprocess
from pathlib import Path

import pytest
import torch

from agent.compose import Composed, Part, Winner, compose, verify
from sandbox.contract import Task, Workload
from sandbox.plan import ResolvedPlan, plan_of, resolve
from sandbox.toolchain import Toolchain
from tests.agent.export.conftest import A10, H100, TENSOR_MAP, TWO_PASS, candidate, judgement_of

FAKE_DRIVER = str(Path(__file__).with_name("fake_driver.cpp"))
MAIN = r"""
#include <cstdio>
#include <cstdlib>
#include "driver.h"
#include "rowsum/problem.h"
using namespace PACKAGE;
using namespace PACKAGE::op_rowsum;
int main(int, char** argv) {
  const char* wish = std::getenv("COMPILER");
  if (wish != nullptr)
    compile_with([](const char* module, int capability) {
      std::printf("compile %s %d\n", module, capability);
      if (std::getenv("COMPILER")[0] == '0') return no_code("a scripted reason"), 0;
      return take_code("\x7f" "ELF", 5), 1;
    });
  Problem p{Dtype(std::atoi(argv[1])), std::atoi(argv[1]) == 2 ? 4 : 2, std::atol(argv[2]), std::atol(argv[3]), 0.5f};
  try {
    const Machine machine = machine_of(0);
    const ContextScope scope(0);
    std::string why;
    const Candidate* chosen = choose(p, machine, why);
    if (chosen == nullptr) throw std::runtime_error(why);
    std::printf("chosen %s\nworkspace %ld\n", chosen->id, chosen->workspace_bytes(p, machine));
    for (int i = 0; i < 2; ++i) chosen->run(p, {(void*)0x100, (void*)0x200}, (void*)0x300, machine);
  } catch (const std::exception& error) {
    std::printf("error %s\n", error.what());
  }
}
"""


@pytest.fixture(scope="module")
def sums(rowsum: Task, toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Composed:
    two_pass, mapped = candidate(rowsum, TWO_PASS, CHUNK=512), candidate(rowsum, TENSOR_MAP)
    judgement = judgement_of(rowsum, two_pass)
    first, second = (w.name for w in rowsum.workloads)
    winners = {first: Winner(candidate=two_pass, judgement=judgement), second: Winner(candidate=mapped)}
    small = Winner(candidate=candidate(rowsum, TWO_PASS, CHUNK=512, THREADS=128))
    parts = [Part(task=rowsum, device=A10, winners={first: small}), Part(task=rowsum, device=H100, winners=winners)]
    return compose(parts, toolchain, tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def host(sums: Composed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated host side, without the binding, linked to a main of our own beside a scripted driver."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "main.cpp").write_text(MAIN.replace("PACKAGE", sums.namespace))
    for name in ("libcuda.so.1", "libtorch_cuda.so"):
        subprocess.run(
            ["g++", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), FAKE_DRIVER], check=True
        )
    csrc = sums.root / "csrc"
    sources = [str(path) for path in sorted(csrc.rglob("*.cpp")) if path.name != "binding.cpp"]
    command = ["g++", "-O0", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{csrc}", "-o", str(folder / "main")]
    subprocess.run([*command, str(folder / "main.cpp"), *sources, "-ldl"], check=True)
    return folder


def drive(host: Path, workload: Workload, capability: int = 90, **more: object) -> dict[str, list[str]]:
    """What the driver was asked, by first word."""
    dtype = ["float16", "bfloat16", "float32"].index(workload.dtype)
    figures = {"SMS": H100.sm_count, "SMEM": H100.smem_optin, "CAPABILITY": capability, **more}
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


def test_another_gpu_gets_the_code_that_runs_there(rowsum: Task, host: Path) -> None:
    assert drive(host, rowsum.workloads[0], capability=86)["load"] == ["ELF 0"]
    assert drive(host, rowsum.workloads[0], capability=120)["load"] == ["ptx 0"]
    unproven = Workload(axes={"N": 2000, "D": 100}, scalars={"scale": 1.0}, dtype="float16")
    refusal = drive(host, unproven, capability=86)["error"][0]
    assert refusal.startswith(
        "nothing here serves N=2000 D=100 float16 on sm_86; there is float16, N 64, D 100 to 4096; "
    )


def test_a_gpu_gets_the_winner_that_was_judged_on_its_like(rowsum: Task, host: Path) -> None:
    chosen = {capability: drive(host, rowsum.workloads[0], capability)["chosen"][0] for capability in (86, 90)}
    assert chosen == {
        86: candidate(rowsum, TWO_PASS, CHUNK=512, THREADS=128).id,
        90: candidate(rowsum, TWO_PASS, CHUNK=512).id,
    }


def test_code_that_does_not_load_does_not_serve(rowsum: Task, host: Path) -> None:
    asked = drive(host, rowsum.workloads[0], capability=120, NO_PTX=222)
    assert asked["load"] == ["ptx 0"] * 2, "each candidate is tried once"
    assert asked["error"] == [
        "no code for sm_120 can be had; loading the code for compute_80: scripted failure (222)",
    ]
    refused = drive(host, rowsum.workloads[0], capability=86, NO_ELF=200)
    assert refused["load"] == ["ELF 0", "ptx 0"], "a driver that is too old for the code may still take the text"
    assert len(refused["launch"]) == 4


def test_code_is_compiled_for_a_gpu_that_there_is_none_for_before_ptx_is_tried(rowsum: Task, host: Path) -> None:
    asked = drive(host, rowsum.workloads[0], capability=120, COMPILER=1)
    assert [line.split("/")[0::2] for line in asked["compile"]] == [["rowsum", "0 120"]], "once"
    assert asked["load"] == ["ELF 0"]
    assert "compile" not in drive(host, rowsum.workloads[0], capability=86, COMPILER=1)
    asked = drive(host, rowsum.workloads[0], capability=120, COMPILER=0)
    assert asked["load"] == ["ptx 0"]
    assert len(asked["launch"]) == 4
    hopper_only = drive(host, rowsum.workloads[1], capability=120, COMPILER=1)
    assert hopper_only["load"] == ["ELF 0"]


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"DRIVER": 11080}, "the NVIDIA driver is for CUDA 11.8; wanted one for CUDA 12.0 or later"),
        ({"NO_INIT": 100}, "cuInit failed; is a GPU visible?"),
    ],
)
def test_a_driver_that_cannot_be_used_is_told(
    rowsum: Task, host: Path, figures: dict[str, object], message: str
) -> None:
    assert drive(host, rowsum.workloads[0], **figures)["error"] == [message]


def test_a_failing_launch_names_the_kernel_and_the_error(rowsum: Task, host: Path) -> None:
    assert drive(host, rowsum.workloads[0], FAIL=1)["error"] == ["launch partial: scripted failure (1)"]


def test_the_code_embedded_is_the_code_that_was_judged(rowsum: Task, sums: Composed, toolchain: Toolchain) -> None:
    known = json.loads((sums.root / sums.package / "provenance.json").read_text())["tasks"]["rowsum"]
    award = next(each for each in known["workloads"] if each["judged"])
    assert (award["workload"], award["device"]) == (rowsum.workloads[0].name, H100.name)
    assert award["speedup"] == {"eager": 2.5}
    origin = known["candidates"][award["candidate"]]
    spec = origin["specialisations"][0]
    judged = toolchain.build(TWO_PASS, "cuda", spec["macros"], "sm_90a")
    assert spec["artifacts"]["sm_90a"] == {"sha256": judged.sha256, "judged": True}
    assert {arch: made["judged"] for arch, made in spec["artifacts"].items()} == {
        "sm_90a": True, "sm_80": False, "sm_86": False, "sm_89": False, "compute_80": False,
    }  # fmt: skip
    (array,) = (sums.root / "csrc").rglob(f"code_{award['candidate'][:12]}_0_sm_90a.inc")
    words = [int(word, 16) for word in re.findall(r"0x([0-9a-f]+)", array.read_text())]
    code = struct.pack(f"<{len(words)}Q", *words)[: judged.path.stat().st_size]
    assert hashlib.sha256(code).hexdigest() == judged.sha256


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_a_cuda_extension_builds_and_imports_without_a_gpu_and_leaves_cpu_tensors_to_pytorch(
    rowsum: Task, sums: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.syspath_prepend(str(sums.root))
    extension = importlib.import_module(sums.package)
    with pytest.warns(UserWarning, match="rowsum: x is on the CPU; the kernels are for cuda; PyTorch computes it"):
        assert extension.rowsum(torch.ones(4, 4), 1.0).tolist() == [4.0] * 4
    monkeypatch.setenv("WARPSMITH_FALLBACK", "error")
    with pytest.raises(RuntimeError, match="rowsum: x is on the CPU; the kernels are for cuda"):
        extension.rowsum(torch.ones(4, 4), 1.0)
    name = next(iter(json.loads((sums.root / sums.package / "kernels.json").read_text())["modules"]))
    assert extension.loading.compiling.compile_for(name, 100).startswith(b"\x7fELF")
    with pytest.raises(extension.loading.compiling.CannotCompile, match=r"NVRTC refuses it: .*--gpu-architecture"):
        extension.loading.compiling.compile_for(name, 10)
    report = verify(sums.root, rowsum)
    assert (report.ok, report.ran, report.message) == (True, False, "built and imported; not run: no GPU")
