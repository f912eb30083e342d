import torch
from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    """the mean Huber loss, one number"""

    def forward(self, predictions, targets):
        return F.smooth_l1_loss(predictions, targets)


def get_inputs():
    return [torch.randn(32, 300), torch.randn(32, 300)]


def get_init_inputs():
    return []
