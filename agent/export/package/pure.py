"""Layers without state, for `kernelize` of Hugging Face's `kernels`: a forward that takes the place of a model's own.

Each reads the weights of the module whose forward it becomes. There is a layer where the package has its operator.
Not covered: modules that are used by themselves; those are in layers.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from . import operators

if "layernorm" in operators.NAMES:

    class LayerNorm(nn.Module):
        """In the place of torch.nn.LayerNorm."""

        can_torch_compile = True

        normalized_shape: tuple[int, ...]
        weight: Tensor | None
        bias: Tensor | None
        eps: float

        def forward(self, input: Tensor) -> Tensor:
            if self.weight is None or self.bias is None:
                return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
            rows = input.reshape(-1, self.weight.numel())
            normal: Tensor = operators.layernorm(rows, self.weight.reshape(-1), self.bias.reshape(-1), self.eps)
            return normal.reshape(input.shape)


if "mlp" in operators.NAMES:

    class LlamaMLP(nn.Module):
        """In the place of a gated MLP with SiLU and without biases, such as LlamaMLP of transformers."""

        can_torch_compile = True

        gate_proj: nn.Linear
        up_proj: nn.Linear
        down_proj: nn.Linear

        def forward(self, x: Tensor) -> Tensor:
            rows = x.reshape(-1, x.shape[-1])
            out: Tensor = operators.mlp(rows, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
            return out.reshape(x.shape)


__all__ = [name for name, value in globals().items() if isinstance(value, type) and issubclass(value, nn.Module)]
