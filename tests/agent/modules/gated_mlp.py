import torch
from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    """(silu(x·Gᵀ) ⊙ x·Uᵀ)·Dᵀ"""

    def __init__(self, width, hidden):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


def get_inputs():
    return [torch.randn(32, 96)]


def get_init_inputs():
    return [96, 256]
