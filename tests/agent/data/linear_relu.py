"""A reference in KernelBench's form."""

import torch
from torch import nn

batch, features_in, features_out = 64, 96, 128


class Model(nn.Module):
    """relu(x·Wᵀ + b)"""

    def __init__(self, features_in, features_out):
        super().__init__()
        self.linear = nn.Linear(features_in, features_out)

    def forward(self, x):
        return torch.relu(self.linear(x))


def get_inputs():
    return [torch.rand(batch, features_in)]


def get_init_inputs():
    return [features_in, features_out]
