"""What YOLOX does to training images, on whole uint8 batches: mosaic with its affine, colour, mirror, other sizes."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.systems.backbone_search.data.letterbox import GREY


@dataclass(frozen=True)
class AugmentOptions:
    """Strength of the augmentations; the defaults are YOLOX-Nano's.

    Attributes:
        mosaic: probability that an image becomes a mosaic of four.
        rotation: of a mosaic, in degrees either way.
        translation: of a mosaic, as a share of its sides.
        scale: of a mosaic, drawn between the two.
        shear: of a mosaic, in degrees either way.
        hsv: largest change of hue (of 180), saturation and value (of 256); each is on or off by a coin.
        flip: probability of mirroring.
        sizes: smallest and largest multiple of 32 that the longer side is resized to; none where equal to 0.
        every: steps between two sizes.
    """

    mosaic: float = 0.5
    rotation: float = 10.0
    translation: float = 0.1
    scale: tuple[float, float] = (0.5, 1.5)
    shear: float = 2.0
    hsv: tuple[int, int, int] = (5, 30, 30)
    flip: float = 0.5
    sizes: tuple[int, int] = (10, 20)
    every: int = 10


FLIPS = AugmentOptions(mosaic=0, hsv=(0, 0, 0), sizes=(0, 0))
"""Mirroring only: for small data and short trainings."""


def uniform(generator: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform numbers of a shape."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def change_colours(images: Tensor, gains: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Shift hue, saturation and value of each image.

    Args:
        images: ``(batch, 3, height, width)`` BGR, 0 to 255, any type.
        gains: largest shifts; hue counts to 180, the others to 255.
        generator: draws shifts and coins.

    Returns:
        Same shape, float32.
    """
    batch = len(images)
    shifts = uniform(generator, batch, 3, low=-1, high=1) * torch.tensor(gains, dtype=torch.float32)
    shifts = (shifts * torch.randint(0, 2, (batch, 3), generator=generator)).trunc()[..., None, None]
    blue, green, red = images.float().unbind(1)
    value, _ = images.float().max(1)
    spread = value - images.float().amin(1)
    safe = spread.clamp(min=1e-6)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = torch.where(spread > 0, hue * 30, 0.0)
    saturation = torch.where(value > 0, 255 * spread / value.clamp(min=1e-6), 0.0)
    hue = torch.remainder(hue + shifts[:, 0], 180) / 30
    saturation = (saturation + shifts[:, 1]).clamp(0, 255) / 255
    value = (value + shifts[:, 2]).clamp(0, 255)
    # HSV to RGB without branches: channel n is v - v s max(0, min(k, 4 - k, 1)) with k = (n + h) mod 6
    channels = []
    for n in (1, 3, 5):  # blue, green, red
        k = torch.remainder(n + hue, 6)
        channels.append(
            value - value * saturation * torch.minimum(torch.minimum(k, 4 - k), torch.ones_like(k)).clamp(min=0)
        )
    return torch.stack(channels, 1)


def affine_matrices(count: int, height: int, width: int, options: AugmentOptions, generator: torch.Generator) -> Tensor:
    """Random affine maps from mosaic to output, as YOLOX draws them.

    Args:
        count: how many.
        height: of the output.
        width: of the output.
        options: ranges.
        generator: draws.

    Returns:
        ``(count, 2, 3)``: output = matrix @ (x, y, 1).
    """
    angle = uniform(generator, count, low=-1, high=1) * math.radians(options.rotation)
    scale = uniform(generator, count, low=options.scale[0], high=options.scale[1])
    shear = torch.tan(uniform(generator, count, 2, low=-1, high=1) * math.radians(options.shear))
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    first, second = torch.stack([cosine, sine], 1), torch.stack([-sine, cosine], 1)
    shift = uniform(generator, count, 2, low=-1, high=1) * options.translation * torch.tensor([width, height])
    linear = torch.stack([first + shear[:, 1:] * second, second + shear[:, :1] * first], 1)
    return torch.cat([linear, shift[..., None]], 2)


def warp(images: Tensor, matrices: Tensor, height: int, width: int) -> Tensor:
    """Images under affine maps, grey outside.

    Args:
        images: ``(batch, 3, h, w)`` uint8.
        matrices: ``(batch, 2, 3)`` from image to output, pixels at whole numbers.
        height: of the output.
        width: of the output.

    Returns:
        ``(batch, 3, height, width)`` float32.
    """
    rows, columns = images.shape[-2:]
    inverse = torch.linalg.inv(matrices[:, :, :2])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([x, y], -1).reshape(-1, 2).float()
    source = (places - matrices[:, None, :, 2]) @ inverse.transpose(1, 2)
    grid = source / torch.tensor([columns - 1, rows - 1]) * 2 - 1
    shifted = images.float() - GREY  # what lies outside is 0, which becomes grey
    return F.grid_sample(shifted, grid.reshape(len(images), height, width, 2), align_corners=True) + GREY


def warp_boxes(corners: Tensor, matrices: Tensor, height: int, width: int) -> Tensor:
    """Boxes around the four moved corners, cut at the output's edges: ``(batch, n, 4)`` and ``(batch, 2, 3)``."""
    x1, y1, x2, y2 = corners.unbind(-1)
    pairs = [(x1, y1), (x2, y2), (x1, y2), (x2, y1)]
    points = torch.stack([torch.stack(pair, -1) for pair in pairs], 2)
    moved = points @ matrices[:, None, :, :2].transpose(2, 3) + matrices[:, None, None, :, 2]
    limit = torch.tensor([width, height], dtype=torch.float32)
    low, high = moved.amin(2).clamp(min=0), moved.amax(2).clamp(min=0)
    return torch.cat([torch.minimum(low, limit), torch.minimum(high, limit)], -1)


def mosaic(
    images: Tensor, inner: Tensor, corners: Tensor, present: Tensor, centres: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Four images around a centre on a canvas of twice the size, top left, top right, bottom left, bottom right.

    Args:
        images: ``(batch, 4, 3, height, width)`` uint8, letterboxed.
        inner: ``(batch, 4, 2)`` height and width of what is not filling.
        corners: ``(batch, 4, n, 4)`` boxes in pixels of the images.
        present: ``(batch, 4, n)``.
        centres: ``(batch, 2)`` whole x and y on the canvas.

    Returns:
        ``(batch, 3, 2 height, 2 width)`` uint8, ``(batch, 4 n, 4)`` boxes on the canvas, ``(batch, 4 n)``.
    """
    batch, _, _, height, width = images.shape
    canvas = torch.full((batch, 3, 2 * height, 2 * width), GREY, dtype=torch.uint8)
    right, below = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    offset_x = centres[:, :1] - torch.where(right == 0, inner[..., 1], 0)
    offset_y = centres[:, 1:] - torch.where(below == 0, inner[..., 0], 0)
    # Rectangles of sixty-four sizes are copied one by one: there is no one tensor operation for ragged copies.
    for row in range(batch):
        for part in range(4):
            left, top = int(offset_x[row, part]), int(offset_y[row, part])
            h, w = int(inner[row, part, 0]), int(inner[row, part, 1])
            x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + w, 2 * width), min(top + h, 2 * height)
            if x2 > x1 and y2 > y1:
                canvas[row, :, y1:y2, x1:x2] = images[row, part, :, y1 - top : y2 - top, x1 - left : x2 - left]
    shift = torch.stack([offset_x, offset_y, offset_x, offset_y], -1)[:, :, None]
    limit = torch.tensor([2 * width, 2 * height, 2 * width, 2 * height], dtype=torch.float32)
    moved = torch.minimum((corners + shift).clamp(min=0), limit)
    return canvas, moved.flatten(1, 2), present.flatten(1, 2)
