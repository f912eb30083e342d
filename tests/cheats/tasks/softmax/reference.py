"""Softmax of every row."""

import torch
from torch import Tensor


# What is compiled here is compiled in vain: nobody asks how fast these tasks are.
@torch.compiler.disable
def reference(x: Tensor) -> Tensor:
    """x: [N, D] -> [N, D]."""
    return torch.softmax(x, dim=-1)
