"""Scaled dot-product attention, optionally causal. Eager materialises the S×S scores; the libraries do not."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: int) -> Tensor:
    """q, k, v: [B, H, S, D] -> [B, H, S, D]."""
    scores = q @ k.transpose(-2, -1) * scale
    if causal:
        S = q.shape[-2]
        later = torch.ones(S, S, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


def oracle(q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: int) -> Tensor:
    """The reference, one head at a time: the scores of all heads at once take tens of gigabytes in float64."""
    out = torch.empty_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            out[b, h] = reference(q[b, h], k[b, h], v[b, h], scale=scale, causal=causal)
    return out


def library(target: str) -> dict[str, Callable[..., Tensor]]:
    """Every backend of scaled_dot_product_attention that exists on the target."""
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}
    if target == "cuda":
        backends |= {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    return {name: _sdpa(backend) for name, backend in backends.items()}


def _sdpa(backend: SDPBackend) -> Callable[..., Tensor]:
    def call(q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: int) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=bool(causal), scale=scale)

    return call
