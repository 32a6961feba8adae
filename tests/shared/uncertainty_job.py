"""A small labelling job in a process of its own, for the tests that kill it or start several of it."""

import sys

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


if __name__ == "__main__":
    import time

    from tenfold.systems.activation_uncertainty import ActivationUncertainty, label_to_folder

    learner = ActivationUncertainty(make_model(), next(batches())[0][:2], passes=10)
    label_to_folder(learner, batches(), sys.argv[1], block=2, progress=lambda done: time.sleep(0.05))
