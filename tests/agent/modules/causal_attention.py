import torch
from torch import nn


class Model(nn.Module):
    """softmax(q·kᵀ/√D, causal)·v for one head"""

    def __init__(self, length):
        super().__init__()
        self.register_buffer("seen", torch.ones(length, length).tril() > 0)

    def forward(self, q, k, v):
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        return torch.softmax(scores.masked_fill(~self.seen, float("-inf")), dim=-1) @ v


def get_inputs():
    return [torch.randn(8, 48, 32) for _ in range(3)]


def get_init_inputs():
    return [48]
