import torch
from torch import nn


class ModelNew(nn.Module):
    """Forgets the bias."""

    def __init__(self, features_in, features_out):
        super().__init__()
        self.linear = nn.Linear(features_in, features_out)

    def forward(self, x):
        return torch.relu(x @ self.linear.weight.t())
