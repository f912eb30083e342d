"""The gated MLP of LLaMA-like models, weights in nn.Linear layout. The library calls are what users write: F.linear."""

from torch import Tensor
from torch.nn import functional as F


def reference(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """x: [M, K] tokens, gate, up: [N, K], down: [K, N] -> [M, K]."""
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)
