"""Labels and silent fallbacks, as the text of a torch source shows them."""

import textwrap

import pytest

from sandbox.authorship import kernel_names, label, label_by_time, silent_fallback
from sandbox.contract import Candidate, Form

CUDA = """
#include <torch/extension.h>
template <typename T>
__global__ void __launch_bounds__(256) scale_rows(T* out, const T* x, int n) { out[threadIdx.x] = x[threadIdx.x]; }
torch::Tensor forward(torch::Tensor x) {
    auto out = torch::empty_like(x);
    scale_rows<float><<<1, 32>>>(out.data_ptr<float>(), x.data_ptr<float>(), 1);
    return out;
}
"""
TRITON = """
import torch, triton, triton.language as tl
@triton.autotune(configs=[], key=[])
@triton.jit
def add_kernel(x, y, out, n, BLOCK: tl.constexpr): pass
class ModelNew(torch.nn.Module):
    def forward(self, x, y):
        out = torch.empty_like(x)
        add_kernel[(1,)](x, y, out, 1, BLOCK=2)
        return out
"""
INLINE = f'''
import torch
from torch.utils.cpp_extension import load_inline
source = """{CUDA}"""
op = load_inline(name="op", cpp_sources="", cuda_sources=source, functions=["forward"])
class ModelNew(torch.nn.Module):
    def forward(self, x):
        return op.forward(x)
'''
PASS_THROUGH = "import torch\nclass ModelNew(torch.nn.Module):\n    def forward(self, a, b): return a @ b\n"


def candidate(source: str, form: Form) -> Candidate:
    return Candidate(task="t", target="cuda", source=source, form=form, operator="import", proposer="file")


@pytest.mark.parametrize(
    ("source", "form", "wanted"),
    [
        (CUDA, "extension", "custom"),
        ("torch::Tensor forward(torch::Tensor x) { for (;;) {} }", "extension", "custom"),
        ("torch::Tensor forward(torch::Tensor x) { return at::relu(x); /* for (;;) {} */ }", "extension", "library"),
        (CUDA.replace("scale_rows<float><<<1, 32>>>", "at::relu"), "extension", "library"),
        (CUDA.replace("scale_rows<float><<<1, 32>>>", "other<<<1, 32>>>"), "extension", "library"),
        (TRITON, "module", "custom"),
        (INLINE, "module", "custom"),
        (PASS_THROUGH, "module", "library"),
        (PASS_THROUGH + f'"""{CUDA}"""\n', "module", "library"),
        (TRITON.replace("add_kernel[", "other["), "module", "library"),
        ("extern ", "kernel", "custom"),
    ],
)
def test_label_of_a_text(source: str, form: Form, wanted: str) -> None:
    assert label(candidate(source, form)) == wanted


def test_kernels_are_found_in_every_form() -> None:
    assert kernel_names(CUDA) == {"scale_rows"}
    assert kernel_names(TRITON) == {"add_kernel"}
    assert "scale_rows" in kernel_names(INLINE)


def test_label_by_time_counts_other_peoples_kernels() -> None:
    own = kernel_names(CUDA)
    seconds = {"void scale_rows<float>(float*, float const*, int)": 2.0, "sm90_xmma_gemm_f32f32": 1.0}
    assert label_by_time(seconds, own) == "custom"
    assert label_by_time({**seconds, "void at::native::vectorized_elementwise_kernel<4>": 1.5}, own) == "library"
    assert label_by_time({"_Z10scale_rowsIfEvPT_PKS0_i": 1.0}, own) == "custom"


def module_with(body: str) -> str:
    head = "import torch\nclass ModelNew(torch.nn.Module):\n    def forward(self, x):\n"
    return head + textwrap.indent(body, " " * 8) + "\n"


FALLBACKS = [
    "try:\n    return op(x)\nexcept Exception:\n    return torch.relu(x)",
    "try:\n    y = op(x)\nexcept RuntimeError:\n    y = self.linear(x)\nreturn y",
    "try:\n    return op(x)\nexcept:\n    return x @ x",
]


@pytest.mark.parametrize("body", FALLBACKS)
def test_handler_that_lets_torch_answer_is_a_silent_fallback(body: str) -> None:
    source = module_with(body)
    evidence = silent_fallback(candidate(source, "module"))
    assert evidence is not None
    assert "answers with" in evidence


def test_build_whose_failure_is_hidden_is_a_silent_fallback() -> None:
    source = "try:\n    op = load_inline(name='op')\nexcept Exception:\n    op = None\n"
    assert silent_fallback(candidate(source, "module")) == (
        "line 3: an except branch hides that the kernel did not build"
    )


def test_catch_block_that_lets_torch_answer_is_a_silent_fallback() -> None:
    source = (
        "torch::Tensor forward(torch::Tensor x) {\n  try { return run(x); }\n  catch (...) { return at::relu(x); }\n}"
    )
    assert "line 3" in (silent_fallback(candidate(source, "extension")) or "")


@pytest.mark.parametrize(
    "body",
    [
        "try:\n    return op(x)\nexcept RuntimeError as exc:\n    raise ValueError('no') from exc",
        "try:\n    n = torch.cuda.get_device_capability()[0]\nexcept RuntimeError:\n    n = 8\nreturn op(x, n)",
        "try:\n    return op(x)\nexcept RuntimeError:\n    torch.cuda.empty_cache()\n    return op(x)",
        "return op(x) if x.numel() else torch.relu(x)",
    ],
)
def test_honest_handlers_are_left_alone(body: str) -> None:
    source = module_with(body)
    assert silent_fallback(candidate(source, "module")) is None


def test_evidence_of_an_expression_of_any_depth_is_short() -> None:
    source = f"try:\n    f()\nexcept E:\n    x = torch.add({'-' * 500}1)\n"
    assert (
        silent_fallback(candidate(source, "module"))
        == "line 3: an except branch answers with torch.add(…) instead of failing"
    )


def test_text_that_is_no_python_is_no_fallback_and_no_kernel() -> None:
    for source in ("def (", "(" * 100_000, "\0"):
        assert silent_fallback(candidate(source, "module")) is None
        assert label(candidate(source, "module")) == "library"


DECOY = """
import torch
SOURCE = "torch::Tensor forward(torch::Tensor x) { for (;;) {} }"
def build():
    from torch.utils.cpp_extension import load_inline
    return load_inline("decoy", SOURCE, functions=["forward"])
class ModelNew(torch.nn.Module):
    def forward(self, x):
        return CALL
"""


def test_kernel_that_nobody_builds_is_no_kernel() -> None:
    assert label(candidate(DECOY.replace("CALL", "torch.softmax(x, -1)"), "module")) == "library"
    assert label(candidate(DECOY.replace("CALL", "build().forward(x)"), "module")) == "custom"


def test_suppressing_a_failed_build_is_a_silent_fallback() -> None:
    source = """
import contextlib, torch
class ModelNew(torch.nn.Module):
    def forward(self, x):
        result = None
        with contextlib.suppress(Exception):
            result = torch.utils.cpp_extension.load_inline("fast", "", functions=["forward"]).forward(x)
        return torch.relu(x) if result is None else result
"""
    found = silent_fallback(candidate(source, "module"))
    assert found is not None
    assert "line 6" in found
