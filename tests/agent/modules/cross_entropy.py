import torch
from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    """mean cross-entropy of the rows against their classes"""

    def forward(self, logits, target):
        return F.cross_entropy(logits, target)


def get_inputs():
    return [torch.randn(64, 100), torch.randint(0, 100, (64,))]


def get_init_inputs():
    return []
