"""Hungarian matching of predictions and true boxes (official code: ``HungarianAssigner3D``)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CODE_WEIGHTS = (2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
"""Weights of the ten numbers of a code, in the cost (first eight) and in the loss."""
_IN_COST = 8


def focal_cost(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0, eps: float = 1e-12) -> Tensor:
    """What it costs to call predictions by the true classes.

    Args:
        logits: ``(..., queries, classes)``.
        labels: ``(..., boxes)`` numbers of classes.
        alpha: weight of being the class.
        gamma: of the focal loss.
        eps: in the logarithms.

    Returns:
        ``(..., queries, boxes)``.
    """
    p = logits.sigmoid()
    being = -(p + eps).log() * alpha * (1 - p).pow(gamma)
    not_being = -(1 - p + eps).log() * (1 - alpha) * p.pow(gamma)
    rows = (being - not_being).transpose(-1, -2)
    wanted = labels[..., None].expand(*labels.shape, logits.shape[-2])
    return torch.gather(rows, -2, wanted).transpose(-1, -2)


def match_cost(logits: Tensor, codes: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Cost of every pair: twice the focal cost and a quarter of the L1 distance of the codes without velocity.

    Args:
        logits: ``(..., queries, classes)``.
        codes: ``(..., queries, 10)`` predicted.
        labels: ``(..., boxes)``.
        targets: ``(..., boxes, 10)`` true codes.

    Returns:
        ``(..., queries, boxes)``.
    """
    weights = codes.new_tensor(CODE_WEIGHTS[:_IN_COST])
    distance = torch.cdist(codes[..., :_IN_COST] * weights, targets[..., :_IN_COST] * weights, p=1)
    return 2.0 * focal_cost(logits, labels) + 0.25 * distance


@torch.no_grad()
def assign(logits: Tensor, codes: Tensor, labels: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Which true box every prediction is to become, in all layers and samples.

    Args:
        logits: ``(layers, batch, queries, classes)``.
        codes: ``(layers, batch, queries, 10)``.
        labels: per sample ``(boxes,)``.
        targets: per sample ``(boxes, 10)``.

    Returns:
        ``(layers, batch, queries)`` numbers of boxes of the sample, -1 for none.
    """
    from scipy.optimize import linear_sum_assignment

    layers, batch, queries = codes.shape[:3]
    found = np.full((layers, batch, queries), -1, dtype=np.int64)
    most = max((len(part) for part in labels), default=0)
    if most == 0:
        return torch.from_numpy(found).to(codes.device)
    padded_labels = torch.nn.utils.rnn.pad_sequence(list(labels), batch_first=True)
    padded_targets = torch.nn.utils.rnn.pad_sequence(list(targets), batch_first=True)
    cost = match_cost(logits, codes, padded_labels.expand(layers, -1, -1), padded_targets.expand(layers, -1, -1, -1))
    # A box of zero size has a code of minus infinity: it is matched last, as everything costs it the same.
    table = torch.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6).float().cpu().numpy()
    for sample, own in enumerate(labels):
        for layer in range(layers):
            rows, columns = linear_sum_assignment(table[layer, sample, :, : len(own)])
            found[layer, sample, rows] = columns
    return torch.from_numpy(found).to(codes.device)
