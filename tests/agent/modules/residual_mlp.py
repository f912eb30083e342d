import torch
from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    """x + W2·gelu(W1·layernorm(x) + b1) + b2"""

    def __init__(self, width, hidden):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.outer(F.gelu(self.inner(self.norm(x))))


def get_inputs():
    return [torch.randn(32, 64)]


def get_init_inputs():
    return [64, 128]
