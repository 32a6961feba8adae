"""Fine-tuning of a segmentation network on ADE20K, as published."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.data import FileBatches
from tenfold.settings import Count, NonNegativeFloat, PositiveFloat, PositiveInt, PositiveShare, ProperShare
from tenfold.systems.relation_distillation.data.ade20k import (
    IGNORED,
    SegmentationFiles,
    TrainingCrop,
)
from tenfold.systems.relation_distillation.training.optimizers import adamw, layered_groups, plain_groups
from tenfold.systems.relation_distillation.vit.segmentation_network import SegmentationNetwork
from tenfold.systems.relation_distillation.vit.vision_transformer import (
    set_drop_path,
)
from tenfold.training import FitResult, fit, learning_rate_factor
from tenfold.training.options import TrainerOptions


def segmentation_groups(
    model: SegmentationNetwork, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Optimizer groups: the backbone's layers by their depth, neck and heads, one layer above, at the full rate."""
    backbone = layered_groups(
        model.backbone, learning_rate=layer_decay * learning_rate, weight_decay=weight_decay, layer_decay=layer_decay
    )
    above = [module for name, module in model.named_children() if name != "backbone"]
    heads = plain_groups(nn.ModuleList(above), weight_decay=weight_decay)
    return [*backbone, *({**group, "lr": learning_rate} for group in heads)]


@dataclass(frozen=True)
class SegmentationTraining:
    """How a segmentation network is fine-tuned (UPerNet on ADE20K, as published).

    Attributes:
        iterations: optimizer steps, rounded up to whole epochs.
        batch_size: images of a step, over all processes.
        learning_rate: of neck and heads.
        weight_decay: of matrices.
        layer_decay: factor of the learning rate from one layer to the one below; 0.8 for TinyMIM*.
        drop_path: of the last block, rising linearly.
        warmup: steps of linear warm-up from a millionth; at most half of all.
    """

    iterations: PositiveInt = 160_000
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 0.05
    layer_decay: PositiveShare = 0.75
    drop_path: ProperShare = 0.1
    warmup: Count = 1500


def train_segmentation(
    model: SegmentationNetwork,
    files: SegmentationFiles,
    recipe: SegmentationTraining,
    *,
    folder: str | Path,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
    workers: int = 0,
    trainer: TrainerOptions | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> FitResult:
    """Fine-tune in place: cross-entropy, 0.4 of the auxiliary head's, AdamW with layer-wise decay, linear decay to 0.

    Args:
        model: the network.
        files: training pairs.
        recipe: how long and how.
        folder: where checkpoints go; a training resumes from there.
        mean: per channel.
        std: per channel.
        seed: of order and crops.
        workers: processes that read images.
        trainer: where it runs.
        on_epoch: called after every epoch.
    """
    set_drop_path(model.backbone, recipe.drop_path, "linear")
    model.train()
    batches = FileBatches(
        files,  # type: ignore[arg-type]
        recipe.batch_size,
        seed=seed,
        transform=TrainingCrop(model.crop, mean),
        # Labels travel as a fourth channel: this normalizes them to themselves.
        mean=(*mean, 0.0),
        std=(*std, 1 / 255),
        workers=workers,
    )
    steps = len(batches)
    epochs = -(-recipe.iterations // steps)
    factor = learning_rate_factor(
        "linear",
        total_steps=epochs * steps,
        steps_per_epoch=1,
        warmup_from=1e-6,
        warmup_epochs=min(recipe.warmup, epochs * steps // 2),
    )

    def objective(model: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch[0][:, :3], batch[0][:, 3].round().long()
        logits, auxiliary = model(images)
        losses = [_cross_entropy(x, labels) for x in (logits, auxiliary)]
        return losses[0] + 0.4 * losses[1], {"decoder": losses[0], "auxiliary": losses[1]}

    groups = segmentation_groups(model, recipe.learning_rate, recipe.weight_decay, recipe.layer_decay)
    optimizer = adamw(groups, recipe.learning_rate, (0.9, 0.999), trainer)
    return fit(
        model,
        objective,
        batches,
        epochs=epochs,
        optimizer=optimizer,
        schedule=factor,
        folder=folder,
        options=trainer,
        on_epoch=on_epoch,
    )


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over labelled pixels; 0, with a gradient of 0, where a crop has none."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)
