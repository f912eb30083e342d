"""What users of an installed package rely on: right answers, PyTorch's own checks of operators, and clear refusals."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any

import pytest
import torch

NAME = os.environ["WARPSMITH_PACKAGE"]
Python = Callable[..., CompletedProcess[str]]
TINY: dict[str, Callable[[torch.dtype], tuple[Any, ...]]] = {
    "vector_add": lambda dtype: (leaf(dtype, 7), leaf(dtype, 7)),
    "layernorm": lambda dtype: (leaf(dtype, 3, 5), leaf(dtype, 5), leaf(dtype, 5), 1e-5),
    "mlp": lambda dtype: (leaf(dtype, 2, 3), leaf(dtype, 4, 3), leaf(dtype, 4, 3), leaf(dtype, 3, 4)),
    "attention": lambda dtype: (*(leaf(dtype, 1, 2, 3, 4) for _ in range(3)), 0.5, 1),
    "attention_layernorm": lambda dtype: (
        *(leaf(dtype, 1, 2, 3, 4) for _ in range(3)), leaf(dtype, 8), leaf(dtype, 8), 0.5, 1, 1e-5,
    ),
}  # fmt: skip
"""Arguments of the operators that have a gradient, too small for finite differences to take long."""
TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""Of gradients, which go by answers of different roundings."""


def leaf(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def names() -> list[str]:
    known = importlib.util.find_spec(NAME)
    assert known is not None
    assert known.origin is not None
    return list(json.loads(Path(known.origin).with_name("workloads.json").read_text()))


def proven(calls: Any, task: str) -> Any:
    """The smallest call that a kernel was proven for."""
    return min((c for c in calls.calls([task]) if c.kind == "held-out"), key=lambda call: call.bytes)


def drawn(calls: Any, call: Any) -> list[Any]:
    """The arguments of a call: tensors, then scalars."""
    rng = torch.Generator(device=call.target).manual_seed(0)
    return [*calls.draw(call, call.target, rng), *call.scalars.values()]


def overload(operators: Any, task: str) -> Any:
    return getattr(getattr(torch.ops, operators.NAMESPACE), task).default


# ---------------------------------------------------------------- right


def test_it_lies_where_it_was_installed(package: ModuleType) -> None:
    assert package.__file__ is not None
    assert Path(package.__file__).is_relative_to(os.environ["WARPSMITH_INSTALLED"])


def test_it_verifies_itself_and_every_proven_call_is_answered_by_a_kernel(python: Python) -> None:
    done = python("-m", NAME, "verify", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["by"] for row in rows if row["kind"] != "outside"} == {"kernel"}
    assert {row["by"] for row in rows if row["kind"] == "outside"} == {"reference"}


@pytest.mark.parametrize("task", names())
def test_pytorch_finds_nothing_wrong_with_the_operator(operators: Any, calls: Any, task: str) -> None:
    torch.library.opcheck(overload(operators, task), tuple(drawn(calls, proven(calls, task))))
    outside = [call for call in calls.calls([task]) if call.kind == "outside"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.library.opcheck(overload(operators, task), tuple(drawn(calls, min(outside, key=lambda c: c.bytes))))


@pytest.mark.parametrize("task", [name for name in names() if name in TINY])
def test_gradients_are_those_of_finite_differences(operators: Any, task: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.autograd.gradcheck(getattr(operators, task), TINY[task](torch.float64))


@pytest.mark.parametrize("task", [name for name in names() if name in TINY])
def test_gradients_flow_through_the_kernel(operators: Any, calls: Any, task: str) -> None:
    call = proven(calls, task)
    given = [v.requires_grad_() if isinstance(v, torch.Tensor) else v for v in drawn(calls, call)]
    tensors = [value for value in given if isinstance(value, torch.Tensor)]
    own = torch.autograd.grad(getattr(operators, task)(*given).square().sum(), tensors)
    eager = torch.autograd.grad(call.reference.reference(*tensors, **call.scalars).square().sum(), tensors)
    for got, wanted in zip(own, eager, strict=True):
        far = TOLERANCES[wanted.dtype]
        torch.testing.assert_close(got, wanted, rtol=far, atol=far * float(wanted.abs().max()))


@pytest.mark.parametrize("task", names())
def test_it_compiles_without_a_graph_break(
    operators: Any, calls: Any, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARPSMITH_FALLBACK", "error")
    call = proven(calls, task)
    values = drawn(calls, call)[: len(call.tensors)]
    torch.compiler.reset()
    backend = os.environ.get("WARPSMITH_COMPILE_BACKEND", "inductor")
    compiled = torch.compile(
        lambda *given: getattr(operators, task)(*given, **call.scalars), fullgraph=True, backend=backend
    )
    own, eager = calls.answer(getattr(operators, task), call, values), []
    copies = [value.clone() for value in values]
    with torch.no_grad():
        result = compiled(*copies)
    eager = [result, *copies[: call.inouts]]
    for got, wanted in zip(eager, own, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("task", names())
def test_a_call_can_be_captured_in_a_cuda_graph(
    operators: Any, calls: Any, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replayed on other data, and beside the same call outside of the graph."""
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU that PyTorch can use")
    monkeypatch.setenv("WARPSMITH_FALLBACK", "error")
    call = proven(calls, task)
    operator, held = getattr(operators, task), drawn(calls, call)[: len(call.tensors)]
    with torch.inference_mode():
        calls.answer(operator, call, held)  # Code is loaded at the first call.
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = calls.answer(operator, call, held)
        fresh = calls.draw(call, "cuda", torch.Generator(device="cuda").manual_seed(1))
        for place, values in zip(held, fresh, strict=True):
            place.copy_(values)
        graph.replay()
        for one, other in zip(got, calls.answer(operator, call, held), strict=True):
            torch.testing.assert_close(one, other)


# ---------------------------------------------------------------- odd inputs


@pytest.mark.parametrize("task", names())
def test_a_tensor_of_another_rank_is_refused_by_name(operators: Any, calls: Any, task: str) -> None:
    call = proven(calls, task)
    given = drawn(calls, call)
    given[0] = given[0][None]
    with pytest.raises(RuntimeError, match=rf"{task}: {call.tensors[0]['name']} has shape"):
        getattr(operators, task)(*given)


@pytest.mark.parametrize("task", [name for name in names() if name != "kv_cache"])
def test_mixed_dtypes_are_refused_by_name(operators: Any, calls: Any, task: str) -> None:
    call = proven(calls, task)
    given = drawn(calls, call)
    given[1] = given[1].double()
    with pytest.raises(RuntimeError, match=rf"{task}: {call.tensors[1]['name']} is Double"):
        getattr(operators, task)(*given)


@pytest.mark.parametrize("task", names())
def test_strided_inputs_give_the_same_answer(
    operators: Any, calls: Any, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARPSMITH_FALLBACK", "error")
    call = proven(calls, task)
    values = drawn(calls, call)[: len(call.tensors)]
    wanted = calls.answer(getattr(operators, task), call, values)
    got = calls.answer(getattr(operators, task), call, calls.strided(values, call.inouts))
    shifted = [torch.cat([v.reshape(-1)[:1], v.reshape(-1)])[1:].view(v.shape) for v in values[call.inouts :]]
    unaligned = calls.answer(getattr(operators, task), call, [*values[: call.inouts], *shifted])
    for a, b, c in zip(got, wanted, unaligned, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(c, b)


@pytest.mark.skipif("kv_cache" not in names(), reason="no operator of this package changes its arguments")
def test_what_is_changed_in_place_must_be_contiguous(operators: Any, calls: Any) -> None:
    given = drawn(calls, proven(calls, "kv_cache"))
    given[0] = given[0].transpose(-1, -2).contiguous().transpose(-1, -2)
    with pytest.raises(RuntimeError, match="kv_cache: k_cache is changed in place and must be contiguous"):
        operators.kv_cache(*given)


@pytest.mark.skipif("kv_cache" not in names(), reason="no operator of this package changes its arguments")
def test_what_is_changed_in_place_has_no_gradient(operators: Any, calls: Any) -> None:
    given = drawn(calls, proven(calls, "kv_cache"))
    given[2].requires_grad_()
    with pytest.raises(RuntimeError, match="kv_cache"):
        operators.kv_cache(*given)


# ---------------------------------------------------------------- fallback


def test_a_call_outside_the_proven_region_is_answered_with_one_warning(python: Python) -> None:
    code = f"""
import torch, warnings
from {NAME} import calls, operators
call = next(c for c in calls.calls(["{names()[0]}"]) if c.kind == "outside")
values = calls.draw(call, call.target, torch.Generator())
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(3):
        calls.answer(call.operator, call, values)
print([(w.category.__name__, str(w.message)) for w in seen])
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("UserWarning") == 1
    assert names()[0] in done.stdout


def test_the_fallback_can_be_forbidden(operators: Any, calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARPSMITH_FALLBACK", "error")
    outside = next(call for call in calls.calls() if call.kind == "outside")
    with pytest.raises(RuntimeError, match=outside.task):
        outside.operator(*drawn(calls, outside))


# ---------------------------------------------------------------- refusals at import


def copied(package: ModuleType, folder: Path) -> Path:
    """The package as it was installed, in a folder where it can be damaged."""
    assert package.__file__ is not None
    shutil.copytree(Path(package.__file__).parent, folder / NAME)
    return folder / NAME


def refusal(done: CompletedProcess[str]) -> str:
    """The last line of a failed import."""
    assert done.returncode != 0, done.stdout
    return done.stderr.strip().splitlines()[-1]


def test_a_damaged_library_is_refused_in_one_sentence(package: ModuleType, python: Python, tmp_path: Path) -> None:
    (library,) = copied(package, tmp_path).glob("_C*.so")
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)
    last = refusal(python(f"import {NAME}", PYTHONPATH=str(tmp_path)))
    assert re.match(r"ImportError: .*(damaged|sha256)", last), last


def test_damaged_kernels_are_refused_in_one_sentence(package: ModuleType, python: Python, tmp_path: Path) -> None:
    """The library of kernels for this CPU's instructions, where there is one beside that of the operators."""
    libraries = [path for path in copied(package, tmp_path).glob("_*.so") if not path.name.startswith("_C")]
    for library in libraries:
        library.write_bytes(library.read_bytes()[:-1])
    if libraries:
        last = refusal(python(f"import {NAME}", PYTHONPATH=str(tmp_path)))
        assert re.match(r"ImportError: .*damaged", last), last


def test_a_missing_library_is_refused_in_one_sentence(package: ModuleType, python: Python, tmp_path: Path) -> None:
    (library,) = copied(package, tmp_path).glob("_C*.so")
    library.unlink()
    assert refusal(python(f"import {NAME}", PYTHONPATH=str(tmp_path))).startswith("ImportError: ")


def test_a_pytorch_that_is_too_old_is_refused_in_one_sentence(python: Python) -> None:
    last = refusal(python(f"import torch; torch.__version__ = '2.9.1'; import {NAME}"))
    assert re.match(r"ImportError: .*2\.9\.1.*2\.10", last), last


# ---------------------------------------------------------------- evidence


def test_it_says_where_its_kernels_come_from(package: ModuleType, python: Python) -> None:
    done = python("-m", NAME, "provenance", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(package.provenance()))
    assert set(names()) <= set(json.loads(done.stdout)["tasks"])


def test_it_times_itself(python: Python) -> None:
    arguments = ("bench", "--json", "--rounds", "2", "--no-compile", "--task", names()[-1])
    done = python("-m", NAME, *arguments)
    assert done.returncode == 0, done.stderr
    (first, *_) = json.loads(done.stdout)["rows"]
    assert {"kernel", "eager"} <= {timing["subject"] for timing in first["timings"]}


def test_usage_is_printed_where_nothing_is_asked_for(python: Python) -> None:
    done = python("-m", NAME)
    assert (done.returncode, done.stdout.startswith(f"usage: python -m {NAME}")) == (0, True)


def test_an_unknown_task_is_refused_with_those_there_are(python: Python) -> None:
    done = python("-m", NAME, "verify", "--task", "nothing")
    assert done.returncode == 2
    assert f"no task 'nothing' in this package; it has {', '.join(names())}" in done.stderr


# ---------------------------------------------------------------- decoding


@pytest.mark.skipif("kv_cache" not in names(), reason="no operator of this package holds a cache")
def test_decoding_step_by_step_is_full_attention(operators: Any, calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand steps on one cache; every answer beside causal attention over the whole sequence in float64."""
    monkeypatch.setenv("WARPSMITH_FALLBACK", "error")
    shapes = {tensor["name"]: tensor["shape"] for tensor in proven(calls, "kv_cache").tensors}
    (rows, heads, width), kv_heads, steps = shapes["q"], shapes["k_new"][1], 1000
    q = torch.randn(rows, heads, steps, width)
    k, v = (torch.randn(rows, kv_heads, steps, width) for _ in range(2))
    k_cache, v_cache = (torch.full((rows, kv_heads, steps, width), float("nan")) for _ in range(2))
    got = torch.empty_like(q)
    for step in range(steps):
        position = torch.full((rows,), step, dtype=torch.int32)
        new = (values[:, :, step].contiguous() for values in (q, k, v))
        got[:, :, step] = operators.kv_cache(k_cache, v_cache, *new, position, width**-0.5)
    wide = (q.double(), *(x.double().repeat_interleave(heads // kv_heads, dim=1) for x in (k, v)))
    wanted = torch.nn.functional.scaled_dot_product_attention(*wide, is_causal=True, scale=width**-0.5)
    far = {"rtol": 1e-4, "atol": 1e-5} if got.dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-3}
    torch.testing.assert_close(got.double(), wanted, **far)
    assert torch.equal(k_cache, k)
    assert torch.equal(v_cache, v)
