"""Differentiable siamese augmentation (DSA): the same random change for a real and a synthetic batch.

Formulas and ranges as in the official code; the randomness is a `torch.Generator`'s, where the official code
seeds the global generator from the clock, so that no run repeats and later draws are correlated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tenfold.errors import UserError

FULL_STRATEGY = "color_crop_cutout_flip_scale_rotate"
"""The strategy of the published tables; without ``flip`` for digits."""

_BRIGHTNESS, _SATURATION, _CONTRAST = 1.0, 2.0, 0.5
_CROP, _CUTOUT, _SCALE, _ROTATE = 0.125, 0.5, 1.2, 15.0


@dataclass(frozen=True)
class Draw:
    """One draw: what `apply_augmentation` does.

    Attributes:
        operation: name, empty for none.
        values: ``(k, m)`` numbers in [0, 1): ``k`` is 1 where all images share them, else one row per image.
    """

    operation: str
    values: Tensor


def operations_of(strategy: str) -> list[str]:
    """The operations in a strategy's name.

    Raises:
        UserError: one of them does not exist.
    """
    names = [name for name in strategy.lower().split("_") if name and name != "none"]
    for name in names:
        if name not in _OPERATIONS:
            raise UserError(f"there is no augmentation {name!r}; there are: {', '.join(_OPERATIONS)}")
    return names


def draw_augmentation(strategy: str, generator: torch.Generator, images: int | None = None) -> Draw:
    """Draw one operation of the strategy uniformly, and its parameters.

    Args:
        strategy: such as `FULL_STRATEGY`; empty for none.
        generator: a CPU generator.
        images: number of images that get parameters of their own; all share one draw (siamese) where ``None``.
    """
    names = operations_of(strategy)
    if not names:
        return Draw("", torch.zeros(1, 0))
    name = names[int(torch.randint(len(names), (1,), generator=generator))]
    return Draw(name, torch.rand(1 if images is None else images, 3, generator=generator))


def apply_augmentation(images: Tensor, draw: Draw) -> Tensor:
    """Apply a draw; differentiable in the images.

    Args:
        images: ``(n, channels, height, width)``.
        draw: of `draw_augmentation`: shared by all images, or with a row for each.
    """
    if not draw.operation:
        return images
    return _OPERATIONS[draw.operation](images, draw.values.to(images.device, images.dtype))


def _column(values: Tensor, position: int) -> Tensor:
    return values[:, position].view(-1, 1, 1, 1)


def _color(images: Tensor, values: Tensor) -> Tensor:
    images = images + (_column(values, 0) - 0.5) * _BRIGHTNESS
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (_column(values, 1) * _SATURATION) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (_column(values, 2) + _CONTRAST) + mean


def _flip(images: Tensor, values: Tensor) -> Tensor:
    return torch.where(_column(values, 0) < 0.5, images.flip(3), images)


def _affine(images: Tensor, theta: Tensor) -> Tensor:
    theta = theta.expand(len(images), 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _scale(images: Tensor, values: Tensor) -> Tensor:
    factors = values[:, :2] * (_SCALE - 1 / _SCALE) + 1 / _SCALE
    theta = torch.zeros(len(values), 2, 3, dtype=images.dtype, device=images.device)
    theta[:, 0, 0], theta[:, 1, 1] = factors[:, 0], factors[:, 1]
    return _affine(images, theta)


def _rotate(images: Tensor, values: Tensor) -> Tensor:
    angle = (values[:, 0] - 0.5) * 2 * _ROTATE * math.pi / 180
    zero = torch.zeros_like(angle)
    rows = [torch.stack([angle.cos(), -angle.sin(), zero], 1), torch.stack([angle.sin(), angle.cos(), zero], 1)]
    return _affine(images, torch.stack(rows, 1))


def _crop(images: Tensor, values: Tensor) -> Tensor:
    """Shift by whole pixels; zeros (the mean colour) come in."""
    height, width = images.shape[2:]
    shifts = []
    for position, side in ((0, height), (1, width)):
        reach = int(side * _CROP + 0.5)
        shifts.append((values[:, position] * (2 * reach + 1)).floor().long() - reach)
    if len(values) == 1:
        down, right = int(shifts[0]), int(shifts[1])
        padded = functional.pad(images, (abs(right), abs(right), abs(down), abs(down)))
        top, left = abs(down) + down, abs(right) + right
        return padded[:, :, top : top + height, left : left + width]
    rows = torch.arange(height, device=images.device) + shifts[0].view(-1, 1)
    columns = torch.arange(width, device=images.device) + shifts[1].view(-1, 1)
    inside = ((rows >= 0) & (rows < height)).unsqueeze(2) & ((columns >= 0) & (columns < width)).unsqueeze(1)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    pick = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    moved = images.permute(0, 2, 3, 1)[pick, rows.unsqueeze(2), columns.unsqueeze(1)]
    return moved.permute(0, 3, 1, 2) * inside.unsqueeze(1)


def _cutout(images: Tensor, values: Tensor) -> Tensor:
    """A square of half the side becomes zero (the mean colour)."""
    cut = None
    for position, side in ((0, images.shape[2]), (1, images.shape[3])):
        size = int(side * _CUTOUT + 0.5)
        centre = (values[:, position] * (side + 1 - size % 2)).floor()
        place = torch.arange(side, device=images.device)
        inside = (place >= centre.view(-1, 1) - size // 2) & (place < centre.view(-1, 1) - size // 2 + size)
        cut = inside.unsqueeze(2) if cut is None else cut & inside.unsqueeze(1)
    assert cut is not None
    return images * ~cut.unsqueeze(1)


_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
