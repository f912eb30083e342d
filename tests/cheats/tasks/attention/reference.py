"""Scaled dot-product attention."""

import torch
from torch import Tensor


# What is compiled here is compiled in vain: nobody asks how fast these tasks are.
@torch.compiler.disable
def reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """q, k, v: [H, S, D] -> [H, S, D]."""
    return torch.softmax(q @ k.transpose(-2, -1) * scale, dim=-1) @ v
