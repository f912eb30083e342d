import torch
from torch import nn


class Model(nn.Module):
    """running sums along the rows of what the mask lets through, from the end"""

    def forward(self, x, mask):
        return torch.cumsum((x * mask).flip(1), dim=1).flip(1)


def get_inputs():
    return [torch.randn(24, 200), torch.randint(0, 2, (24, 200)).bool()]


def get_init_inputs():
    return []
