"""Keys and values of the past, in memory that is allocated once and grows by doubling.

Not covered: which positions hold anything. The caller says where tokens stand; a position that he
never wrote holds zeros, or what stood there before.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

FIRST_CONTEXT = 256
"""Positions of a cache that nobody gave a size."""


class Places(NamedTuple):
    """Where the tokens of one call stand."""

    first: int | Tensor
    """Position of the first token: of every row, or [B]."""
    end: int | None
    """Positions that are filled after the call; None where only the device knows."""

    def each(self, tokens: int, device: torch.device) -> Tensor:
        """Every token's position: [1, S], or [B, S] where rows differ."""
        steps = torch.arange(tokens, device=device)
        return self.first.long()[:, None] + steps if isinstance(self.first, Tensor) else (steps + self.first)[None]

    def rows(self, batch: int, device: torch.device) -> Tensor:
        """The first token's position, int32 [B]."""
        if isinstance(self.first, Tensor):
            return self.first.to(torch.int32)
        return torch.full((batch,), self.first, dtype=torch.int32, device=device)


def places(input_pos: int | Tensor, batch: int, tokens: int, device: torch.device) -> Places:
    """Reads `input_pos`: an int, or integers of shape [], [1] or [B].

    Positions on the host are checked. Those on a device are not, since reading them would wait for it; nor is any
    tensor while torch.compile traces.
    """
    if not isinstance(input_pos, Tensor):
        return Places(not_negative(input_pos), input_pos + tokens)
    if input_pos.is_floating_point() or input_pos.is_complex() or input_pos.dtype == torch.bool:
        raise ValueError(f"input_pos is {input_pos.dtype}, wanted integers")
    if input_pos.dim() > 1 or input_pos.numel() not in (1, batch):
        raise ValueError(
            f"input_pos has shape {list(input_pos.shape)}, wanted the position of each row's first token: [{batch}], "
            "or one for all rows"
        )
    if input_pos.is_cpu and not torch.compiler.is_compiling():
        not_negative(int(input_pos.min()))
        if input_pos.numel() == 1:
            return places(int(input_pos), batch, tokens, device)
        return Places(input_pos.to(device), int(input_pos.max()) + tokens)
    return Places(input_pos.to(device).reshape(-1).expand(batch), None)


def not_negative(position: int) -> int:
    if position < 0:
        raise ValueError(f"input_pos is {position}, wanted 0 or more")
    return position


class KVCache(nn.Module):
    """Keys and values, each [batch, heads, context, head_dim]; buffers, but no part of the state dict.

    `max_batch` and `max_context` fix a size: it is allocated at once and never exceeded.
    """

    k: Tensor | None
    v: Tensor | None

    def __init__(self, heads: int, head_dim: int, max_batch: int | None = None, max_context: int | None = None) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.max_batch, self.max_context = max_batch, max_context
        self.register_buffer("k", None, persistent=False)
        self.register_buffer("v", None, persistent=False)

    @property
    def batch(self) -> int:
        return 0 if self.k is None else self.k.shape[0]

    @property
    def context(self) -> int:
        return 0 if self.k is None else self.k.shape[2]

    def rows(self, batch: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first rows, in place; the cache must exist."""
        assert self.k is not None
        assert self.v is not None
        # The buffers themselves where that is all of them: what changes in place is then no view to a compiler.
        return (self.k, self.v) if batch == self.batch else (self.k[:batch], self.v[:batch])

    def fit(self, batch: int, end: int | None, like: Tensor) -> None:
        """Room for `end` positions of `batch` rows, in the dtype and on the device of `like`."""
        if self.k is not None and self.k.dtype != like.dtype:
            raise ValueError(f"the cache holds {self.k.dtype}, got {like.dtype}; allocate_cache makes a new one")
        if self.max_batch is not None and batch > self.max_batch:
            raise ValueError(f"a call with {batch} rows, but max_batch is {self.max_batch}")
        if end is None:
            self._fit_unseen(batch, like)
            return
        if self.max_context is not None and end > self.max_context:
            raise ValueError(f"a call that ends at position {end}, but max_context is {self.max_context}")
        if batch > self.batch or end > self.context:
            self._grow(max(batch, self.batch), self._longer(end), like)

    def _fit_unseen(self, batch: int, like: Tensor) -> None:
        """Positions are unknown here, so the cache can grow only where its size was fixed beforehand."""
        if self.k is None and self.max_context is not None and not torch.compiler.is_compiling():
            self.allocate(self.max_batch or batch, self.max_context, like.dtype, like.device)
        if batch > self.batch:
            raise ValueError(
                f"the cache has room for {self.batch} rows, got {batch}, and cannot grow for positions that are on a "
                "device or compiled; call allocate_cache(batch, context) first"
            )

    def _longer(self, end: int) -> int:
        """The context to allocate: twice what there is, until it is enough."""
        if self.max_context is not None:
            return self.max_context
        length = self.context or FIRST_CONTEXT
        while length < end:
            length *= 2
        return length

    def _grow(self, batch: int, context: int, like: Tensor) -> None:
        batch = self.max_batch or batch
        for name in ("k", "v"):
            old: Tensor | None = getattr(self, name)
            new = self._empty(batch, context, like.dtype, like.device)
            if old is not None:
                new[: old.shape[0], :, : old.shape[2]] = old
            setattr(self, name, new)

    def allocate(self, batch: int, context: int, dtype: torch.dtype, device: torch.device) -> None:
        """A new cache of this size, whatever there was."""
        for name in ("k", "v"):
            setattr(self, name, None)
            setattr(self, name, self._empty(batch, context, dtype, device))

    def _empty(self, batch: int, context: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        # Ordinary memory under inference_mode, too: what is made there could not be changed outside.
        with torch.inference_mode(False):
            return torch.zeros(batch, self.heads, context, self.head_dim, dtype=dtype, device=device)

    def write(self, k: Tensor, v: Tensor, at: Places) -> None:
        """k, v: [B, S, heads, head_dim], to their positions."""
        batch, tokens = k.shape[:2]
        for cache, new in zip(self.rows(batch), (k, v), strict=True):
            if isinstance(at.first, Tensor):
                rows = torch.arange(batch, device=k.device)[:, None]
                cache[rows, :, at.each(tokens, k.device)] = new
            else:
                cache[:, :, at.first : at.first + tokens] = new.transpose(1, 2)

    def reset(self) -> None:
        """Zeros everywhere; the memory stays, so that graphs which hold its address stay valid."""
        for cache in (self.k, self.v):
            if cache is not None:
                cache.zero_()
