import torch
from torch import nn


class Model(nn.Module):
    """one step of a cell whose state belongs to this batch size"""

    def __init__(self):
        super().__init__()
        self.cell = nn.Linear(80, 80)
        self.register_buffer("state", torch.randn(24, 80))

    def forward(self, x):
        return torch.tanh(self.cell(x) + self.state)


def get_inputs():
    return [torch.randn(24, 80)]


def get_init_inputs():
    return []
