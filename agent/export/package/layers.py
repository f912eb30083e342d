"""Modules that take the place of plain PyTorch ones: the same state dict, this package's operators where they serve.

Where no kernel was proven for a call, under autocast (attention aside), and while a module trains, they compute with
PyTorch's own functions: the operators' backward computes the forward again, that of PyTorch does not. Not covered:
rotary or other positions, dropout, biases, more than one device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import operators
from .caching import KVCache, Places, places
from .regions import serves

__all__ = ["FusedAttentionLayerNorm", "LayerNorm", "MultiLayerPerceptron", "OptimizedAttention"]


class OptimizedAttention(nn.Module):
    """Self-attention with grouped-query heads and a preallocated cache.

    `is_causal` is for calls without `input_pos`; those with it are always causal. The cache is made by the first call
    with `input_pos` and its context grows by doubling. With `max_batch` or `max_context` that size is allocated at once
    and is the limit, which positions on a GPU need. Plain twin: plain.PlainAttention.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int | None = None,
        *,
        is_causal: bool = True,
        max_batch: int | None = None,
        max_context: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_model, self.n_heads = d_model, n_heads
        self.n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if d_model % n_heads or n_heads % self.n_kv_heads:
            raise ValueError(
                f"d_model {d_model}, n_heads {n_heads}, n_kv_heads {self.n_kv_heads}: "
                "each must be a multiple of the next"
            )
        self.head_dim = d_model // n_heads
        self.scale = 1 / math.sqrt(self.head_dim)
        self.is_causal = is_causal
        inner = self.n_kv_heads * self.head_dim
        self.q_proj = nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype)
        self.k_proj = nn.Linear(d_model, inner, bias=False, device=device, dtype=dtype)
        self.v_proj = nn.Linear(d_model, inner, bias=False, device=device, dtype=dtype)
        self.out_proj = nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype)
        self.cache = KVCache(self.n_kv_heads, self.head_dim, max_batch, max_context)

    def forward(self, x: Tensor, mask: Tensor | None = None, input_pos: int | Tensor | None = None) -> Tensor:
        """x: [B, S, d_model] -> [B, S, d_model].

        mask: [S, keys], [B, 1 or S, keys] or [B, 1 or H, 1 or S, keys]; bool, where True lets a query see a key, or
        floating, added to the scores. It comes on top of causality. A query that sees nothing gets zeros.

        input_pos: the position of x's first token, an int or integers [B]; keys and values are stored there, and each
        token sees all positions up to its own. Keys of a mask are then positions of the cache, from 0 to at least the
        last token's. No gradients are recorded.
        """
        if x.dim() != 3 or x.shape[-1] != self.d_model:
            raise ValueError(f"x has shape {list(x.shape)}, wanted [B, S, {self.d_model}]")
        allowed = None if mask is None else four_dimensions(mask)
        if input_pos is None:
            return self.out_proj(self._attend(*self._project(x), allowed, self.is_causal))  # type: ignore[no-any-return]
        with torch.no_grad():
            return self.out_proj(self._attend_cached(x, allowed, input_pos))  # type: ignore[no-any-return]

    def allocate_cache(self, batch: int, context: int, dtype: torch.dtype | None = None) -> None:
        """An empty cache of this size, by default in the dtype of the weights; needed before a compiled decode step."""
        weight = self.k_proj.weight
        self.cache.allocate(batch, context, dtype or weight.dtype, weight.device)

    def reset_cache(self) -> None:
        """Forget everything, but keep the memory."""
        self.cache.reset()

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, n_heads={self.n_heads}, n_kv_heads={self.n_kv_heads}, causal={self.is_causal}"

    # ------------------------------------------------------------ stages

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, S, heads, head_dim] each."""
        heads = *x.shape[:2], -1, self.head_dim
        return self.q_proj(x).view(heads), self.k_proj(x).view(heads), self.v_proj(x).view(heads)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Over the tokens of this call alone. q, k, v: [B, S, heads, D] -> [B, S, H*D]."""
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if mask is not None:
            check_keys(mask, k.shape[2], exact=True)
            return self._join(self._sdpa(q, k, v, also_causal(mask, q.shape[2], q.device) if causal else mask))
        if not trains(self, q, k, v) and self._served(q, causal):
            return self._operator(q, self._for_each_head(k), self._for_each_head(v), causal)
        return self._join(self._sdpa(q, k, v, None, causal))

    def _served(self, q: Tensor, causal: bool) -> bool:
        B, H, S, D = q.shape
        return serves("attention", q, B=B, H=H, S=S, D=D, causal=int(causal))

    def _operator(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        return self._join(operators.attention(q, k, v, self.scale, int(causal)))

    def _for_each_head(self, kv: Tensor) -> Tensor:
        return kv if self.n_kv_heads == self.n_heads else kv.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)

    def _sdpa(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        grouped = self.n_kv_heads != self.n_heads
        if mask is not None and mask.dtype not in (torch.bool, q.dtype):
            mask = mask.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=self.scale, enable_gqa=grouped)

    def _join(self, heads: Tensor) -> Tensor:
        """[B, H, S, D] -> [B, S, H*D]."""
        return heads.transpose(1, 2).flatten(2)

    def _attend_cached(self, x: Tensor, mask: Tensor | None, input_pos: int | Tensor) -> Tensor:
        B, S, _ = x.shape
        at = places(input_pos, B, S, x.device)
        q, k, v = self._project(x)
        self.cache.fit(B, at.end, k)
        if S == 1 and mask is None and self._serves_step(q):
            return self._step(q, k, v, at)
        self.cache.write(k, v, at)
        if isinstance(at.first, int) and at.first == 0 and mask is None:
            return self._attend(q, k, v, None, causal=True)
        return self._join(self._look_back(q.transpose(1, 2), mask, at))

    def _serves_step(self, q: Tensor) -> bool:
        B, _, H, D = q.shape
        return serves("kv_cache", q, B=B, H=H, Hkv=self.n_kv_heads, L=self.cache.context, D=D)

    def _step(self, q: Tensor, k: Tensor, v: Tensor, at: Places) -> Tensor:
        """One token for each row: stored and attended in one operator."""
        B = q.shape[0]
        k_cache, v_cache = self.cache.rows(B)
        new = q.squeeze(1), k.squeeze(1), v.squeeze(1)
        heads: Tensor = operators.kv_cache(k_cache, v_cache, *new, at.rows(B, q.device), self.scale)
        return self._join(heads.unsqueeze(2))

    def _look_back(self, q: Tensor, mask: Tensor | None, at: Places) -> Tensor:
        """Over the cache, where the tokens of this call are stored already. q: [B, H, S, D]."""
        if mask is not None:
            check_keys(mask, at.end)
        keys = at.end or min(self.cache.context, mask.shape[-1] if mask is not None else self.cache.context)
        k, v = (cache[:, :, :keys] for cache in self.cache.rows(q.shape[0]))
        seen = None
        if q.shape[2] > 1 or isinstance(at.first, Tensor):
            seen = (torch.arange(keys, device=q.device) <= at.each(q.shape[2], q.device)[..., None])[:, None]
        return self._sdpa(q, k, v, both(mask if mask is None else mask[..., :keys], seen))


class FusedAttentionLayerNorm(OptimizedAttention):
    """OptimizedAttention with a LayerNorm between the joined heads and `out_proj`.

    Plain twin: plain.PlainAttentionLayerNorm.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int | None = None,
        *,
        eps: float = 1e-5,
        is_causal: bool = True,
        max_batch: int | None = None,
        max_context: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            d_model,
            n_heads,
            n_kv_heads,
            is_causal=is_causal,
            max_batch=max_batch,
            max_context=max_context,
            device=device,
            dtype=dtype,
        )
        self.norm: nn.LayerNorm = LayerNorm(d_model, eps, device=device, dtype=dtype)

    def _join(self, heads: Tensor) -> Tensor:
        return self.norm(super()._join(heads))  # type: ignore[no-any-return]

    def _served(self, q: Tensor, causal: bool) -> bool:
        B, H, S, D = q.shape
        return self._fits(q) and serves("attention_layernorm", q, B=B, H=H, S=S, D=D, causal=int(causal))

    def _fits(self, q: Tensor) -> bool:
        return bare(self.norm, nn.LayerNorm, LayerNorm) and affine(self.norm, q) and not trains(self.norm, q)

    def _operator(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        norm = self.norm
        out: Tensor = operators.attention_layernorm(q, k, v, norm.weight, norm.bias, self.scale, int(causal), norm.eps)
        return out


class LayerNorm(nn.LayerNorm):
    """torch.nn.LayerNorm, for tensors of any leading shape.

    Without weight or bias, with other dtypes than the input's, and under autocast, it is F.layer_norm.
    """

    def forward(self, input: Tensor) -> Tensor:
        """input: [..., *normalized_shape] -> the same shape."""
        width = math.prod(self.normalized_shape)
        if not self._fits(input) or not serves("layernorm", input, N=input.numel() // width, D=width):
            return super().forward(input)
        weight, bias = self.weight.reshape(-1), self.bias.reshape(-1)
        normal: Tensor = operators.layernorm(input.reshape(-1, width), weight, bias, self.eps)
        return normal.reshape(input.shape)

    def _fits(self, input: Tensor) -> bool:
        same = input.shape[input.dim() - len(self.normalized_shape) :] == self.normalized_shape
        return same and affine(self, input) and not trains(self, input, self.weight, self.bias)


class MultiLayerPerceptron(nn.Module):
    """The gated MLP of Llama: down_proj(silu(gate_proj(x)) * up_proj(x)), without biases.

    Projections that are replaced or hooked later are called as modules. Plain twin: plain.PlainMultiLayerPerceptron.
    """

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
        if not self._served(x):
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]
        rows = x.reshape(-1, x.shape[-1])
        out: Tensor = operators.mlp(rows, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
        return out.reshape(x.shape)

    def _served(self, x: Tensor) -> bool:
        projections = self.gate_proj, self.up_proj, self.down_proj
        if not all(bare(linear, nn.Linear) and linear.bias is None for linear in projections):
            return False
        weights = [linear.weight for linear in projections]
        if x.shape[-1] != weights[0].shape[1] or any(weight.dtype != x.dtype for weight in weights):
            return False
        if trains(self, x, *weights) or torch.is_autocast_enabled(x.device.type):
            return False
        N, K = weights[0].shape
        return serves("mlp", x, M=x.numel() // K, K=K, N=N)


# ---------------------------------------------------------------- what decides


def trains(module: nn.Module, *tensors: Tensor) -> bool:
    """Whether a call in training mode records gradients; in eval mode those of the operators are good enough."""
    return module.training and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def bare(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module is one of these and nothing else: no subclass, no hooks, no weights of other kinds.

    Only then may its weights be used without calling it.
    """
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    plain = all(type(weight) in (nn.Parameter, Tensor) for weight in module._parameters.values() if weight is not None)
    return type(module) in kinds and not hooked and plain


def affine(norm: nn.LayerNorm, x: Tensor) -> bool:
    """Whether there are weight and bias of the dtype of `x`, and no autocast that would keep the result in float32."""
    if norm.weight is None or norm.bias is None or torch.is_autocast_enabled(x.device.type):
        return False
    return norm.weight.dtype == norm.bias.dtype == x.dtype


# ---------------------------------------------------------------- masks


def four_dimensions(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"mask is {mask.dtype}, wanted bool (True: the query sees the key) or floating (added)")
    if mask.dim() not in (2, 3, 4):
        raise ValueError(
            f"mask has shape {list(mask.shape)}, wanted [S, keys], [B, 1 or S, keys] or [B, 1 or H, 1 or S, keys]"
        )
    return mask[None, None] if mask.dim() == 2 else mask[:, None] if mask.dim() == 3 else mask


def check_keys(mask: Tensor, keys: int | None, exact: bool = False) -> None:
    """Masks must say of every key whether it is seen; those of a cache may be longer."""
    got = mask.shape[-1]
    if keys is not None and (got < keys or (exact and got != keys)):
        raise ValueError(f"mask is for {got} keys, wanted {keys}{'' if exact else ' or more'}")


def also_causal(mask: Tensor, tokens: int, device: torch.device) -> Tensor:
    earlier = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    merged = both(mask, earlier)
    assert merged is not None
    return merged


def both(mask: Tensor | None, seen: Tensor | None) -> Tensor | None:
    """A mask, and what is seen at all."""
    if mask is None or seen is None:
        return seen if mask is None else mask
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -math.inf)
