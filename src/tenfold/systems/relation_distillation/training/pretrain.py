"""Pre-training without labels: any module whose forward pass is its loss, on batches of any kind."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.data import Splits, normalize
from tenfold.systems.relation_distillation.data.fixed_views import FixedViews
from tenfold.systems.relation_distillation.data.views import renormalized
from tenfold.systems.relation_distillation.training.epoch_log import EpochLog
from tenfold.systems.relation_distillation.training.optimizers import adamw, plain_groups
from tenfold.systems.relation_distillation.training.teacher_cache import TeacherCache
from tenfold.systems.relation_distillation.vit.teachers import Teacher
from tenfold.training import FitResult, Validation, fit, learning_rate_factor
from tenfold.training.options import TrainerOptions


@dataclass(frozen=True)
class Pretraining:
    """How long and how fast: AdamW (0.9, 0.95), linear warm-up from 0, cosine to 0 (as MAE and TinyMIM).

    Attributes:
        epochs: passes over the batches.
        learning_rate: at the end of the warm-up.
        weight_decay: of matrices and tokens.
        warmup_epochs: of linear warm-up; at most half of the epochs.
    """

    epochs: int
    learning_rate: float
    weight_decay: float = 0.05
    warmup_epochs: float = 1.0


def pretrain(
    task: nn.Module,
    batches: Any,
    schedule: Pretraining,
    *,
    folder: str | Path,
    inputs: Callable[[Any], Any],
    trainer: TrainerOptions | None = None,
    validate: Validation | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> FitResult:
    """Train a module in place by its own loss, with a log of epochs beside the checkpoints.

    Args:
        task: maps inputs to ``{"loss": scalar, ...}``.
        batches: sized iterable.
        schedule: how long and how fast.
        folder: of checkpoints and log; a training resumes from there.
        inputs: makes the task's inputs of a batch.
        trainer: where it runs.
        validate: see `tenfold.training.fit`.
        on_epoch: called after every epoch.
    """

    def objective(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        losses = model(inputs(batch))
        return losses["loss"], {name: value for name, value in losses.items() if name != "loss"}

    groups = plain_groups(task, weight_decay=schedule.weight_decay)
    optimizer = adamw(groups, schedule.learning_rate, (0.9, 0.95), trainer)
    size = getattr(batches, "batch_size", None)
    log = EpochLog(folder, optimizer, len(batches) * size if size else None)

    def logged(epoch: int, row: dict[str, float]) -> None:
        log(epoch, row)
        if on_epoch is not None:
            on_epoch(epoch, row)

    steps = len(batches)
    factor = learning_rate_factor(
        "cosine",
        total_steps=schedule.epochs * steps,
        steps_per_epoch=steps,
        warmup_from=0.0,
        warmup_epochs=min(schedule.warmup_epochs, schedule.epochs / 2),
    )
    return fit(
        task,
        objective,
        batches,
        epochs=schedule.epochs,
        optimizer=optimizer,
        schedule=factor,
        folder=folder,
        options=trainer,
        validate=validate,
        on_epoch=logged,
    )


def pretrain_from_teacher(
    task: Any,
    batches: Any,
    schedule: Pretraining,
    *,
    splits: Splits,
    teacher: Teacher,
    folder: str | Path,
    cache_mb: int = 2048,
    trainer: TrainerOptions | None = None,
    validate: Validation | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> FitResult:
    """Train a distiller on two views of images: jittered for the student, clean for the teacher.

    Args:
        task: distiller of relations or features.
        batches: of `pretraining_batches` with a jitter; of fixed views the teacher's side is computed once.
        schedule: how long and how fast.
        splits: the data, whose statistics the batches are normalized with.
        teacher: what is copied, with statistics of its own.
        folder: of checkpoints and log.
        cache_mb: largest size of what is computed once, in MiB.
        trainer: where it runs.
        validate: see `tenfold.training.fit`.
        on_epoch: called after every epoch.
    """
    device = (trainer or TrainerOptions()).device

    def for_teacher(images: Tensor) -> Tensor:
        return renormalized(images, splits, teacher.mean or splits.mean, teacher.std or splits.std)

    cache = None
    if isinstance(batches, FixedViews) and task.fixed_teacher:
        task.teacher.to(device)
        cache = TeacherCache(
            task.of_teacher,
            batches.crops,
            lambda crops: for_teacher(normalize(crops.to(device), splits.mean, splits.std)),
            limit_mb=cache_mb,
        )

    def views(batch: Any) -> Any:
        ours, clean = batch[0].unbind(1)
        return ours, cache.at(batch[2]) if cache is not None else for_teacher(clean)

    return pretrain(
        task, batches, schedule, folder=folder, inputs=views, trainer=trainer, validate=validate, on_epoch=on_epoch
    )


def agreement_on(
    task: Any, splits: Splits, teacher: Teacher, device: torch.device, images: int = 64
) -> dict[str, float]:
    """Agreement of a relation distiller's networks on the first validation images.

    Args:
        task: the distiller, on ``device``.
        splits: the data.
        teacher: the teacher's statistics.
        device: where both networks are.
        images: number of images.
    """
    ours = next(iter(splits.validation_batches(images)))[0].to(device)
    return task.agreement((ours, renormalized(ours, splits, teacher.mean or splits.mean, teacher.std or splits.std)))
