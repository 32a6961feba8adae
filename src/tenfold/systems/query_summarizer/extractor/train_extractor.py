"""Training an extractor, whole or a sparse part of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenfold.sparse import Mask, SparseTuner
from tenfold.systems.query_summarizer.extractor.window_batches import TokenWindows, VectorWindows
from tenfold.systems.query_summarizer.method import objective
from tenfold.training import FitResult, fit
from tenfold.training.options import TrainerOptions

CLIP = 1.0
"""Largest norm of the gradient."""


def linear_with_warmup(steps: int, warmup: float) -> Callable[[int], float]:
    """Factor of the learning rate at a step: up within the first share of the steps, then linearly to 0."""
    rising = max(1, round(warmup * steps))

    def at(step: int) -> float:
        return (step + 1) / rising if step < rising else max(0.0, (steps - step) / max(1, steps - rising))

    return at


def train_extractor(
    model: nn.Module,
    batches: VectorWindows | TokenWindows,
    folder: Path,
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    warmup: float,
    mask: Mask | None = None,
    options: TrainerOptions | None = None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    select: str | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[FitResult, dict[str, Any]]:
    """AdamW with clipping, warm-up and linear decay; all weights, or the chosen entries and the head.

    Args:
        model: trained in place.
        batches: of windows with labels.
        folder: for checkpoints; resumed from.
        epochs: passes over the windows.
        learning_rate: at its highest.
        weight_decay: of AdamW.
        warmup: share of the steps in which the rate rises.
        mask: entries to train beside the head; all weights where ``None``.
        options: where it runs.
        validate: see ``tenfold.training.fit``.
        select: see there.
        on_epoch: see there.

    Returns:
        The result of the training, and what a diff of it would cost: ``optimizer_bytes``, ``trained`` entries,
        ``diff`` (``None`` for dense training).
    """
    schedule = linear_with_warmup(epochs * len(batches), warmup)
    common: dict[str, Any] = {
        "epochs": epochs, "schedule": schedule, "folder": folder, "validate": validate, "select": select,
        "on_epoch": on_epoch,
    }  # fmt: skip
    if mask is None:
        dense = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
        clipped = TrainerOptions(**{**vars(options or TrainerOptions()), "gradient_clip": CLIP})
        result = fit(model, objective, batches, optimizer=dense, options=clipped, **common)
        held = [value for state in dense.state.values() for value in state.values()]
        return result, {
            "optimizer_bytes": sum(value.numel() * value.element_size() for value in held),
            "trained": sum(parameter.numel() for parameter in model.parameters()),
            "diff": None,
        }
    tuner = SparseTuner(model, mask, dense=["head.*"])
    optimizer = tuner.adamw(learning_rate, weight_decay=weight_decay, max_norm=CLIP)
    result = fit(model, objective, batches, optimizer=optimizer, options=options, **common)
    answer = {
        "optimizer_bytes": optimizer.state_bytes(),
        "trained": mask.chosen + sum(p.numel() for n, p in model.named_parameters() if n.startswith("head.")),
        "diff": tuner.diff(),
    }
    tuner.release()
    return result, answer
