"""A package for the CPU, built into a wheel by the real compilers, and called from what the wheel holds.

All tests share one wheel. Not covered: what is written into the tree (test_tree.py).
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agent.compose import Composed, Part, Winner, compose, verify
from agent.export.wheel import build_wheel
from sandbox.contract import Task
from sandbox.toolchain import Toolchain
from tests.agent.export.conftest import CPU, SCALED, candidate, marked

NAME = "kernels_for_tests"


@pytest.fixture(scope="module")
def composed(affine: Task, scaled: Task, toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Composed:
    """Three winners of `affine` whose outputs tell who ran, +0, +3 and +30 000, and one of `scaled`."""
    names = [workload.name for workload in affine.workloads]
    winners = {
        name: Winner(candidate=candidate(affine, marked(mark))) for name, mark in zip(names, (0, 1, 10000), strict=True)
    }
    parts = [
        Part(task=affine, device=CPU, winners=winners),
        Part(task=scaled, device=CPU, winners={scaled.workloads[0].name: Winner(candidate=candidate(scaled, SCALED))}),
    ]
    return compose(parts, toolchain, tmp_path_factory.mktemp("out"), NAME)


@pytest.fixture(scope="module")
def installed(composed: Composed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel was unpacked to."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(composed.root, folder)
    assert wheel.name.endswith("-cp310-abi3-linux_x86_64.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


@pytest.fixture(scope="module")
def extension(installed: Path) -> Any:
    """Imported in this process; its name is its own, so nothing is in the way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(installed))
        return importlib.import_module(NAME)


@pytest.fixture
def kernels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARPSMITH_FALLBACK", "error")


@pytest.fixture
def ops(extension: Any) -> Any:
    return getattr(torch.ops, extension.operators.NAMESPACE)


@pytest.fixture
def untold(extension: Any) -> Iterator[None]:
    """Nobody was warned yet."""
    extension.registering._told.clear()
    yield
    extension.registering._told.clear()


def python(installed: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": str(installed), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def arguments(n: int, d: int) -> list[torch.Tensor]:
    return [torch.zeros(n), torch.randn(n, d), torch.randn(d), torch.arange(n, dtype=torch.int32) % d]


def as_dtype(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {name: arguments[name].to(dtype) for name in ("state", "x", "bias")}


def mark_of(extension: Any, n: int, d: int, flip: int) -> float:
    """What the candidate that took the call adds to a correct output."""
    state, x, bias, p = arguments(n, d)
    out, _ = extension.affine(state, x, bias, p, flip, 1.0)
    return round(float((out - (-x if flip else x) - bias).mean()), 1)


@pytest.mark.usefixtures("kernels_only")
def test_each_workload_takes_its_own_winner_though_helpers_share_names(extension: Any) -> None:
    assert mark_of(extension, 64, 8, 0) == 0
    assert mark_of(extension, 4096, 8, 0) == 3
    assert mark_of(extension, 64, 16, 1) == 30000


@pytest.mark.usefixtures("kernels_only")
def test_other_shapes_take_the_nearest_workload_in_log_space(extension: Any) -> None:
    assert mark_of(extension, 300, 8, 0) == 0
    assert mark_of(extension, 700, 8, 0) == 3


@pytest.mark.usefixtures("kernels_only")
def test_statics_nobody_won_are_served_by_the_nearest_winner(composed: Composed, extension: Any) -> None:
    assert mark_of(extension, 3, 8, 1) == 0
    assert mark_of(extension, 5, 12, 0) == 30000
    assert len(composed.served["affine"]) == 5


@pytest.mark.usefixtures("kernels_only")
def test_outputs_inouts_defaults_and_keywords(extension: Any) -> None:
    state, x, bias, p = arguments(64, 8)
    before = x.clone()
    out, argument = extension.affine(state, x, bias, p=p, flip=0)
    torch.testing.assert_close(out, 2.5 * x + bias)
    torch.testing.assert_close(state, out.sum(1))
    assert argument.dtype == torch.int32
    assert argument.tolist() == torch.stack([p, 2 * p], 1).reshape(-1).tolist()
    assert torch.equal(x, before)


@pytest.mark.usefixtures("kernels_only")
def test_inputs_that_are_not_contiguous_or_aligned_are_copied(extension: Any) -> None:
    state, x, bias, p = arguments(64, 8)
    wanted, _ = extension.affine(torch.zeros(64), x, bias, p, 0)
    shifted = torch.cat([torch.zeros(1), bias])[1:]
    got, _ = extension.affine(state, x.T.contiguous().T, shifted, p, 0)
    assert torch.equal(got, wanted)


def test_empty_tensors_give_empty_outputs(extension: Any) -> None:
    out, argument = extension.affine(*arguments(0, 8), 0)
    assert (out.shape, argument.shape) == ((0, 8), (0,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"x": torch.randn(64, 9)}, r"bias has shape \[8\], wanted \[D\] = \[9\]"),
        (lambda a: a | {"x": torch.randn(64)}, r"x has shape \[64\], wanted \[N, D\]"),
        (lambda a: a | {"p": torch.zeros(63, dtype=torch.int32)}, r"p has shape \[63\], wanted \[N\] = \[64\]"),
        (lambda a: a | {"p": torch.zeros(64)}, "p is Float, wanted Int"),
        (lambda a: a | {"bias": torch.zeros(8).double()}, "bias is Double, wanted Float"),
        (lambda a: a | as_dtype(a, torch.int32), "state is Int, wanted Half, BFloat16, Float or Double"),
        (lambda a: a | {"state": torch.zeros(128)[::2]}, r"state is changed in place and must be contiguous"),
        (lambda a: a | {"state": torch.zeros(65)[1:]}, "state .* must begin at a multiple of 64 bytes"),
        (lambda a: a | {"flip": 2**40}, "flip = 1099511627776 does not fit an int"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused_by_name(extension: Any, change: Any, message: str) -> None:
    state, x, bias, p = arguments(64, 8)
    with pytest.raises(RuntimeError, match=f"affine: {message}"):
        extension.affine(**change({"state": state, "x": x, "bias": bias, "p": p, "flip": 0}))


# ---------------------------------------------------------------- the way back to PyTorch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"flip": 7}, "N=64 D=8 flip=7 float32; there is float32, D = 8, flip = 0, N 3 to 4096; "),
        (lambda a: a | as_dtype(a, torch.half), "N=64 D=8 flip=0 float16; there is "),
        (lambda a: a | as_dtype(a, torch.double), "N=64 D=8 flip=0 float64; there is "),
        (
            lambda a: {**dict(zip(("state", "x", "bias", "p"), arguments(4097, 8), strict=True)), "flip": 0},
            "N=4097 D=8 flip=0 float32; there is ",
        ),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("untold")
def test_what_no_kernel_was_proven_for_pytorch_computes_and_says_so_once(
    extension: Any, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    state, x, bias, p = arguments(64, 8)
    given = change({"state": state, "x": x, "bias": bias, "p": p, "flip": 0})
    with pytest.warns(UserWarning, match=f"affine: nothing here serves {message}.*PyTorch computes it instead"):
        out, argument = extension.affine(**given)
    sign = -1 if given["flip"] else 1
    torch.testing.assert_close(out, sign * 2.5 * given["x"] + given["bias"])
    torch.testing.assert_close(given["state"], out.sum(1))
    assert argument.dtype == torch.int32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extension.affine(**given)
    monkeypatch.setenv("WARPSMITH_FALLBACK", "error")
    with pytest.raises(RuntimeError, match=f"affine: nothing here serves {message}"):
        extension.affine(**given)


@pytest.mark.usefixtures("untold")
def test_what_goes_wrong_in_pytorch_is_told(extension: Any) -> None:
    state, x, bias, p = arguments(64, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="affine: UserWarning: affine: nothing here serves"):
            extension.affine(state, x, bias, p, 7)


def test_a_reference_that_somebody_calls_himself_is_no_fallback(ops: Any) -> None:
    x, w = torch.randn(3, 5), torch.randn(5)
    assert torch.equal(ops.scaled_reference(x, w), x * w)


def test_references_and_provenance_travel_with_the_package(extension: Any, affine: Task) -> None:
    text = (Path(extension.__file__).parent / "references" / "affine.py").read_text()
    assert text == (affine.folder / "reference.py").read_text()
    assert extension.provenance()["tasks"].keys() == {"affine", "scaled"} == set(extension.operators.NAMES)
    assert {"affine", "scaled", "operators", "provenance"} <= set(extension.__all__)


# ---------------------------------------------------------------- what PyTorch expects of an operator


def scaled_arguments(dtype: torch.dtype = torch.float32, grad: bool = True) -> tuple[Any, ...]:
    x = torch.randn(3, 5, dtype=dtype, requires_grad=grad)
    return x, torch.randn(5, dtype=dtype, requires_grad=grad), 0.5, 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_pass_opcheck(ops: Any, dtype: torch.dtype) -> None:
    state, x, bias, p = arguments(64, 8)
    torch.library.opcheck(ops.affine.default, (state.to(dtype), x.to(dtype), bias.to(dtype), p, 0, 2.5))
    torch.library.opcheck(ops.scaled.default, scaled_arguments(dtype))


@pytest.mark.filterwarnings("ignore")
def test_gradients_are_those_of_the_reference(extension: Any) -> None:
    assert torch.autograd.gradcheck(extension.scaled, scaled_arguments(torch.float64))
    x, w, factor, negate = scaled_arguments()
    upstream = torch.randn(3, 5)
    got = torch.autograd.grad(extension.scaled(x, w, factor, negate), (x, w), upstream)
    torch.testing.assert_close(got, torch.autograd.grad(-x * w * factor, (x, w), upstream))
    (only,) = torch.autograd.grad(extension.scaled(x, w.detach()).sum(), x)
    torch.testing.assert_close(only, w.detach().expand(3, 5))


@pytest.mark.usefixtures("kernels_only")
def test_what_changes_in_place_refuses_gradients(extension: Any) -> None:
    state, x, bias, p = arguments(64, 8)
    with pytest.raises(RuntimeError, match="affine: x requires grad, but state change in place"):
        extension.affine(state, x.requires_grad_(), bias, p, 0)
    with torch.no_grad():
        extension.affine(state, x, bias, p, 0)


@pytest.mark.filterwarnings("ignore")
def test_one_graph_holds_the_operators_whatever_the_sizes(extension: Any) -> None:
    def both(state: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        out, _ = extension.affine(state, x, bias, p, 0)
        return extension.scaled(out, bias) * state[:, None]

    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (64, 70):
        given = arguments(n, 8)
        again = [tensor.clone() for tensor in given]
        assert torch.equal(compiled(*given), both(*again))
        assert torch.equal(given[0], again[0])


@pytest.mark.usefixtures("kernels_only")
def test_autocast_takes_a_dtype_that_kernels_serve(extension: Any) -> None:
    x, w, *_ = scaled_arguments()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = extension.scaled(x.bfloat16(), w)
        state, *rest = arguments(64, 8)
        extension.affine(state, rest[0].bfloat16(), *rest[1:], 0)
    assert out.dtype == torch.float32
    assert torch.autograd.grad(out.sum(), x)[0].dtype == torch.float32


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3"])
def test_a_level_can_be_asked_for(installed: Path, level: str) -> None:
    code = f"import torch, {NAME} as e; print(e.scaled(torch.ones(3, 5), torch.ones(5)).sum().item())"
    done = python(installed, code, WARPSMITH_CPU_LEVEL=level, WARPSMITH_FALLBACK="error")
    assert done.stdout == "15.0\n", done.stderr


def test_a_level_that_is_not_there_is_refused(installed: Path) -> None:
    done = python(installed, f"import {NAME}", WARPSMITH_CPU_LEVEL="x86-64-v9")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "ImportError: WARPSMITH_CPU_LEVEL is 'x86-64-v9'; this CPU and kernels_for_tests have x86-64-v2"
    )


def test_a_cpu_without_any_level_is_served_by_pytorch(installed: Path, tmp_path: Path) -> None:
    copy = copied(installed, tmp_path)
    known = json.loads((copy / "provenance.json").read_text())
    (copy / "provenance.json").write_text(json.dumps({**known, "levels": ["x86-64-v9"]}))
    code = f"import torch, {NAME} as e; print(e.scaled(torch.ones(3, 5), torch.ones(5)).sum().item())"
    done = python(tmp_path, code)
    assert done.stdout == "15.0\n"
    assert "UserWarning: scaled: nothing here is compiled for this CPU; there is x86-64-v2, " in done.stderr


def test_a_damaged_or_unknown_library_is_refused(installed: Path, tmp_path: Path) -> None:
    copy = copied(installed, tmp_path)
    for name in ("_C.abi3.so", "_x86_64_v2.abi3.so"):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[:-1])
        last = python(tmp_path, f"import {NAME}", WARPSMITH_CPU_LEVEL="x86-64-v2").stderr.strip().splitlines()[-1]
        assert last.startswith(f"ImportError: {copy / name} is damaged: it is not the file that was built")
        (copy / name).write_bytes(content)
    (copy / "libraries.json").unlink()
    last = python(tmp_path, f"import {NAME}").stderr.strip().splitlines()[-1]
    assert "libraries.json is damaged or missing; install kernels_for_tests again" in last


def test_an_older_pytorch_is_refused(installed: Path) -> None:
    code = f"import torch; torch.__version__ = '2.9.1+cpu'; import {NAME}"
    last = python(installed, code).stderr.strip().splitlines()[-1]
    assert last == "ImportError: this is PyTorch 2.9.1+cpu; kernels_for_tests needs 2.10 or later"


def copied(installed: Path, to: Path) -> Path:
    shutil.copytree(installed / NAME, to / NAME)
    return to / NAME


# ---------------------------------------------------------------- the source tree


def test_verify_builds_the_tree_and_reports_disagreement_loudly(affine: Task, composed: Composed) -> None:
    report = verify(composed.root, affine)
    assert not report.ok
    assert report.message.startswith("3 of 5 workloads disagree with eager PyTorch: N4096 D8 flip=0 float32: error ")
    assert [check.ok for check in report.checks] == [True, False, False, True, False]
