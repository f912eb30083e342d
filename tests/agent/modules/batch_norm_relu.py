import torch
from torch import nn


class Model(nn.Module):
    """BatchNorm over the batch's own statistics, then relu"""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x):
        return torch.relu(self.norm(x))


def get_inputs():
    return [torch.randn(64, 128)]


def get_init_inputs():
    return [128]
