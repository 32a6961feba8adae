"""Images resized, cropped and mirrored, intrinsics with them; GridMask (official code: ``ResizeCropFlipImage``)."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.cross_modal_detector.sets.frames import Sample


@dataclass(frozen=True)
class ImageChange:
    """One change of a sample's images.

    Attributes:
        resized: height and width after resizing.
        factor: of the intrinsics, which is not exactly the quotient of the sizes where they are rounded (so in the
            official code).
        left: first column of the crop.
        top: first row of the crop; beyond the image is black.
        flip: mirrored left to right.
    """

    resized: tuple[int, int]
    factor: tuple[float, float]
    left: int
    top: int
    flip: bool = False


@dataclass(frozen=True)
class ImageAugmentation:
    """All images of a sample to one size, by one change for all of them.

    Attributes:
        size: height and width of the result.
        factors: smallest and largest factor of the size in training.
        flip: probability of mirroring in training.
    """

    size: tuple[int, int]
    factors: tuple[float, float] | None = None
    flip: float = 0.0

    def draw(self, source: tuple[int, int], draw: np.random.Generator) -> ImageChange:
        """A change for training of images of ``source``: resized, cut to the bottom rows and to random columns."""
        height, width = self.size
        low, high = self.factors or (1.0, 1.0)
        factor = float(draw.uniform(low, high)) * (1.0 if self.factors else self._fitting(source))
        resized = (int(source[0] * factor), int(source[1] * factor))
        left = int(draw.uniform(0, max(0, resized[1] - width)))
        return ImageChange(resized, (factor, factor), left, resized[0] - height, bool(draw.random() < self.flip))

    def fixed(self, source: tuple[int, int]) -> ImageChange:
        """The change for testing: resized to fill the size, the bottom rows and middle columns kept."""
        height, width = self.size
        factor = self._fitting(source)
        resized = (int(source[0] * factor), int(source[1] * factor))
        return ImageChange(resized, (factor, factor), int(max(0, resized[1] - width) / 2), resized[0] - height)

    def _fitting(self, source: tuple[int, int]) -> float:
        return max(self.size[0] / source[0], self.size[1] / source[1])

    def __call__(self, sample: Sample, draw: np.random.Generator | None = None) -> Sample:
        """A changed copy: images float32 of ``size``, intrinsics to them; ``draw`` is ``None`` in testing.

        Raises:
            UserError: the images of a sample are of several sizes.
        """
        sizes = {image.shape[:2] for image in sample.images if image is not None}
        if not sizes:
            return sample
        if len(sizes) > 1:
            raise UserError(
                f"frame {sample.token}: its images have the sizes {sorted(sizes)}; one change for all needs one size"
            )
        source = sizes.pop()
        change = self.fixed(source) if draw is None else self.draw(source, draw)
        return change_images(sample, change, self.size)


def change_images(sample: Sample, change: ImageChange, size: tuple[int, int]) -> Sample:
    """Apply a change to every image of a sample, and to the intrinsics of every camera."""
    images = [None if image is None else change_image(image, change, size) for image in sample.images]
    matrix = change_matrix(change, size)
    return replace(sample, images=images, intrinsics=matrix @ sample.intrinsics)


def change_image(image: NDArray, change: ImageChange, size: tuple[int, int]) -> NDArray[np.float32]:
    """One image ``(height, width, 3)`` as ``size``, float32."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)
    if tuple(pixels.shape[1:]) != change.resized:
        pixels = torch.nn.functional.interpolate(
            pixels[None], size=change.resized, mode="bilinear", align_corners=False, antialias=change.factor[0] < 1
        )[0]
    out = torch.zeros(3, *size)
    top, left = max(change.top, 0), max(change.left, 0)
    part = pixels[:, top : change.top + size[0], left : change.left + size[1]]
    down, across = max(-change.top, 0), max(-change.left, 0)
    out[:, down : down + part.shape[1], across : across + part.shape[2]] = part
    if change.flip:
        out = out.flip(-1)
    return out.permute(1, 2, 0).numpy()


def change_matrix(change: ImageChange, size: tuple[int, int]) -> NDArray[np.float64]:
    """``(3, 3)`` from pixels of the image to those of the changed one: factor, crop, mirror ``u -> width - u``."""
    matrix = np.array(
        [[change.factor[1], 0, -change.left], [0, change.factor[0], -change.top], [0, 0, 1]], dtype=np.float64
    )
    if change.flip:
        matrix = np.array([[-1, 0, size[1]], [0, 1, 0], [0, 0, 1]], dtype=np.float64) @ matrix
    return matrix


def grid_mask(size: tuple[int, int], draw: np.random.Generator) -> Tensor:
    """GridMask with a random period and place, see ``grid_mask_of``."""
    period = int(draw.integers(2, size[0]))
    return grid_mask_of(size, period, (int(draw.integers(period)), int(draw.integers(period))))


def grid_mask_of(size: tuple[int, int], period: int, offset: tuple[int, int]) -> Tensor:
    """GridMask ``(height, width)`` of zeros and ones; pixels are kept where the stripes are.

    Args:
        size: height and width of the images.
        period: of the stripes, in pixels; half of it (rounded) is a stripe.
        offset: of the first stripe down and across, in a mask of one and a half times the size, whose middle is used.
    """
    height, width = size
    tall, wide = int(1.5 * height), int(1.5 * width)
    stripe = min(max(int(period * 0.5 + 0.5), 1), period - 1)

    def striped(length: int, start: int) -> NDArray[np.bool_]:
        place = np.arange(length) - start
        return (place >= 0) & (place % period < stripe) & (place // period < length // period)

    kept = striped(tall, offset[0])[:, None] | striped(wide, offset[1])[None]
    top, left = (tall - height) // 2, (wide - width) // 2
    return torch.from_numpy(kept[top : top + height, left : left + width].astype(np.float32))
