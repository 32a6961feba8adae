"""A small labelling job, for the tests that kill it or share it between processes."""

import torch
from torch import nn

from tenfold.systems.activation_uncertainty import Batch


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1)).eval()


def batches():
    random = torch.Generator().manual_seed(1)
    for number in range(10):
        yield Batch(torch.randn(20, 6, generator=random), torch.arange(20 * number, 20 * number + 20))
