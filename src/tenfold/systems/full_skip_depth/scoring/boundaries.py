"""Depth edges: where they lie, how many a prediction finds, and how wrong it is beside them."""

import torch
import torch.nn.functional as F
from torch import Tensor


def depth_edges(depth: Tensor, valid: Tensor, ratio: float = 1.1) -> Tensor:
    """Pixels whose depth differs from a valid neighbour's (of four) by more than a factor.

    Args:
        depth: ``(batch, height, width)``.
        valid: ``(batch, height, width)`` bool; pixels without a value make no edges.
        ratio: the factor.

    Returns:
        ``(batch, height, width)`` bool.
    """
    value = torch.where(valid, depth, torch.ones_like(depth)).clamp(min=1e-6).log()
    edges = torch.zeros_like(valid)
    limit = float(torch.tensor(ratio, dtype=torch.float64).log())
    down = ((value[:, 1:] - value[:, :-1]).abs() > limit) & valid[:, 1:] & valid[:, :-1]
    right = ((value[:, :, 1:] - value[:, :, :-1]).abs() > limit) & valid[:, :, 1:] & valid[:, :, :-1]
    edges[:, 1:] |= down
    edges[:, :-1] |= down
    edges[:, :, 1:] |= right
    edges[:, :, :-1] |= right
    return edges


def grown(mask: Tensor, pixels: int) -> Tensor:
    """A mask ``(batch, height, width)`` grown by so many pixels to all sides."""
    if pixels == 0:
        return mask
    return F.max_pool2d(mask[:, None].float(), 2 * pixels + 1, stride=1, padding=pixels)[:, 0] > 0


def boundary_scores(
    prediction: Tensor, truth: Tensor, valid: Tensor, *, ratio: float = 1.1, tolerance: int = 1, near: int = 2
) -> dict[str, Tensor]:
    """How well a prediction keeps depth edges; for dense truth.

    Args:
        prediction: ``(batch, height, width)``.
        truth: ``(batch, height, width)``.
        valid: ``(batch, height, width)`` bool.
        ratio: see ``depth_edges``.
        tolerance: pixels that an edge may be off.
        near: pixels from a true edge within which ``edge_abs_rel`` counts.

    Returns:
        ``boundary_f``: harmonic mean of the share of predicted edges that are near true ones and the share of true ones
        that are near predicted ones (0 where either is 0, NaN without true edges), and ``edge_abs_rel``: ``abs_rel`` of
        the valid pixels near true edges (NaN without). Both ``(batch,)`` float64.
    """
    true_edges, found = depth_edges(truth, valid, ratio), depth_edges(prediction, valid, ratio)
    true_count, found_count = _count(true_edges), _count(found)
    precision = _count(found & grown(true_edges, tolerance)) / found_count.clamp(min=1)
    recall = _count(true_edges & grown(found, tolerance)) / true_count.clamp(min=1)
    score = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    beside = grown(true_edges, near) & valid
    errors = torch.where(beside, (prediction - truth).abs() / truth.clamp(min=1e-12), 0).double().sum((1, 2))
    return {
        "boundary_f": torch.where(true_count > 0, score, torch.nan),
        "edge_abs_rel": errors / torch.where(_count(beside) > 0, _count(beside), torch.nan),
    }


def _count(mask: Tensor) -> Tensor:
    return mask.sum((1, 2)).double()
