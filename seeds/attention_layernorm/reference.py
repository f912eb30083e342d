"""Attention, its heads joined, then LayerNorm: a composed task, so a kernel may fuse what the libraries cannot."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def reference(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, bias: Tensor, *, scale: float, causal: int, eps: float
) -> Tensor:
    """q, k, v: [B, H, S, D], weight, bias: [H*D] -> [B, S, H*D]."""
    return _join(_attend(q, k, v, scale, causal), weight, bias, eps)


def oracle(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, bias: Tensor, *, scale: float, causal: int, eps: float
) -> Tensor:
    """The reference, one head at a time: the scores of all heads at once take tens of gigabytes in float64."""
    heads = torch.empty_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            heads[b, h] = _attend(q[b, h], k[b, h], v[b, h], scale, causal)
    return _join(heads, weight, bias, eps)


def library(target: str) -> dict[str, Callable[..., Tensor]]:
    """Every backend of scaled_dot_product_attention that exists on the target, followed by layer_norm."""
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}
    if target == "cuda":
        backends |= {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    return {name: _sdpa(backend) for name, backend in backends.items()}


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: int) -> Tensor:
    scores = q @ k.transpose(-2, -1) * scale
    if causal:
        S = q.shape[-2]
        later = torch.ones(S, S, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


def _join(heads: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    B, H, S, D = heads.shape
    return F.layer_norm(heads.transpose(1, 2).reshape(B, S, H * D), (H * D,), weight, bias, eps)


def _sdpa(backend: SDPBackend) -> Callable[..., Tensor]:
    def call(
        q: Tensor, k: Tensor, v: Tensor, weight: Tensor, bias: Tensor, *, scale: float, causal: int, eps: float
    ) -> Tensor:
        with sdpa_kernel(backend):
            heads = F.scaled_dot_product_attention(q, k, v, is_causal=bool(causal), scale=scale)
        return _join(heads, weight, bias, eps)

    return call
