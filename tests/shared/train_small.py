"""A small training in a process of its own, for the tests that kill it or start several of it."""

import argparse
import os
import signal

import torch
from torch import nn

from tenfold.data import LabelledImages, TensorBatches
from tenfold.training import TrainerOptions, fit, learning_rate_factor
from tenfold.training.parallel import rank

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--kill-at", type=int, default=0)
parser.add_argument("--devices", type=int, default=1)
parser.add_argument("--no-dropout", action="store_true")
options = parser.parse_args()

torch.manual_seed(0)
images = torch.randint(0, 256, (256, 1, 8, 8), dtype=torch.uint8)
labels = (images.double().mean((1, 2, 3)) > 127.5).long()
data = LabelledImages(images, labels, ("dark", "bright"))
batches = TensorBatches(data, 32, seed=1, mean=(0.5,), std=(0.3,))
model = nn.Sequential(
    nn.Conv2d(1, 8, 3),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.Dropout(0.0 if options.no_dropout else 0.3),
    nn.Flatten(),
    nn.Linear(8 * 36, 2),
)
calls = 0


def objective(model, batch):
    global calls
    calls += 1
    if calls == options.kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return nn.functional.cross_entropy(model(batch[0]), batch[1]), {}


result = fit(
    model,
    objective,
    batches,
    epochs=2,
    optimizer=torch.optim.SGD(model.parameters(), momentum=0.9, lr=0.05),
    schedule=learning_rate_factor("cosine", total_steps=16, steps_per_epoch=8),
    folder=options.folder,
    options=TrainerOptions(accelerator="cpu", devices=options.devices, checkpoint_steps=3, loggers=[]),
)
if rank() == 0:
    numbers = [row["train/loss"] for row in result.history]
    numbers += [value.double().sum().item() for value in model.state_dict().values()]
    print(*numbers)
