"""Relation distillation of a user's own networks in one call."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tenfold.errors import UserError
from tenfold.systems.relation_distillation.method import PRESETS, RelationDistiller
from tenfold.systems.relation_distillation.training.freezing import Lent
from tenfold.systems.relation_distillation.training.pretrain import Pretraining, pretrain
from tenfold.training import FitResult
from tenfold.training.options import TrainerOptions


@dataclass(frozen=True)
class Distilled:
    """What a distillation leaves behind.

    Attributes:
        student: the network that learnt, the one that was given.
        history: one row per epoch: ``train/loss`` and each relation's divergence.
        agreement: of the relations on the first batch, see
            `agreement`.
        untrained: modules of the student that the loss does not reach; they have their initial values.
        heads: how heads were aligned, for each pair of layers.
        fit: the training.
    """

    student: nn.Module
    history: list[dict[str, float]]
    agreement: dict[str, float]
    untrained: list[str]
    heads: list[Any]
    fit: FitResult


def distill_relations(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable,
    *,
    epochs: int,
    folder: str | Path,
    preset: str = "tinymim",
    inputs: Callable[[Any], Any] | None = None,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    warmup_epochs: float = 1.0,
    keep_heads: bool = False,
    trainer: TrainerOptions | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    **settings: Any,
) -> Distilled:
    """Train a student towards the token relations of a teacher, without labels (TinyMIM; MiniLM, MiniLMv2 for text).

    Args:
        student: any attention network, trained in place. But for its weights it comes back as it was: mode, device,
            parameters that learn, head counts.
        teacher: any attention network; frozen while the student learns.
        batches: sized iterable, such as a ``DataLoader``: inputs of both networks, or pairs of the student's and the
            teacher's; each a tensor, or a dict of keyword arguments.
        epochs: passes over the batches.
        folder: where checkpoints and the log of epochs go; a training that was killed continues from there.
        preset: ``tinymim``, ``minilm`` or ``minilmv2``: the settings that the published method has.
        inputs: makes such inputs of a batch; ``lambda batch: batch[0]`` leaves labels out.
        learning_rate: of AdamW (0.9, 0.95), which falls along a cosine.
        weight_decay: of matrices.
        warmup_epochs: of linear warm-up.
        keep_heads: leave the student's layer with the head count that it learnt with, see
            `RelationDistiller.release`.
        trainer: where it runs.
        on_epoch: called after every epoch.
        settings: further arguments of `RelationDistiller`; they win over the preset.

    Raises:
        UserError: there is no such preset, no batch, or the networks cannot be aligned.
    """
    if preset not in PRESETS:
        raise UserError(f"there is no preset {preset!r}; there are: {', '.join(PRESETS)}")
    first = next(iter(batches), None)
    if first is None:
        raise UserError("there are no batches to distil from")
    prepare = inputs or (lambda batch: batch)
    schedule = Pretraining(epochs, learning_rate, weight_decay, warmup_epochs)
    lent = Lent(student), Lent(teacher)  # before they move: the training moves both to its devices
    try:
        example = prepare(first)
        distiller = RelationDistiller(student.cpu(), teacher.cpu(), **(PRESETS[preset] | settings), example=example)
        fitted = pretrain(
            distiller, batches, schedule, folder=folder, inputs=prepare, trainer=trainer, on_epoch=on_epoch
        )
        agreement = distiller.cpu().agreement(example)
    finally:
        for one in lent:
            one.give_back(keep_heads=keep_heads)
    return Distilled(student, fitted.history, agreement, distiller.untrained, distiller.heads, fitted)
