"""YOLOX's losses over the cells that SimOTA assigned."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.systems.backbone_search.detector.assignment import Assignment, assign
from tenfold.systems.backbone_search.detector.head import decode, make_grid

BOX_WEIGHT = 5.0


@dataclass(frozen=True)
class Truth:
    """True boxes of a batch, padded.

    Attributes:
        boxes: ``(batch, n, 4)`` centre x, centre y, width, height in pixels of the batch.
        classes: ``(batch, n)`` int64.
        present: ``(batch, n)`` bool, false for padding.
    """

    boxes: Tensor
    classes: Tensor
    present: Tensor

    def to(self, device: torch.device | str) -> "Truth":
        """The same on another device."""
        return Truth(self.boxes.to(device), self.classes.to(device), self.present.to(device))


@dataclass(frozen=True)
class DetectionLosses:
    """Parts of the loss, each a scalar, already weighted and divided by the number of assigned cells.

    Attributes:
        total: what is minimised.
        box: ``5 * (1 - IoU^2)``.
        objectness: over all cells.
        classes: over assigned cells, against the overlap of the true class.
        offsets: L1 on the raw box, of the last epochs only; 0 otherwise.
        positives: assigned cells.
    """

    total: Tensor
    box: Tensor
    objectness: Tensor
    classes: Tensor
    offsets: Tensor
    positives: Tensor


class DetectionLoss(nn.Module):
    """``(5 sum(1 - IoU^2) + sum BCE(objectness) + sum BCE(classes) [+ sum |raw - raw*|]) / max(positives, 1)``.

    Objectness is summed over all cells, the rest over those that SimOTA assigned; the number of positives is that of
    this process's batch. Overlaps, exponentials and costs are computed in float32 whatever the network's precision.
    """

    def forward(self, raw: Tensor, image_size: tuple[int, int], truth: Truth, offsets: bool = False) -> DetectionLosses:
        """Losses of a batch.

        Args:
            raw: ``(batch, cells, 5 + classes)`` outputs of the head.
            image_size: height and width of the images.
            truth: see ``Truth``.
            offsets: add the L1 term, as in the epochs without strong augmentation.
        """
        with torch.autocast(raw.device.type, enabled=False):
            return self._losses(raw.float(), image_size, truth, offsets)

    def _losses(self, raw: Tensor, image_size: tuple[int, int], truth: Truth, offsets: bool) -> DetectionLosses:
        places, strides = make_grid(*image_size, raw.device)
        boxes = decode(raw, places, strides, clamp=True)
        found: Assignment = assign(
            boxes, raw[..., 4], raw[..., 5:], places, strides, truth.boxes, truth.classes, truth.present
        )
        positive = found.box >= 0
        image, cell = positive.nonzero(as_tuple=True)
        box = found.box[image, cell]
        divisor = max(len(image), 1)
        target, target_class = truth.boxes[image, box].float(), truth.classes[image, box]
        box_loss = BOX_WEIGHT * (1 - _iou(boxes[image, cell], target) ** 2).sum() / divisor
        objectness = F.binary_cross_entropy_with_logits(raw[..., 4], positive.float(), reduction="sum") / divisor
        wanted = F.one_hot(target_class, raw.shape[-1] - 5) * found.iou[image, cell][:, None]
        classes = F.binary_cross_entropy_with_logits(raw[image, cell, 5:], wanted, reduction="sum") / divisor
        l1 = raw.new_zeros(())
        if offsets:
            t = strides[cell][:, None]
            aim = torch.cat([target[:, :2] / t - places[cell], torch.log(target[:, 2:] / t + 1e-8)], 1)
            l1 = (raw[image, cell, :4] - aim).abs().sum() / divisor
        return DetectionLosses(box_loss + objectness + classes + l1, box_loss, objectness, classes, l1, positive.sum())


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """``(n,)`` overlaps of boxes pair by pair, with gradient."""
    low = torch.maximum(a[:, :2] - a[:, 2:] / 2, b[:, :2] - b[:, 2:] / 2)
    high = torch.minimum(a[:, :2] + a[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2)
    intersection = (high - low).prod(1) * (low < high).all(1)
    return intersection / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - intersection + 1e-16)
