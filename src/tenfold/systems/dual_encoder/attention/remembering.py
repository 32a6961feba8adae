"""A frozen teacher's answers, kept: without augmentation it says the same about a question in every epoch."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tenfold.systems.dual_encoder.attention.readers import Seen
from tenfold.systems.dual_encoder.inputs.batches import QuestionTensors
from tenfold.systems.dual_encoder.method import Projections

_PARTS = ("text_queries", "text_keys", "image_queries", "image_keys")


class RememberedTeacher:
    """A reader that runs the teacher once over all questions and looks its answers up afterwards.

    Args:
        scores: ``(questions, answers)``.
        layers: for each layer and image of a question the teacher's projections, ``(questions, ...)`` each.
    """

    def __init__(self, scores: Tensor, layers: list[list[Projections]]) -> None:
        self.scores, self.layers = scores, layers

    def __call__(self, batch: Mapping[str, Tensor], maps: bool = True) -> Seen:
        """What the teacher said of a batch's ``rows``; see ``SingleStream``."""
        rows = batch["rows"].to(self.scores.device)
        device = batch["text"].device
        found = [
            [_each(side, lambda x: x[rows].to(device)) for side in sides] for sides in (self.layers if maps else [])
        ]
        return self.scores[rows].to(device), found


def _each(one: Projections, change: Callable[[Tensor], Tensor]) -> Projections:
    parts = {name: getattr(one, name) for name in _PARTS}
    return Projections(**{n: None if x is None else change(x) for n, x in parts.items()}, prefix=one.prefix)


def remember(
    teacher: Any, tensors: QuestionTensors, *, maps: bool, device: torch.device | str = "cpu", limit: int = 2**29
) -> Any:
    """The teacher's reader itself, or one that remembers all it says, where that fits.

    Args:
        teacher: a reader, see ``SingleStream``.
        tensors: all questions, padded to one length.
        maps: whether projections will be asked for.
        device: where the teacher runs.
        limit: bytes that may be kept.
    """
    kept: list[tuple[Tensor, list[list[Projections]]]] = []
    with torch.no_grad():
        for rows, batch in tensors.in_order(256):
            scores, layers = teacher({name: value.to(device) for name, value in batch.items()}, maps)
            if not kept:
                values = scores.numel() + sum(
                    getattr(side, name).numel()
                    for sides in layers
                    for side in sides
                    for name in _PARTS
                    if getattr(side, name) is not None
                )
                if values / len(rows) * len(tensors) * scores.element_size() > limit or "patch_mask" in batch:
                    return teacher
            # Copied: what is kept must not hold on to the whole batch's activations.
            kept.append((scores.clone(), [[_each(side, torch.clone) for side in sides] for sides in layers]))
    layers = [
        [_joined([parts[layer][side] for _, parts in kept]) for side in range(len(kept[0][1][layer]))]
        for layer in range(len(kept[0][1]))
    ]
    return RememberedTeacher(torch.cat([scores for scores, _ in kept]), layers)


def _joined(parts: list[Projections]) -> Projections:
    found = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in _PARTS
        if getattr(parts[0], name) is not None
    }
    return Projections(**found, prefix=parts[0].prefix)
