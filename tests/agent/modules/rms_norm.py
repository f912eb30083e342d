import torch
from torch import nn


class Model(nn.Module):
    """x over its root mean square, times a weight"""

    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def get_inputs():
    return [torch.randn(96, 512)]


def get_init_inputs():
    return [512, 1e-6]
