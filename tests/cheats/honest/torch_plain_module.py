# honest: operators of the library, nothing else; right, and the library's
# task: layernorm   target: cpu
# accepted: yes
# labelled: library
import torch


class ModelNew(torch.nn.Module):
    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        variance = centred.square().mean(dim=-1, keepdim=True)
        return centred * torch.rsqrt(variance + eps) * weight + bias
