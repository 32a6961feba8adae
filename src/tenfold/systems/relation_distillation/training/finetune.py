"""Fine-tuning of a classifier by the published recipe, switchable part by part."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.data import (
    FileBatches,
    TensorBatches,
)
from tenfold.systems.relation_distillation.training.epoch_log import EpochLog
from tenfold.systems.relation_distillation.training.optimizers import adamw, layered_groups
from tenfold.systems.relation_distillation.vit.vision_transformer import set_drop_path
from tenfold.training import FitResult, fit, learning_rate_factor
from tenfold.training.options import TrainerOptions


@dataclass(frozen=True)
class Finetuning:
    """How a classifier is fine-tuned: AdamW (0.9, 0.999), layer-wise decay, warm-up from 0, cosine, no clipping.

    Attributes:
        epochs: passes over the batches.
        learning_rate: of the head.
        weight_decay: of matrices.
        layer_decay: factor of the learning rate from one layer to the one below.
        warmup_epochs: epochs of linear warm-up; at most half of the epochs.
        lowest: learning rate at the end.
        drop_path: of the last block, rising linearly from 0.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none. With both, a batch gets one or the other.
        smoothing: of the labels.
        erase: probability that a random rectangle of an image is replaced by noise.
    """

    epochs: int
    learning_rate: float
    weight_decay: float = 0.05
    layer_decay: float = 0.65
    warmup_epochs: float = 5.0
    lowest: float = 1e-6
    drop_path: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0
    erase: float = 0.0


def finetune(
    model: Any,
    batches: TensorBatches | FileBatches,
    recipe: Finetuning,
    *,
    folder: str | Path,
    trainer: TrainerOptions | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> FitResult:
    """Train a classifier in place.

    Args:
        model: classifier of `vision_transformer`, or a timm vision transformer with classes.
        batches: ``(images, labels)``.
        recipe: how long and how.
        folder: where checkpoints go; a training resumes from there.
        trainer: where it runs.
        on_epoch: called after every epoch.
    """
    set_drop_path(model, recipe.drop_path, "linear")
    model.train()
    if isinstance(getattr(model, "pos_embed", None), nn.Parameter):
        model.pos_embed.requires_grad_(True)
    groups = layered_groups(
        model, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay
    )
    mix = _mixing(recipe.mixup, recipe.cutmix, model.num_classes)

    def objective(model: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        if recipe.erase:
            images = random_erase(images, recipe.erase)
        if mix is not None:
            images, labels = mix(images, labels)
        return F.cross_entropy(model(images), labels, label_smoothing=recipe.smoothing), {}

    optimizer = adamw(groups, recipe.learning_rate, (0.9, 0.999), trainer)
    log = EpochLog(folder, optimizer, len(batches) * batches.batch_size)

    def logged(epoch: int, row: dict[str, float]) -> None:
        log(epoch, row)
        if on_epoch is not None:
            on_epoch(epoch, row)

    steps = len(batches)
    factor = learning_rate_factor(
        "cosine",
        total_steps=recipe.epochs * steps,
        steps_per_epoch=steps,
        warmup_from=0.0,
        warmup_epochs=min(recipe.warmup_epochs, recipe.epochs / 2),
        lowest=recipe.lowest / recipe.learning_rate,
    )
    return fit(
        model,
        objective,
        batches,
        epochs=recipe.epochs,
        optimizer=optimizer,
        schedule=factor,
        folder=folder,
        options=trainer,
        on_epoch=logged,
    )


def _mixing(mixup: float, cutmix: float, classes: int) -> Callable[..., Any] | None:
    """torchvision's, which draws from torch's generator, whose state a checkpoint keeps."""
    from torchvision.transforms import v2

    mixes: list[nn.Module] = []
    if mixup:
        mixes.append(v2.MixUp(alpha=mixup, num_classes=classes))
    if cutmix:
        mixes.append(v2.CutMix(alpha=cutmix, num_classes=classes))
    return None if not mixes else mixes[0] if len(mixes) == 1 else v2.RandomChoice(mixes)


def random_erase(
    images: Tensor, probability: float, *, area: tuple[float, float] = (0.02, 1 / 3), ratio: float = 0.3
) -> Tensor:
    """Replace a random rectangle of some images by normal noise.

    Args:
        images: ``(batch, channels, height, width)``, normalized.
        probability: that an image gets a rectangle.
        area: range of its share of the image.
        ratio: smallest ratio of its sides; the largest is the inverse.
    """
    batch, _, height, width = images.shape
    chosen, share, shape, top, left = torch.rand(5, batch, 1, 1, 1, device=images.device)
    share = area[0] + (area[1] - area[0]) * share
    aspect = ratio ** (1 - 2 * shape)
    tall, wide = (share / aspect).sqrt().clamp(max=1), (share * aspect).sqrt().clamp(max=1)
    rows = (torch.arange(height, device=images.device) + 0.5).view(-1, 1) / height
    columns = (torch.arange(width, device=images.device) + 0.5) / width
    inside = (rows >= top * (1 - tall)) & (rows < top * (1 - tall) + tall)
    inside = inside & (columns >= left * (1 - wide)) & (columns < left * (1 - wide) + wide)
    return torch.where(inside & (chosen < probability), torch.randn_like(images), images)
