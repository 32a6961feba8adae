"""From probabilities to detections: score rule, class-wise suppression, back to the photo's own pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tenfold.systems.backbone_search.detector.assignment import pairwise_iou

SCORE_RULE = "objectness * largest class probability"


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    Attributes:
        boxes: ``(n, 4)`` x1, y1, x2, y2 in pixels.
        scores: ``(n,)`` in [0, 1].
        classes: ``(n,)`` int64.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def postprocess(
    output: Tensor, *, confidence: float = 0.01, overlap: float = 0.65, most: int = 100
) -> list[Detections]:
    """Detections of a batch in pixels of the network's input.

    Args:
        output: ``(batch, cells, 5 + classes)`` of ``YOLOXLite.detect``.
        confidence: least score that is kept.
        overlap: of two boxes of one class with more overlap the worse goes.
        most: detections an image at most, the best by score.
    """
    corners = torch.cat([output[..., :2] - output[..., 2:4] / 2, output[..., :2] + output[..., 2:4] / 2], -1)
    best, classes = output[..., 5:].max(-1)
    scores = output[..., 4] * best
    found = []
    for image in range(len(output)):
        keep = scores[image] >= confidence
        boxes, score, kind = corners[image][keep], scores[image][keep], classes[image][keep]
        order = suppress(boxes, score, kind, overlap)[:most]
        found.append(Detections(boxes[order], score[order], kind[order]))
    return found


def suppress(boxes: Tensor, scores: Tensor, classes: Tensor, overlap: float) -> Tensor:
    """Greedy suppression within each class: of two boxes that overlap more, the worse goes.

    The same as torchvision's ``batched_nms``, whose import would load torch's compiler into every prediction.

    Args:
        boxes: ``(n, 4)`` corners.
        scores: ``(n,)``.
        classes: ``(n,)``.
        overlap: largest intersection over union that both survive.

    Returns:
        ``(kept,)`` numbers of the boxes that stay, best first.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, classes = boxes[order], classes[order]
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    middle = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, sides], 1)
    rivals = (pairwise_iou(middle, middle) > overlap) & (classes[:, None] == classes)
    clash = rivals.triu(1).cpu().numpy()
    gone = np.zeros(len(clash), dtype=bool)
    for row in np.flatnonzero(clash.any(1)):  # a box that is gone suppresses nothing: one after the other
        if not gone[row]:
            gone |= clash[row]
    return order[torch.from_numpy(~gone).to(order.device)]


def to_photo(found: Detections, ratio: float, size: Sequence[int]) -> Detections:
    """Detections in the photo's own pixels: the inverse of the letterbox, cut at the photo's edges.

    Args:
        found: in pixels of the network's input.
        ratio: pixels of the input per pixel of the photo.
        size: height and width of the photo.
    """
    height, width = size
    limit = found.boxes.new_tensor([width, height, width, height])
    boxes = torch.minimum((found.boxes / ratio).clamp(min=0), limit)
    return Detections(boxes, found.scores, found.classes)
