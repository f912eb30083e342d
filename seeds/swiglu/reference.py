"""The gated half of a LLaMA-like MLP (SwiGLU, arXiv 2002.05202), weights in nn.Linear layout."""

from torch import Tensor
from torch.nn import functional as F


def reference(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """x: [M, K] tokens, gate, up: [N, K] -> [M, N]."""
    return F.silu(F.linear(x, gate)) * F.linear(x, up)
