"""Attention of one new token a sequence over a cache that is filled up to a position; grouped-query heads."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def reference(q: Tensor, k_cache: Tensor, v_cache: Tensor, input_pos: Tensor, *, scale: float) -> Tensor:
    """q: [B, H, D]; k_cache, v_cache: [B, Hkv, L, D]; input_pos: [B] -> [B, H, D].

    Attends over positions 0 .. input_pos[b]; what lies behind them is never looked at.
    """
    B, H, D = q.shape
    groups = q.view(B, k_cache.shape[1], -1, D)  # query heads of one kv head side by side: K and V are not repeated
    scores = groups @ k_cache.transpose(-2, -1) * scale
    scores = scores.masked_fill(~_filled(k_cache, input_pos)[:, None, None, :], float("-inf"))
    return (torch.softmax(scores, dim=-1) @ v_cache).reshape(B, H, D)


def library(target: str) -> dict[str, Callable[..., Tensor]]:
    """The backends of scaled_dot_product_attention that take a mask."""
    backends = {"math": SDPBackend.MATH}
    if target == "cuda":
        backends |= {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    else:
        backends |= {"flash": SDPBackend.FLASH_ATTENTION}
    return {name: _sdpa(backend) for name, backend in backends.items()}


def _filled(cache: Tensor, input_pos: Tensor) -> Tensor:
    return torch.arange(cache.shape[2], device=cache.device) <= input_pos.long()[:, None]


def _sdpa(backend: SDPBackend) -> Callable[..., Tensor]:
    def call(q: Tensor, k_cache: Tensor, v_cache: Tensor, input_pos: Tensor, *, scale: float) -> Tensor:
        mask = _filled(k_cache, input_pos)[:, None, None, :]
        grouped = q.shape[1] != k_cache.shape[1]
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(
                q.unsqueeze(2), k_cache, v_cache, mask, scale=scale, enable_gqa=grouped
            )
        return out.squeeze(2)

    return call
