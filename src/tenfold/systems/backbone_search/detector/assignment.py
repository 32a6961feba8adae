"""SimOTA, YOLOX's label assignment (arXiv 2107.08430, section 2.1; the public code's present form), over a whole batch.


    candidates: cells whose centre lies strictly within 1.5 strides of a true box's centre, in both directions
    cost(g, a) = sum_k BCE(sqrt(class * objectness), onehot) - 3 log(IoU + 1e-8) + 1e6 where a is no candidate of g
    k(g)       = whole part of the sum of g's ten largest IoUs, at least 1; g takes its k(g) cheapest candidates
    a cell taken by several goes to the cheapest of ALL true boxes

Images of a batch have different numbers of boxes, and of candidates: what is computed of candidates is computed for
all of the batch in one row, and padded only where boxes choose among them, so that no loop runs over images.
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
    ours, theirs = a[..., :, None, :].unbind(-1), b[..., None, :, :].unbind(-1)
    # Side by side and in place: an operation over a last axis of two is many times slower.
    shared = []
    for middle, side in ((0, 2), (1, 3)):
        high = torch.minimum(ours[middle] + ours[side] / 2, theirs[middle] + theirs[side] / 2)
        low = torch.maximum(ours[middle] - ours[side] / 2, theirs[middle] - theirs[side] / 2)
        shared.append(high.sub_(low).clamp_(min=0))
    intersection = shared[0].mul_(shared[1])
    union = (ours[2] * ours[3] + theirs[2] * theirs[3]).sub_(intersection)
    return intersection.div_(union)


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
    n = true_boxes.shape[1]
    result = torch.full((batch, cells), -1, dtype=torch.int64, device=boxes.device)
    overlap = torch.zeros((batch, cells), device=boxes.device)
    if n == 0 or not bool(present.any()):
        return Assignment(result, overlap)
    candidate = _candidates(true_boxes.float(), present, places, strides)
    image, cell = candidate.nonzero(as_tuple=True)
    if len(image) == 0:
        return Assignment(result, overlap)

    # All candidates of the batch in a row, each against the true boxes of its image: (candidates, n).
    truth, there = true_boxes.float()[image], present[image]
    middle, radius = ((places + 0.5) * strides[:, None])[cell], (RADIUS * strides)[cell, None]
    near = there
    for axis in range(2):
        near = near & _near(truth[:, :, axis], middle[:, axis, None], radius)
    iou = pairwise_iou(boxes[image, cell][:, None].float(), truth)[:, 0]
    cost = _classification_cost(objectness[image, cell], classes[image, cell], true_classes[image])
    cost += (iou + 1e-8).log_().neg_().mul_(3.0)
    cost += _OUTSIDE * ~near
    iou.masked_fill_(~there, 0.0)
    cost.masked_fill_(~there, torch.inf)

    # For choices by true box: the candidates of each image side by side, padded to the largest number.
    counts = candidate.sum(1)
    width = int(counts.max())
    place = torch.arange(len(image), device=boxes.device) - (counts.cumsum(0) - counts)[image]
    by_box = [
        values.new_full((batch, width, n), fill).index_put_((image, place), values).transpose(1, 2).contiguous()
        for values, fill in ((iou, 0.0), (cost, torch.inf))
    ]
    # The k(g) cheapest candidates: k(g) is at most ten, so the ten cheapest are found and cut.
    most = min(_MOST_CELLS_OF_A_BOX, width)
    amount = by_box[0].topk(most, dim=2).values.sum(2).int().clamp(min=1)
    cheapest = by_box[1].topk(most, dim=2, largest=False)
    taken = (torch.arange(most, device=boxes.device) < amount[..., None]) & cheapest.values.isfinite()
    row, box, _ = taken.nonzero(as_tuple=True)
    flat = row * width + cheapest.indices[taken]

    times = torch.zeros(batch * width, dtype=torch.int64, device=boxes.device).index_add_(0, flat, torch.ones_like(box))
    only = torch.zeros_like(times).index_copy_(0, flat, box)  # whose it is where one takes it
    here = image * width + place
    owner = torch.where(times[here] > 1, cost.argmin(1), only[here])
    taken_by_any = times[here] > 0
    result[image, cell] = torch.where(taken_by_any, owner, -1)
    overlap[image, cell] = iou.gather(1, owner[:, None])[:, 0] * taken_by_any
    return Assignment(result, overlap)


def _near(truth: Tensor, place: Tensor, radius: Tensor) -> Tensor:
    """Whether a cell's centre is strictly within the radius, by the differences that the public code forms."""
    return (place - (truth - radius) > 0) & ((truth + radius) - place > 0)


def _candidates(true_boxes: Tensor, present: Tensor, places: Tensor, strides: Tensor) -> Tensor:
    """``(batch, cells)`` whether a cell is near any true box: of each level at most three by three are, next to it.

    Args:
        true_boxes: ``(batch, n, 4)``.
        present: ``(batch, n)``.
        places: ``(cells, 2)`` level by level, row by row.
        strides: ``(cells,)``.
    """
    steps, sizes = strides.unique_consecutive(return_counts=True)
    ends = sizes.cumsum(0)
    shape = places[ends - 1].long() + 1  # (levels, 2): columns and rows
    around = torch.arange(-1, 2, device=strides.device)
    numbers, inside = [], []
    for axis in range(2):
        truth = true_boxes[:, :, axis, None, None]  # (batch, n, levels, 3)
        number = (truth / steps[:, None]).floor().long() + around
        within = (number >= 0) & (number < shape[:, axis, None])
        centre = (number + 0.5) * steps[:, None]
        numbers.append(number)
        inside.append(within & _near(truth, centre, (RADIUS * steps)[:, None]))
    cell = (ends - sizes)[:, None, None] + numbers[1][..., :, None] * shape[:, 0, None, None] + numbers[0][..., None, :]
    near = inside[1][..., :, None] & inside[0][..., None, :] & present[:, :, None, None, None]
    image = torch.arange(len(present), device=strides.device)[:, None, None, None, None].expand(cell.shape)
    found = torch.zeros((len(present), len(strides)), dtype=torch.bool, device=strides.device)
    found[image[near], cell[near]] = True
    return found


def _classification_cost(objectness: Tensor, classes: Tensor, true_classes: Tensor) -> Tensor:
    """``(candidates, n)``: binary cross-entropy of all classes against the true one.

    Summed over classes it is the cost of "none of them" plus, for the true class, the difference that being it makes:
    the sum is taken once per cell and not once per pair.

    Args:
        objectness: ``(candidates,)`` logits.
        classes: ``(candidates, num_classes)`` logits.
        true_classes: ``(candidates, n)`` of the true boxes of each one's image.
    """
    p = classes.float().sigmoid().mul_(objectness.float().sigmoid()[:, None]).sqrt_()
    own = p.gather(1, true_classes)
    # Logarithms end at -100, as those of torch's binary cross-entropy do.
    absent = p.neg_().log1p_().clamp_(min=-100).neg_()
    own = own.log_().clamp_(min=-100).neg_().sub_(absent.gather(1, true_classes))
    return own.add_(absent.sum(1)[:, None])
