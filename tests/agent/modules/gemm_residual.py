import torch
from torch import nn


class Model(nn.Module):
    """x + scale·(x·Wᵀ)"""

    def __init__(self, width, scale):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.scale = scale

    def forward(self, x):
        return x + self.scale * (x @ self.weight.T)


def get_inputs():
    return [torch.randn(64, 160)]


def get_init_inputs():
    return [160, 0.5]
