import torch
from torch import nn


class Model(nn.Module):
    """LayerNorm with weight and bias"""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(x)


def get_inputs():
    return [torch.randn(32, 16, 384)]


def get_init_inputs():
    return [384]
