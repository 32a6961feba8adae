"""Query denoising (CMT, section 3.4): in training, true boxes with moved centres are further queries.

Groups of them do not see each other, and the queries proper do not see them at all, so that nothing of the truth leaks
into what is served.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class DenoisingQueries:
    """Further queries of a batch, ``n`` of them, before the queries proper.

    Attributes:
        reference: ``(batch, n, 3)`` in [0, 1] of the range; zeros where padded.
        labels: ``(batch, n)`` class to be said, ``none`` where the centre was moved too far.
        classes: ``(batch, n)`` class of the box itself.
        boxes: ``(batch, n, 9)`` to be regressed, also by those that are to say ``none``.
        valid: ``(batch, n)`` false where padded.
        blocked: ``(n + queries, n + queries)`` true where a query (row) may not see another (column).
    """

    reference: Tensor
    labels: Tensor
    classes: Tensor
    boxes: Tensor
    valid: Tensor
    blocked: Tensor


def positive_share(split: float) -> float:
    """Share of noise in the cube [-1, 1]^3 whose length is below ``split``: pi/6 split^3."""
    return math.pi / 6 * split**3


def denoising_queries(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    area: Tensor,
    *,
    queries: int,
    none: int,
    groups: int = 10,
    split: float = 0.75,
    scale: float = 1.0,
    noise: Tensor | None = None,
) -> DenoisingQueries | None:
    """Draw the denoising queries of a batch.

    Args:
        boxes: per sample ``(boxes, 9)``.
        labels: per sample ``(boxes,)``.
        area: ``(6,)`` the range.
        queries: queries proper.
        none: number that stands for no object.
        groups: most copies of every box; fewer, so that there are no more of them than queries proper.
        split: noise of at least this length (of half the box's size) makes a query a negative.
        scale: of the noise.
        noise: ``(groups, batch, boxes, 3)`` in [-1, 1], drawn where ``None``.

    Returns:
        ``None`` where no sample has a box, or one has more boxes than there are queries.
    """
    most = max((len(part) for part in labels), default=0)
    groups = min(groups, queries // most) if most else 0
    if groups == 0:
        return None
    padded = torch.nn.utils.rnn.pad_sequence(list(boxes), batch_first=True)
    classes = torch.nn.utils.rnn.pad_sequence(list(labels), batch_first=True)
    counts = torch.tensor([len(part) for part in labels], device=padded.device)
    valid = torch.arange(most, device=padded.device) < counts[:, None]
    batch = len(padded)
    if noise is None:
        noise = torch.rand(groups, batch, most, 3, device=padded.device) * 2 - 1
    # Along the axes of the LiDAR, not of the box: so in the official code.
    centre = padded[None, ..., :3] + noise * padded[None, ..., 3:6] / 2 * scale
    reference = ((centre - area[:3]) / (area[3:] - area[:3])).clamp(0, 1) * valid[..., None]
    said = torch.where(noise.norm(dim=-1) > split, none, classes)

    def in_a_row(value: Tensor) -> Tensor:
        return value.transpose(0, 1).reshape(batch, groups * most, *value.shape[3:])

    count = groups * most
    group = torch.arange(groups, device=padded.device).repeat_interleave(most)
    blocked = torch.zeros(count + queries, count + queries, dtype=torch.bool, device=padded.device)
    blocked[:count, :count] = group[:, None] != group
    blocked[count:, :count] = True
    return DenoisingQueries(
        reference=in_a_row(reference),
        labels=in_a_row(said),
        classes=classes.repeat(1, groups),
        boxes=padded.repeat(1, groups, 1),
        valid=valid.repeat(1, groups),
        blocked=blocked,
    )
