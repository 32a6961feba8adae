"""SimOTA, YOLOX's label assignment (arXiv 2107.08430, section 2.1; the public code's present form), over a whole batch.


    candidates: cells whose centre lies strictly within 1.5 strides of a true box's centre, in both directions
    cost(g, a) = sum_k BCE(sqrt(class * objectness), onehot) - 3 log(IoU + 1e-8) + 1e6 where a is no candidate of g
    k(g)       = whole part of the sum of g's ten largest IoUs, at least 1; g takes its k(g) cheapest candidates
    a cell taken by several goes to the cheapest of ALL true boxes

Images of a batch have different numbers of boxes, and of candidates: both are padded, so that no loop runs over images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RADIUS = 1.5
_MOST_CELLS_OF_A_BOX = 10
_OUTSIDE = 1e6


@dataclass(frozen=True)
class Assignment:
    """Which cell has to predict which true box.

    Attributes:
        box: ``(batch, cells)`` int64 number of the true box, -1 for background.
        iou: ``(batch, cells)`` overlap of the cell's prediction with it, 0 for background.
    """

    box: Tensor
    iou: Tensor


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Overlaps of boxes given by centre and sides.

    Args:
        a: ``(..., n, 4)`` centre x, centre y, width, height.
        b: ``(..., m, 4)``.

    Returns:
        ``(..., n, m)`` intersection over union; 0 where boxes do not meet.
    """
    a, b = a[..., :, None, :], b[..., None, :, :]
    low = torch.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = torch.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    intersection = (high - low).prod(-1) * (low < high).all(-1)
    areas = a[..., 2:].prod(-1) + b[..., 2:].prod(-1)
    return intersection / (areas - intersection)


@torch.no_grad()
def assign(
    boxes: Tensor,
    objectness: Tensor,
    classes: Tensor,
    places: Tensor,
    strides: Tensor,
    true_boxes: Tensor,
    true_classes: Tensor,
    present: Tensor,
) -> Assignment:
    """Assign cells to true boxes by SimOTA, all images at once, in float32.

    Args:
        boxes: ``(batch, cells, 4)`` predicted centre x, centre y, width, height in pixels.
        objectness: ``(batch, cells)`` logits.
        classes: ``(batch, cells, num_classes)`` logits.
        places: ``(cells, 2)`` column and row of each cell.
        strides: ``(cells,)`` in pixels.
        true_boxes: ``(batch, n, 4)`` centre x, centre y, width, height in pixels, padded.
        true_classes: ``(batch, n)`` int64, padded with any class.
        present: ``(batch, n)`` bool, false for padding.

    Returns:
        See ``Assignment``. A true box that no cell's centre is near takes the cheapest candidate of the others, as
        in the public code; where an image has no candidate at all (there the public code raises), all is background.
    """
    batch, cells = objectness.shape
    result = torch.full((batch, cells), -1, dtype=torch.int64, device=boxes.device)
    overlap = torch.zeros((batch, cells), device=boxes.device)
    if true_boxes.shape[1] == 0 or not bool(present.any()):
        return Assignment(result, overlap)

    centres, radius = (places + 0.5) * strides[:, None], RADIUS * strides
    near = present[:, :, None].clone()
    for axis in range(2):
        middle, place = true_boxes[:, :, None, axis].float(), centres[:, axis]
        near = near & (place - (middle - radius) > 0) & ((middle + radius) - place > 0)
    candidate = near.any(1)

    # Candidates of each image side by side, padded to the largest number; the order of the cells stays.
    counts = candidate.sum(1)
    width = int(counts.max())
    if width == 0:
        return Assignment(result, overlap)
    cell = candidate.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]
    valid = torch.arange(width, device=boxes.device) < counts[:, None]
    near = near.gather(2, cell[:, None].expand(-1, near.shape[1], -1))

    chosen = boxes.float().gather(1, cell[..., None].expand(-1, -1, 4))
    iou = pairwise_iou(true_boxes.float(), chosen)
    iou = torch.where(valid[:, None] & present[..., None], iou, 0.0)
    cost = _classification_cost(objectness.gather(1, cell), _rows(classes, cell), true_classes)
    cost = cost + 3.0 * -torch.log(iou + 1e-8) + _OUTSIDE * ~near
    cost = torch.where(valid[:, None] & present[..., None], cost, torch.inf)

    # The k(g) cheapest candidates: k(g) is at most ten, so the ten cheapest are found and cut.
    most = min(_MOST_CELLS_OF_A_BOX, width)
    amount = iou.topk(most, dim=2).values.sum(2).int().clamp(min=1)
    cheapest = cost.topk(most, dim=2, largest=False)
    taken_by_rank = (torch.arange(most, device=boxes.device) < amount[..., None]) & cheapest.values.isfinite()
    taken = torch.zeros_like(near).scatter_(2, cheapest.indices, taken_by_rank)

    times = taken.sum(1)
    owner = torch.where(times > 1, cost.argmin(1), taken.to(torch.uint8).argmax(1))
    owner = torch.where(times > 0, owner, -1)
    own_iou = iou.gather(1, owner.clamp(min=0)[:, None])[:, 0] * (owner >= 0)
    # Padding comes last in the order of `cell` and holds background cells, which stay background.
    result.scatter_(1, cell, owner)
    overlap.scatter_(1, cell, own_iou)
    return Assignment(result, overlap)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def _classification_cost(objectness: Tensor, classes: Tensor, true_classes: Tensor) -> Tensor:
    """``(batch, n, candidates)``: binary cross-entropy of all classes against the true one.

    Summed over classes it is the cost of "none of them" plus, for the true class, the difference that being it makes:
    the sum is taken once per cell and not once per pair.
    """
    p = (classes.float().sigmoid() * objectness.float().sigmoid()[..., None]).sqrt()
    # Logarithms end at -100, as those of torch's binary cross-entropy do.
    absent = -torch.log1p(-p).clamp(min=-100)
    index = true_classes[:, None].expand(-1, p.shape[1], -1)
    own = -torch.log(p.gather(2, index)).clamp(min=-100) - absent.gather(2, index)
    return (absent.sum(2)[..., None] + own).transpose(1, 2)
