"""Fine-tuning of a segmentation network on ADE20K, as published."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.data import FileBatches
from tenfold.systems.relation_distillation.data.ade20k import (
    IGNORED,
    SegmentationFiles,
    TrainingCrop,
)
from tenfold.systems.relation_distillation.training.optimizers import adamw, layer_number
from tenfold.systems.relation_distillation.vit.segmentation_network import SegmentationNetwork
from tenfold.systems.relation_distillation.vit.vision_transformer import (
    set_drop_path,
)
from tenfold.training import FitResult, TrainerOptions, fit


def segmentation_groups(
    model: SegmentationNetwork, learning_rate: float, weight_decay: float, layer_decay: float
) -> Any:
    """Optimizer groups: the backbone's layers by their depth, neck and heads at the full rate."""
    depth = len(model.backbone.blocks)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        inner = name.removeprefix("backbone.")
        layer = layer_number(inner, depth) if inner != name else depth + 1
        plain = parameter.ndim <= 1 or inner in ("pos_embed", "cls_token", "reg_token") or "relative_position" in name
        key = (layer_decay ** (depth + 1 - layer), 0.0 if plain else weight_decay)
        group = groups.setdefault(
            key, {"params": [], "names": [], "lr": learning_rate * key[0], "weight_decay": key[1]}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def train_segmentation(
    model: SegmentationNetwork, files: SegmentationFiles, *, folder: str | Path, mean: Sequence[float],
    std: Sequence[float], iterations: int = 160_000, batch_size: int = 16, learning_rate: float = 1e-4,
    weight_decay: float = 0.05, layer_decay: float = 0.75, drop_path: float = 0.1, warmup: int = 1500, seed: int = 0,
    workers: int = 0, trainer: TrainerOptions | None = None,
) -> FitResult:  # fmt: skip
    """Fine-tune in place: cross-entropy, 0.4 of the auxiliary head's, AdamW with layer-wise decay, linear decay to 0.

    Args:
        model: the network.
        files: training pairs.
        folder: where checkpoints go; a training resumes from there.
        mean: per channel.
        std: per channel.
        iterations: optimizer steps, rounded up to whole epochs.
        batch_size: images of a step, over all processes.
        learning_rate: of neck and heads.
        weight_decay: of matrices.
        layer_decay: factor of the learning rate from one layer to the one below; 0.8 for TinyMIM*.
        drop_path: of the last block, rising linearly.
        warmup: steps of linear warm-up from a millionth.
        seed: of order and crops.
        workers: processes that read images.
        trainer: where it runs.
    """
    set_drop_path(model.backbone, drop_path, "linear")
    model.train()
    batches = FileBatches(
        files, batch_size, seed=seed, transform=TrainingCrop(model.crop, mean),  # type: ignore[arg-type]
        # Labels travel as a fourth channel: this normalizes them to themselves.
        mean=(*mean, 0.0), std=(*std, 1 / 255), workers=workers,
    )  # fmt: skip
    epochs = -(-iterations // len(batches))
    total = epochs * len(batches)
    warmup = min(warmup, total // 2)

    def objective(model: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch[0][:, :3], batch[0][:, 3].round().long()
        logits, auxiliary = model(images)
        losses = [_cross_entropy(x, labels) for x in (logits, auxiliary)]
        return losses[0] + 0.4 * losses[1], {"decoder": losses[0], "auxiliary": losses[1]}

    def schedule(step: int) -> float:
        decay = 1 - step / total
        return decay if step >= warmup else decay * (1e-6 + (1 - 1e-6) * step / warmup)

    groups = segmentation_groups(model, learning_rate, weight_decay, layer_decay)
    return fit(
        model, objective, batches, epochs=epochs, optimizer=adamw(groups, (0.9, 0.999), trainer), schedule=schedule,
        folder=folder, options=trainer,
    )  # fmt: skip


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over labelled pixels; 0, with a gradient of 0, where a crop has none."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)
