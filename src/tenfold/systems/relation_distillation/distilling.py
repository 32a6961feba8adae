"""Relation distillation of a user's own networks in one call."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.relation_distillation.method import PRESETS, RelationDistiller
from tenfold.systems.relation_distillation.training.epoch_log import EpochLog
from tenfold.systems.relation_distillation.training.optimizers import adamw, cosine_schedule, parameter_groups
from tenfold.training import FitResult, TrainerOptions, fit


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
    trainer: TrainerOptions | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    **settings: Any,
) -> Distilled:
    """Train a student towards the token relations of a teacher, without labels (TinyMIM; MiniLM, MiniLMv2 for text).

    Args:
        student: any attention network, trained in place.
        teacher: any attention network; frozen, its weights stay as they are.
        batches: sized iterable, such as a ``DataLoader``: inputs of both networks, or pairs of the student's and the
            teacher's; each a tensor, or a dict of keyword arguments.
        epochs: passes over the batches.
        folder: where checkpoints and the log of epochs go; a training that was killed continues from there.
        preset: ``tinymim``, ``minilm`` or ``minilmv2``: the settings that the published method has.
        inputs: makes such inputs of a batch; ``lambda batch: batch[0]`` leaves labels out.
        learning_rate: of AdamW (0.9, 0.95), which falls along a cosine.
        weight_decay: of matrices.
        warmup_epochs: of linear warm-up.
        trainer: where it runs.
        on_epoch: called after every epoch.
        settings: further arguments of
            `RelationDistiller`; they win over the preset.

    Raises:
        UserError: there is no such preset, no batch, or the networks cannot be aligned.
    """
    if preset not in PRESETS:
        raise UserError(f"there is no preset {preset!r}; there are: {', '.join(PRESETS)}")
    first = next(iter(batches), None)
    if first is None:
        raise UserError("there are no batches to distil from")
    prepare = inputs or (lambda batch: batch)
    # The training moves both to its devices; until then they are where the batches are.
    distiller = RelationDistiller(student.cpu(), teacher.cpu(), **(PRESETS[preset] | settings), example=prepare(first))
    steps = len(batches)  # type: ignore[arg-type]

    def objective(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        losses = model(prepare(batch))
        return losses["loss"], {name: value for name, value in losses.items() if name != "loss"}

    groups = parameter_groups(
        distiller.named_parameters(), learning_rate=learning_rate, weight_decay=weight_decay, decay_tokens=True
    )
    optimizer = adamw(groups, (0.9, 0.95), trainer)
    log = EpochLog(folder, optimizer)

    def logged(epoch: int, row: dict[str, float]) -> None:
        log(epoch, row)
        if on_epoch is not None:
            on_epoch(epoch, row)

    fitted = fit(
        distiller,
        objective,
        batches,
        epochs=epochs,
        optimizer=optimizer,
        schedule=cosine_schedule(epochs=epochs, steps=steps, warmup=min(warmup_epochs, epochs / 2)),
        folder=folder,
        options=trainer,
        on_epoch=logged,
    )
    agreement = distiller.cpu().agreement(prepare(first))
    return Distilled(student, fitted.history, agreement, distiller.untrained, distiller.heads, fitted)
