"""Decoder-only transformers that differ in their attention, cache and launches alone, with one set of random weights.

What bench.transformer times. Not covered: rotary positions and sampling; positions are learned, tokens are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Caches = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [B, Hkv, L, D]."""


@dataclass(frozen=True)
class Shape:
    """Of a model."""

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    d_hidden: int
    vocabulary: int
    context: int
    """Positions there is room for."""


class PreallocatedAttention(nn.Module):
    """scaled_dot_product_attention over a cache of fixed size: what people write who care."""

    def __init__(self, d_model: int, heads: int, kv_heads: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.head_dim, self.grouped = d_model // heads, heads != kv_heads
        inner = kv_heads * self.head_dim
        self.q_proj = nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype)
        self.k_proj = nn.Linear(d_model, inner, bias=False, device=device, dtype=dtype)
        self.v_proj = nn.Linear(d_model, inner, bias=False, device=device, dtype=dtype)
        self.out_proj = nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype)
        self.register_buffer("k", None, persistent=False)
        self.register_buffer("v", None, persistent=False)

    def allocate(self, batch: int, context: int) -> None:
        weight = self.k_proj.weight
        shape = batch, weight.shape[0] // self.head_dim, context, self.head_dim
        with torch.inference_mode(False):
            self.k = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
            self.v = torch.zeros(shape, dtype=weight.dtype, device=weight.device)

    def forward(self, x: Tensor, input_pos: int | Tensor) -> Tensor:
        """input_pos: an int, by which the cache is cut to size, or [1] for compiled code, which needs fixed shapes."""
        q, k, v = (
            p(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        tokens, seen, whole = x.shape[1], None, False
        if isinstance(input_pos, int):
            end = input_pos + tokens
            self.k[:, :, input_pos:end], self.v[:, :, input_pos:end] = k, v
            k, v = (k, v) if input_pos == 0 else (self.k[:, :, :end], self.v[:, :, :end])
            whole = input_pos == 0 and tokens > 1
        else:
            k, v = self.k.index_copy_(2, input_pos, k), self.v.index_copy_(2, input_pos, v)
            seen = (torch.arange(k.shape[2], device=x.device) <= input_pos)[None, None, None]
        heads = F.scaled_dot_product_attention(q, k, v, seen, is_causal=whole, enable_gqa=self.grouped)
        return self.out_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, attention: nn.Module, mlp: nn.Module, norms: tuple[nn.Module, nn.Module]) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = norms
        self.attention, self.mlp = attention, mlp

    def forward(self, x: Tensor, input_pos: int | Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), input_pos=input_pos)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """`attention`, `mlp` and `norm` make the layers, given device and dtype."""

    def __init__(
        self,
        shape: Shape,
        attention: Callable[..., nn.Module],
        mlp: Callable[..., nn.Module],
        norm: Callable[..., nn.Module],
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        sizes = shape.d_model, shape.heads, shape.kv_heads
        self.tokens = nn.Embedding(shape.vocabulary, shape.d_model, **place)
        self.positions = nn.Embedding(shape.context, shape.d_model, **place)
        self.blocks = nn.ModuleList(
            Block(
                attention(*sizes, **place),
                mlp(shape.d_model, shape.d_hidden, **place),
                (norm(shape.d_model, **place), norm(shape.d_model, **place)),
            )
            for _ in range(shape.layers)
        )
        self.norm = norm(shape.d_model, **place)

    def forward(self, tokens: Tensor, input_pos: int | Tensor) -> Tensor:
        """tokens: [B, S], input_pos: an int, [1] or [B] -> logits of the last token, [B, vocabulary]."""
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        at = input_pos + steps if isinstance(input_pos, int) else input_pos[:, None] + steps
        x = self.tokens(tokens) + self.positions(at)
        for block in self.blocks:
            x = block(x, input_pos)
        return F.linear(self.norm(x[:, -1]), self.tokens.weight)

    @property
    def attentions(self) -> list[Any]:
        return [block.attention for block in self.blocks]


# ---------------------------------------------------------------- contenders


class Contender:
    """A model with its way of running: eager, int positions, unless a subclass knows better."""

    name = ""
    what = ""

    def __init__(self, model: Decoder) -> None:
        self.model = model

    def prepare(self, batch: int, context: int) -> None:
        """Room for `batch` rows of this context, everything empty."""

    def fill(self, caches: Caches) -> None:
        """As if these had been prefilled."""

    def rewind(self) -> None:
        """Back to what was filled, before each round."""

    def prefill(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, 0)

    def decode(self, tokens: Tensor, start: int, steps: int) -> Tensor:
        """`steps` calls with the same tokens [B, 1]; logits of the last."""
        for position in range(start, start + steps):
            out = self.model(tokens, position)
        return out

    def release(self) -> None:
        """Give the caches' memory back."""


class Eager(Contender):
    name = "eager, torch.cat"
    what = "plain PyTorch as people write it: scores in memory, a cache that grows by torch.cat"

    def prepare(self, batch: int, context: int) -> None:
        self.release()

    def fill(self, caches: Caches) -> None:
        self.filled = [(k.clone(), v.clone()) for k, v in caches]

    def rewind(self) -> None:
        for attention, past in zip(self.model.attentions, self.filled, strict=True):
            attention.past = past

    def prefill(self, tokens: Tensor) -> Tensor:
        self.release()
        return self.model(tokens, 0)

    def release(self) -> None:
        self.filled: Caches = []
        for attention in self.model.attentions:
            attention.reset_cache()


class Preallocated(Contender):
    name = "eager, SDPA"
    what = "eager, scaled_dot_product_attention over a preallocated cache"

    def prepare(self, batch: int, context: int) -> None:
        for attention in self.model.attentions:
            attention.allocate(batch, context)

    def fill(self, caches: Caches) -> None:
        for attention, (k, v) in zip(self.model.attentions, caches, strict=True):
            attention.k[:, :, : k.shape[2]] = k
            attention.v[:, :, : v.shape[2]] = v

    def caches(self, length: int) -> Caches:
        return [(attention.k[:, :, :length], attention.v[:, :, :length]) for attention in self.model.attentions]

    def release(self) -> None:
        for attention in self.model.attentions:
            attention.k = attention.v = None


class Compiled(Preallocated):
    name = "torch.compile"
    what = "the same compiled as one graph, on GPUs in mode reduce-overhead"

    def __init__(self, model: Decoder) -> None:
        super().__init__(model)
        mode = "reduce-overhead" if next(model.parameters()).is_cuda else None
        self.compiled = torch.compile(model, mode=mode, fullgraph=True, dynamic=False)

    def prefill(self, tokens: Tensor) -> Tensor:
        return self.compiled(tokens, 0).clone()

    def decode(self, tokens: Tensor, start: int, steps: int) -> Tensor:
        for position in torch.arange(start, start + steps, device=tokens.device).split(1):
            out = self.compiled(tokens, position)
        return out.clone()


class Ours(Contender):
    name = "ours"
    what = "the package's layers, eager"

    def prepare(self, batch: int, context: int) -> None:
        for attention in self.model.attentions:
            attention.allocate_cache(batch, context)

    def fill(self, caches: Caches) -> None:
        for attention, (k, v) in zip(self.model.attentions, caches, strict=True):
            attention.cache.k[:, :, : k.shape[2]] = k
            attention.cache.v[:, :, : v.shape[2]] = v

    def decode(self, tokens: Tensor, start: int, steps: int) -> Tensor:
        rows = torch.arange(start, start + steps, dtype=torch.int32, device=tokens.device)
        for position in rows[:, None].expand(-1, tokens.shape[0]).contiguous():
            out = self.model(tokens, position)
        return out

    def release(self) -> None:
        for attention in self.model.attentions:
            attention.cache.k = attention.cache.v = None


class OursGraphed(Ours):
    name = "ours, CUDA graph"
    what = "the package's layers, each decode step one CUDA graph; prefill eager"

    graph: torch.cuda.CUDAGraph | None = None

    def prepare(self, batch: int, context: int) -> None:
        super().prepare(batch, context)
        self.graph = None

    def decode(self, tokens: Tensor, start: int, steps: int) -> Tensor:
        if self.graph is None:
            self.capture(tokens, start)
        assert self.graph is not None
        self.given.copy_(tokens)
        self.position.fill_(start)
        for _ in range(steps):
            self.graph.replay()
        return self.out.clone()

    def capture(self, tokens: Tensor, start: int) -> None:
        """One step, and the next position; the steps before it load the kernels' code."""
        self.given = tokens.clone()
        self.position = torch.full((tokens.shape[0],), start, dtype=torch.int32, device=tokens.device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.model(self.given, self.position)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out = self.model(self.given, self.position)
            self.position.add_(1)

    def release(self) -> None:
        self.graph = None
        super().release()


class OursCompiled(Ours):
    name = "ours, torch.compile"
    what = "the package's layers compiled as one graph, on GPUs in mode reduce-overhead"

    def __init__(self, model: Decoder) -> None:
        super().__init__(model)
        mode = "reduce-overhead" if next(model.parameters()).is_cuda else None
        self.compiled = torch.compile(model, mode=mode, fullgraph=True, dynamic=False)

    def prefill(self, tokens: Tensor) -> Tensor:
        return self.compiled(tokens, 0).clone()

    def decode(self, tokens: Tensor, start: int, steps: int) -> Tensor:
        rows = torch.arange(start, start + steps, dtype=torch.int32, device=tokens.device)
        for position in rows[:, None].expand(-1, tokens.shape[0]).contiguous():
            out = self.compiled(tokens, position)
        return out.clone()


KINDS: dict[str, type[Contender]] = {
    "eager": Eager,
    "sdpa": Preallocated,
    "compile": Compiled,
    "ours": Ours,
    "graph": OursGraphed,
    "ours-compile": OursCompiled,
}


def contenders(
    package: ModuleType, shape: Shape, kinds: list[str], device: torch.device, dtype: torch.dtype
) -> list[Contender]:
    """One of each kind; all models share one set of weights."""
    plain, layers = package.plain, package.layers

    def decoder(kind: str, place: torch.device | str) -> Decoder:
        if kind == "eager":
            return Decoder(shape, plain.PlainAttention, plain.PlainMultiLayerPerceptron, nn.LayerNorm, place, dtype)
        if kind in ("sdpa", "compile"):
            return Decoder(shape, PreallocatedAttention, plain.PlainMultiLayerPerceptron, nn.LayerNorm, place, dtype)
        return Decoder(shape, layers.OptimizedAttention, layers.MultiLayerPerceptron, layers.LayerNorm, place, dtype)

    weights = decoder("eager", device)
    for embedding in (weights.tokens, weights.positions):
        nn.init.normal_(embedding.weight, std=1 / math.sqrt(2))
    made = []
    for kind in kinds:
        model = decoder(kind, "meta")
        model.load_state_dict(weights.state_dict(), assign=True)
        made.append(KINDS[kind](model.eval().requires_grad_(False)))
    return made
