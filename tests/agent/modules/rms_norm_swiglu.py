import torch
from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    """silu(n·Gᵀ) ⊙ n·Uᵀ of the normalised rows n"""

    def __init__(self, width, hidden):
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)

    def forward(self, x):
        x = self.norm(x)
        return F.silu(self.gate(x)) * self.up(x)


def get_inputs():
    return [torch.randn(4, 12, 64)]


def get_init_inputs():
    return [[64], {"hidden": 128}]
