"""A small network with everything that makes masks and diffs hard."""

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """Embedding tied to the output, a channels-last convolution, batch norm, a layer used twice, an unused branch."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.convolution = nn.Conv2d(1, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.mix = nn.Linear(8, 8)
        self.unused = nn.Linear(50, 50)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        hidden = self.mix(self.mix(self.embedding(tokens)).relu())
        hidden = hidden + self.norm(self.convolution(hidden[:, None])).mean(1)
        return self.head(hidden)


def loss(model, tokens):
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
