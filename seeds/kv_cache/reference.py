"""One decode step over a preallocated cache, changed in place; each sequence has its own length."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def reference(
    k_cache: Tensor, v_cache: Tensor, q: Tensor, k_new: Tensor, v_new: Tensor, input_pos: Tensor, *, scale: float
) -> Tensor:
    """k_cache, v_cache: [B, Hkv, L, D]; q: [B, H, D]; k_new, v_new: [B, Hkv, D]; input_pos: [B] -> [B, H, D].

    Writes k_new[b] and v_new[b] at position input_pos[b], then attends over positions 0 .. input_pos[b].
    """
    filled = _write(k_cache, v_cache, k_new, v_new, input_pos)
    return _attend(q, k_cache, v_cache, filled, scale)


def library(target: str) -> dict[str, Callable[..., Tensor]]:
    """The backends of scaled_dot_product_attention that take a mask, on the same preallocated cache."""
    backends = {"math": SDPBackend.MATH}
    if target == "cuda":
        backends |= {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    else:
        backends |= {"flash": SDPBackend.FLASH_ATTENTION}
    return {name: _sdpa(backend) for name, backend in backends.items()}


def baselines(target: str) -> dict[str, Callable[..., Tensor]]:
    """`cat`: the cache that grows by torch.cat with every token. It returns `out` and leaves the given cache alone."""
    return {"cat": _cat}


def _write(k_cache: Tensor, v_cache: Tensor, k_new: Tensor, v_new: Tensor, input_pos: Tensor) -> Tensor:
    sequences = torch.arange(k_cache.shape[0], device=k_cache.device)
    position = input_pos.long()
    k_cache[sequences, :, position] = k_new
    v_cache[sequences, :, position] = v_new
    return torch.arange(k_cache.shape[2], device=k_cache.device) <= position[:, None]


def _attend(q: Tensor, k: Tensor, v: Tensor, filled: Tensor, scale: float) -> Tensor:
    B, H, D = q.shape
    groups = q.view(B, k.shape[1], -1, D)  # query heads of one kv head side by side, so that K and V are not repeated
    scores = groups @ k.transpose(-2, -1) * scale
    scores = scores.masked_fill(~filled[:, None, None, :], float("-inf"))
    return (torch.softmax(scores, dim=-1) @ v).reshape(B, H, D)


def _cat(
    k_cache: Tensor, v_cache: Tensor, q: Tensor, k_new: Tensor, v_new: Tensor, input_pos: Tensor, *, scale: float
) -> Tensor:
    L = k_cache.shape[2]
    k = torch.cat([k_cache, k_new.unsqueeze(2)], dim=2)
    v = torch.cat([v_cache, v_new.unsqueeze(2)], dim=2)
    position = torch.arange(L + 1, device=q.device)
    filled = (position < input_pos[:, None]) | (position == L)
    return _attend(q, k, v, filled, scale)


def _sdpa(backend: SDPBackend) -> Callable[..., Tensor]:
    def call(
        k_cache: Tensor, v_cache: Tensor, q: Tensor, k_new: Tensor, v_new: Tensor, input_pos: Tensor, *, scale: float
    ) -> Tensor:
        filled = _write(k_cache, v_cache, k_new, v_new, input_pos)
        grouped = q.shape[1] != k_cache.shape[1]
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(
                q.unsqueeze(2), k_cache, v_cache, filled[:, None, None, :], scale=scale, enable_gqa=grouped
            )
        return out.squeeze(2)

    return call
