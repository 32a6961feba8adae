"""``fit``: how everything here trains, on Lightning's Trainer.

The recipe gives a module, an objective and batches; where it runs (CPU, GPUs, several processes, precision) is
options only. A training that was killed continues from its last checkpoint, in mid-epoch too, and ends with the
same numbers: where the batches stand and all random states are part of the checkpoint, and library defaults that
would break this are set here and in ``lightning_task`` and nowhere else. Lightning itself is imported when something
trains.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from tenfold.errors import UserError
from tenfold.training.options import TrainerOptions

__all__ = ["FitResult", "Objective", "TrainerOptions", "Validation", "fit", "learning_rate_factor"]

Objective = Callable[[nn.Module, Any], tuple[Tensor, dict[str, Tensor]]]
"""Maps the module and a batch to the loss (scalar) and to further numbers to log (scalars)."""

Validation = Callable[[nn.Module], dict[str, float]]
"""Maps the module, in eval mode, to the numbers of an epoch."""


@dataclass(frozen=True)
class FitResult:
    """What a training leaves behind.

    Attributes:
        history: one row per epoch: ``epoch`` (from 1), ``train/...`` means over the epoch, ``validation/...``.
        best_epoch: epoch whose weights the module holds now.
        steps: optimizer steps in all.
        seconds: wall-clock time over all resumptions.
    """

    history: list[dict[str, float]]
    best_epoch: int
    steps: int
    seconds: float


def fit(
    model: nn.Module,
    objective: Objective,
    batches: Iterable,
    *,
    epochs: int,
    optimizer: Optimizer,
    schedule: Callable[[int], float] | None = None,
    folder: str | Path,
    options: TrainerOptions | None = None,
    validate: Validation | None = None,
    select: str | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> FitResult:
    """Train ``model`` in place; continue from ``folder``'s last checkpoint where there is one.

    Args:
        model: any module; its parameters are those of ``optimizer``. If it comes in eval mode (as another training
            leaves it) it is put into training mode; of one in training mode, parts that are in eval mode stay so.
        objective: see ``Objective``; a module's buffers (moving averages) are saved and resumed with it.
        batches: sized iterable of batches: a ``DataLoader``, a list, or anything with ``state_dict`` and
            ``load_state_dict`` (see ``tenfold.data.TensorBatches``), which resumes in mid-epoch at no cost. Of
            others the epoch's order is drawn again from the random states that are kept, and the batches that were
            seen are passed over; what makes them random must draw from torch, numpy or ``random``, or from the
            loader's or its sampler's own generator.
        epochs: passes over ``batches``.
        optimizer: made on the parameters of ``model``.
        schedule: factor of the learning rates at optimizer step ``s`` (from 0); constant where ``None``.
        folder: where ``last.ckpt``, ``best.pt`` and the loggers' files go; made if need be.
        options: where it runs.
        validate: called after every epoch on every rank, with the module in eval mode and gradients off.
        select: name of the validation number by which the best epoch's weights are kept; the last epoch's if ``None``.
        on_epoch: called after every epoch with its number and its row of the history; for progress.

    Raises:
        RunStopped: a loss was not finite. The message names the step; the last good checkpoint stays.
        RunStopped: a checkpoint could not be written, as on a full disk; the last good one stays.
        UserError: gradients are to be clipped that the optimizer itself unscales, or a checkpoint of ``folder`` is
            damaged.
    """
    options = options or TrainerOptions()
    if options.gradient_clip is not None and options.precision == "16-mixed" and _unscales(optimizer):
        raise UserError(
            "a fused optimizer unscales float16 gradients itself, after they would be clipped: make it with "
            "fused=False, or train with bf16-mixed"
        )
    if not model.training:  # Lightning would leave it so: no dropout, no statistics of the batch
        model.train()
    from tenfold.training.lightning_task import train

    done = train(
        model,
        objective,
        batches,
        epochs=epochs,
        optimizer=optimizer,
        schedule=schedule,
        folder=Path(folder),
        options=options,
        validate=validate,
        select=select,
        on_epoch=on_epoch,
    )
    model.eval()
    return FitResult(**done)


def learning_rate_factor(
    kind: Literal["constant", "multistep", "cosine", "linear"],
    *,
    total_steps: int,
    steps_per_epoch: int,
    milestones: Sequence[int] = (),
    factor: float = 0.1,
    lowest: float = 0.0,
    warmup_epochs: float = 0.0,
    warmup_from: float | None = None,
) -> Callable[[int], float]:
    """Factor of the learning rate as a function of the optimizer step.

    Args:
        kind: ``constant``; ``multistep``: times ``factor`` after each of ``milestones`` (epochs); ``cosine`` to
            ``lowest`` after the warm-up; ``linear`` to 0, decaying during the warm-up, too (as mmsegmentation's).
        total_steps: optimizer steps of the whole training.
        steps_per_epoch: optimizer steps of an epoch.
        milestones: numbers of epochs.
        factor: of one milestone.
        lowest: factor at the end of ``cosine``.
        warmup_epochs: epochs of linear warm-up.
        warmup_from: factor of the first step, as MAE begins with 0; where ``None`` the first step is the first part
            of the way from 0.
    """
    warmup = round(warmup_epochs * steps_per_epoch)
    boundaries = [epoch * steps_per_epoch for epoch in milestones]

    def risen(step: int) -> float:
        if step >= warmup:
            return 1.0
        return (step + 1) / warmup if warmup_from is None else warmup_from + (1 - warmup_from) * step / warmup

    def at(step: int) -> float:
        if kind == "linear":
            return risen(step) * (1 - step / total_steps)
        if step < warmup:
            return risen(step)
        if kind == "multistep":
            return factor ** sum(step >= boundary for boundary in boundaries)
        if kind == "cosine":
            done = (step - warmup) / max(total_steps - warmup, 1)
            return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * done))
        return 1.0

    return at


def _unscales(optimizer: Optimizer) -> bool:
    """Whether the optimizer takes scaled gradients and the scaler with them, as torch's fused ones do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
