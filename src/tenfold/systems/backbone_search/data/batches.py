"""Training batches of images and boxes, which resume in mid-epoch and are the same for any number of processes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.data.batches import ResumableBatches
from tenfold.seeds import derived_seed
from tenfold.systems.backbone_search.data.augment import (
    FLIPS,
    AugmentOptions,
    affine_matrices,
    change_colours,
    mosaic,
    uniform,
    warp,
    warp_boxes,
)
from tenfold.systems.backbone_search.data.letterbox import LetterboxedImages
from tenfold.systems.backbone_search.detector.loss import Truth

MOST_BOXES = 120
"""Of a training image, as in YOLOX; more are left out."""

_CHANGES, _SIZES = 1, 2  # what a derived seed is for


@dataclass(frozen=True)
class DetectionBatch:
    """A training batch.

    Attributes:
        images: ``(batch, 3, height, width)`` float32 BGR, 0 to 255.
        truth: their boxes.
        plain: whether this is one of the last epochs, without mosaic, whose loss has the L1 term.
    """

    images: Tensor
    truth: Truth
    plain: bool

    def to(self, device: torch.device | str) -> "DetectionBatch":
        """The same on another device."""
        return DetectionBatch(self.images.to(device), self.truth.to(device), self.plain)


class DetectionBatches(ResumableBatches):
    """Shuffled, augmented batches.

    Args:
        images: letterboxed.
        batch_size: images of a step, over all processes together.
        seed: of order and augmentation.
        augment: see ``AugmentOptions``.
        epochs: of the whole training; with ``plain_epochs`` it tells when mosaics end.
        plain_epochs: last epochs without mosaic and with the L1 term.
        size: height and width of the batches where not those of the images.
    """

    def __init__(
        self,
        images: LetterboxedImages,
        batch_size: int,
        seed: int,
        augment: AugmentOptions = FLIPS,
        epochs: int = 1,
        plain_epochs: int = 0,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(len(images), batch_size, seed)
        self.images, self.augment = images, augment
        self.first_plain = epochs - plain_epochs
        self.plain_epochs = plain_epochs
        self.size = size or (images.height, images.width)
        self._corners, self._classes, self._present = images.boxes(MOST_BOXES)

    def __iter__(self) -> Iterator[DetectionBatch]:
        for rows in self._rows():
            plain = self.plain_epochs > 0 and self.epoch >= self.first_plain
            made = self._make(rows, plain)
            share = self._share()
            self._advance()
            truth = Truth(made.truth.boxes[share], made.truth.classes[share], made.truth.present[share])
            yield DetectionBatch(made.images[share], truth, plain)

    def _make(self, rows: Tensor, plain: bool) -> DetectionBatch:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, _CHANGES, self.epoch, self.given))
        options = self.augment
        images = self.images[rows]
        pixels: Tensor = images
        corners, classes, present = self._corners[rows], self._classes[rows], self._present[rows]
        if options.mosaic > 0 and not plain:
            pixels, corners, classes, present = self._mosaics(rows, images, corners, classes, present, generator)
        if any(options.hsv):
            pixels = change_colours(pixels, options.hsv, generator)
        pixels = pixels.float()
        flipped = uniform(generator, len(rows)) < options.flip
        pixels = torch.where(flipped[:, None, None, None], pixels.flip(-1), pixels)
        x1, y1, x2, y2 = corners.unbind(-1)
        mirrored = torch.stack([self.images.width - x2, y1, self.images.width - x1, y2], -1)
        corners = torch.where(flipped[:, None, None], mirrored, corners)
        height, width = self._size_of_step()
        if (height, width) != (self.images.height, self.images.width):
            pixels = F.interpolate(pixels, (height, width), mode="bilinear")
            corners = corners * torch.tensor([width / self.images.width, height / self.images.height] * 2)
        sides = corners[..., 2:] - corners[..., :2]
        present = present & (sides.amin(-1) > 1)
        boxes = torch.cat([(corners[..., :2] + corners[..., 2:]) / 2, sides], -1)
        boxes, classes, present = _compacted(boxes, classes, present)
        return DetectionBatch(pixels, Truth(boxes, classes, present), plain)

    def _mosaics(
        self,
        rows: Tensor,
        images: Tensor,
        corners: Tensor,
        classes: Tensor,
        present: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        chosen = (uniform(generator, len(rows)) < self.augment.mosaic).nonzero()[:, 0]
        if len(chosen) == 0:
            return images, corners, classes, present
        height, width = self.images.height, self.images.width
        others = torch.randint(self.samples, (len(chosen), 3), generator=generator)
        four = torch.cat([rows[chosen, None], others], 1)
        share = uniform(generator, len(chosen), 2, low=0.5, high=1.5)
        centres = (share * torch.tensor([width, height])).long()
        stacked = self.images[four.flatten()].reshape(len(chosen), 4, 3, height, width)
        canvas, moved, there = mosaic(
            stacked, self.images.inner[four], self._corners[four], self._present[four], centres
        )
        matrices = affine_matrices(len(chosen), height, width, self.augment, generator)
        pixels = images.float()
        pixels[chosen] = warp(canvas, matrices, height, width)
        moved = warp_boxes(moved, matrices, height, width)
        kinds = self._classes[four].flatten(1)
        extra = moved.shape[1] - corners.shape[1]
        corners, classes, present = (
            F.pad(corners, (0, 0, 0, extra)),
            F.pad(classes, (0, extra)),
            F.pad(present, (0, extra)),
        )
        corners[chosen], classes[chosen], present[chosen] = moved, kinds, there
        return pixels, corners, classes, present

    def _size_of_step(self) -> tuple[int, int]:
        low, high = self.augment.sizes
        height, width = self.size
        if high == 0:
            return height, width
        step = (self.epoch * len(self) + self.given) // self.augment.every
        generator = torch.Generator().manual_seed(derived_seed(self.seed, _SIZES, step))
        longer = 32 * int(torch.randint(low, high + 1, (1,), generator=generator))
        scale = longer / max(height, width)
        return max(32, 32 * round(height * scale / 32)), max(32, 32 * round(width * scale / 32))


def _compacted(boxes: Tensor, classes: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes that are there first, at most ``MOST_BOXES``, without columns that no image uses."""
    order = present.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    order = order[:, : min(MOST_BOXES, int(present.sum(1).max()) if present.numel() else 0)]
    return boxes.gather(1, order[..., None].expand(-1, -1, 4)), classes.gather(1, order), present.gather(1, order)
