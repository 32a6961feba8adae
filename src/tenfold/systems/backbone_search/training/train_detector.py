"""``train_detector``: a detector on letterboxed images, by the published recipe or a part of it."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tenfold.systems.backbone_search.data.augment import FLIPS, AugmentOptions
from tenfold.systems.backbone_search.data.batches import DetectionBatches
from tenfold.systems.backbone_search.data.letterbox import LetterboxedImages
from tenfold.systems.backbone_search.detector.yolox_lite import YOLOXLite
from tenfold.systems.backbone_search.training.moving_average import DetectionObjective
from tenfold.systems.backbone_search.training.options import DetectorTraining
from tenfold.training import FitResult, fit
from tenfold.training.options import TrainerOptions


def learning_rates(options: DetectorTraining, steps_per_epoch: int) -> Callable[[int], float]:
    """YOLOX's factor of the learning rate: quadratic warm-up, cosine to the least, constant in the plain epochs.

    Args:
        options: of the training.
        steps_per_epoch: optimizer steps of an epoch.
    """
    warmup = round(options.warmup_epochs * steps_per_epoch)
    plain = options.plain_epochs * steps_per_epoch
    total = options.epochs * steps_per_epoch

    def at(step: int) -> float:
        if step < warmup:
            return ((step + 1) / warmup) ** 2
        if step >= total - plain:
            return options.least
        share = (step - warmup) / max(total - warmup - plain, 1)
        return options.least + 0.5 * (1 - options.least) * (1 + math.cos(math.pi * share))

    return at


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay on the weights of convolutions, none on normalizations and biases."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decayed if parameter.ndim > 1 else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def train_detector(
    model: YOLOXLite,
    images: LetterboxedImages,
    options: DetectorTraining,
    *,
    folder: Path,
    seed: int,
    trainer: TrainerOptions | None = None,
    size: tuple[int, int] | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> FitResult:
    """Train a detector in place; continues from the folder's last checkpoint where there is one.

    Args:
        model: the detector; holds the averaged weights afterwards where the options ask for them, channels last.
        images: to learn from.
        options: see ``DetectorTraining``.
        folder: for checkpoints.
        seed: of order and augmentation.
        trainer: where it runs.
        size: height and width of the input where not those of the images.
        on_epoch: called after every epoch with its number and its losses.
    """
    model.to(memory_format=torch.channels_last)  # depthwise gradients: a fifth faster
    augment = FLIPS if options.augment == "flips" else AugmentOptions()
    batches = DetectionBatches(images, options.batch_size, seed, augment, options.epochs, options.plain_epochs, size)
    objective = DetectionObjective(model, options.average)
    result = fit(
        model,
        objective,
        batches,
        epochs=options.epochs,
        optimizer=torch.optim.SGD(
            parameter_groups(model, options.weight_decay),
            lr=options.learning_rate,
            momentum=options.momentum,
            nesterov=options.momentum > 0,
        ),
        schedule=learning_rates(options, len(batches)),
        folder=folder,
        options=trainer or TrainerOptions(accelerator="cpu", loggers=[], gradient_clip=20.0),
        on_epoch=on_epoch,
    )
    if objective.average is not None:
        objective.update(model)
        model.load_state_dict(objective.average.state_dict())
    return result
