"""LayerNorm over the last dimension."""

import torch
from torch import Tensor
from torch.nn import functional as F


# What is compiled here is compiled in vain: nobody asks how fast these tasks are.
@torch.compiler.disable
def reference(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """x: [N, D], weight, bias: [D] -> [N, D]."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
