"""The plain PyTorch twins of layers.py, as people write them: the same constructors, calls and state dicts.

They are what layers are held against. LayerNorm's twin is torch.nn.LayerNorm. Not covered: positions that differ by
row; a cache that grows by torch.cat has one length.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PlainAttention", "PlainAttentionLayerNorm", "PlainMultiLayerPerceptron"]


class PlainAttention(nn.Module):
    """Attention that writes its scores to memory, and whose cache grows by torch.cat with every call."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int | None = None,
        *,
        is_causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_model, self.n_heads = d_model, n_heads
        self.n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        self.head_dim = d_model // n_heads
        self.is_causal = is_causal
        inner = self.n_kv_heads * self.head_dim
        self.q_proj = nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype)
        self.k_proj = nn.Linear(d_model, inner, bias=False, device=device, dtype=dtype)
        self.v_proj = nn.Linear(d_model, inner, bias=False, device=device, dtype=dtype)
        self.out_proj = nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype)
        self.past: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None, input_pos: int | None = None) -> Tensor:
        """x: [B, S, d_model] -> the same shape. `input_pos`: how many tokens are cached; these are added."""
        q, k, v = (self._heads(projection(x)) for projection in (self.q_proj, self.k_proj, self.v_proj))
        if input_pos is not None:
            k, v = self._remember(k, v, input_pos)
        scores = q @ self._repeat(k).transpose(-2, -1) / math.sqrt(self.head_dim)
        if self.is_causal or input_pos is not None:
            scores = scores.masked_fill(~self._earlier(q.shape[2], k.shape[2], x.device), -math.inf)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        joined = (torch.softmax(scores, dim=-1) @ self._repeat(v)).transpose(1, 2).flatten(2)
        return self.out_proj(self._between(joined))  # type: ignore[no-any-return]

    def reset_cache(self) -> None:
        self.past = None

    def _heads(self, projected: Tensor) -> Tensor:
        batch, tokens, _ = projected.shape
        return projected.view(batch, tokens, -1, self.head_dim).transpose(1, 2)

    def _repeat(self, kv: Tensor) -> Tensor:
        return kv.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)

    def _remember(self, k: Tensor, v: Tensor, input_pos: int) -> tuple[Tensor, Tensor]:
        known = self.past[0].shape[2] if self.past else 0
        if input_pos != known:
            raise ValueError(f"input_pos is {input_pos}, but the cache holds {known} positions")
        if self.past:
            k, v = torch.cat([self.past[0], k], dim=2), torch.cat([self.past[1], v], dim=2)
        self.past = k, v
        return k, v

    def _earlier(self, tokens: int, keys: int, device: torch.device) -> Tensor:
        return torch.ones(tokens, keys, dtype=torch.bool, device=device).tril(keys - tokens)

    def _between(self, joined: Tensor) -> Tensor:
        return joined


class PlainAttentionLayerNorm(PlainAttention):
    """PlainAttention with a LayerNorm between the joined heads and `out_proj`."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int | None = None,
        *,
        eps: float = 1e-5,
        is_causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, n_heads, n_kv_heads, is_causal=is_causal, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(d_model, eps, device=device, dtype=dtype)

    def _between(self, joined: Tensor) -> Tensor:
        return self.norm(joined)  # type: ignore[no-any-return]


class PlainMultiLayerPerceptron(nn.Module):
    """down_proj(silu(gate_proj(x)) * up_proj(x))."""

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False, device=device, dtype=dtype)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False, device=device, dtype=dtype)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., d_model] -> the same shape."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]
