"""out = a + b."""

import torch
from torch import Tensor


# What is compiled here is compiled in vain: nobody asks how fast these tasks are.
@torch.compiler.disable
def reference(a: Tensor, b: Tensor) -> Tensor:
    """a, b: [N] -> [N]."""
    return a + b
