"""Segmentation measured at the images' original size: sliding windows, mean intersection over union."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.relation_distillation.data.ade20k import IGNORED, SegmentationFiles, resized_size
from tenfold.systems.relation_distillation.vit.segmentation_network import SegmentationNetwork


@torch.no_grad()
def evaluate_segmentation(
    model: SegmentationNetwork,
    files: SegmentationFiles,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    stride: int | None = None,
) -> dict[str, float]:
    """MIoU and pixel accuracy in percent, at the images' original size.

    Args:
        model: the network.
        files: test pairs.
        mean: per channel.
        std: per channel.
        stride: distance of the sliding windows; two thirds of the crop (341 of 512) where ``None``.
    """
    from torchvision.transforms.v2 import functional

    model.eval()
    device = next(model.parameters()).device
    stride = stride or max(1, 2 * model.crop // 3)
    score = SegmentationScore(model.classes, IGNORED)
    for number in range(len(files)):
        (image, labels), _ = files[number]
        size = resized_size(labels.shape[0], labels.shape[1], 4 * model.crop, model.crop)
        resized = functional.resize(functional.pil_to_tensor(image), list(size), antialias=True)
        pixels = functional.normalize(resized.float() / 255, list(mean), list(std)).to(device)
        logits = sliding_logits(model, pixels, model.crop, stride, model.classes)
        whole = F.interpolate(logits[None], labels.shape, mode="bilinear", align_corners=False)[0]
        score.update(whole.argmax(0).cpu(), torch.from_numpy(labels))
    return score.compute()


@torch.no_grad()
def sliding_logits(model: Any, image: Tensor, crop: int, stride: int, classes: int) -> Tensor:
    """Logits ``(classes, height, width)`` of an image of any size, averaged over windows that cover it.

    Args:
        model: maps ``(1, 3, crop, crop)`` to ``(1, classes, crop, crop)``.
        image: ``(3, height, width)``, normalized; smaller ones are padded with zeros.
        crop: side of a window.
        stride: distance of windows; the last ones end at the border.
        classes: number of classes.
    """
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, max(crop - width, 0), 0, max(crop - height, 0)))
    total = padded.new_zeros((classes, *padded.shape[-2:]))
    seen = padded.new_zeros(padded.shape[-2:])

    def starts(side: int) -> list[int]:
        return [*range(0, side - crop, stride), side - crop]

    for top in starts(padded.shape[-2]):
        for left in starts(padded.shape[-1]):
            window = (slice(top, top + crop), slice(left, left + crop))
            total[:, window[0], window[1]] += model(padded[None, :, window[0], window[1]])[0]
            seen[window] += 1
    return (total / seen)[:, :height, :width]


class SegmentationScore:
    """Mean intersection over union, intersections and unions summed over the whole set before they are divided.

    Args:
        classes: number of classes.
        ignore: label of pixels that count in no intersection and no union.
    """

    def __init__(self, classes: int, ignore: int = 255) -> None:
        self.classes, self.ignore = classes, ignore
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add pixels: class indices of equal shapes, on any device."""
        if predictions.shape != labels.shape:
            raise UserError(f"predictions {tuple(predictions.shape)} and labels {tuple(labels.shape)} differ in shape")
        kept = labels != self.ignore
        index = labels[kept].long() * self.classes + predictions[kept].long()
        self.counts += torch.bincount(index.flatten(), minlength=self.classes**2).view_as(self.counts).cpu()

    def compute(self) -> dict[str, float]:
        """``miou`` over the classes present in labels or predictions, ``pixel_accuracy``; in percent."""
        hits = self.counts.diagonal().double()
        unions = (self.counts.sum(0) + self.counts.sum(1) - self.counts.diagonal()).double()
        present = unions > 0
        if not bool(present.any()):
            raise UserError("there are no labelled pixels to measure")
        return {
            "miou": 100 * (hits[present] / unions[present]).mean().item(),
            "pixel_accuracy": 100 * (hits.sum() / self.counts.sum().clamp(min=1)).item(),
        }
