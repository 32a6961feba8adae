"""From probabilities to detections: score rule, class-wise suppression, back to the photo's own pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

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
        output: ``(batch, cells, 5 + classes)`` of :meth:`YOLOXLite.detect`.
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
        order = batched_nms(boxes, score, kind, overlap)[:most]
        found.append(Detections(boxes[order], score[order], kind[order]))
    return found


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
