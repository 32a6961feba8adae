"""Feature maps brought to another level's size; every resolution of a source is computed once."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Resize = Literal["area", "max", "strided", "bilinear_aa", "bilinear"]
RESIZES: tuple[Resize, ...] = ("area", "max", "strided", "bilinear_aa", "bilinear")

Size = tuple[int, int]


def size_of(x: Tensor) -> Size:
    """``(height, width)`` of maps ``(batch, channels, height, width)``."""
    return x.shape[-2], x.shape[-1]


def enlarge(x: Tensor, size: Size) -> Tensor:
    """Bilinear, ``align_corners=False``: ``(batch, channels, h, w)`` to ``(batch, channels, *size)``."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def shrink(x: Tensor, size: Size, mode: Resize = "area") -> Tensor:
    """Bring maps to a smaller size.

    Args:
        x: ``(batch, channels, h, w)``.
        size: ``(height, width)``, of any ratio to ``(h, w)``.
        mode: ``area``: mean over the cells that a target cell covers, so that no cell is lost; ``max`` over them, as in
            UNet 3+; ``bilinear_aa``: bilinear with antialiasing; ``bilinear``: of a factor of 8 it reads 4 cells in 64.

    Returns:
        ``(batch, channels, *size)``.
    """
    if mode == "bilinear":
        return enlarge(x, size)
    if mode == "bilinear_aa":
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
    if mode == "max":
        return F.adaptive_max_pool2d(x, size)
    if torch.compiler.is_exporting():  # ONNX has no adaptive pooling to a size that is known only when it runs
        rows, columns = _area_weights(x.shape[-2], size[0], x), _area_weights(x.shape[-1], size[1], x)
        return torch.matmul(torch.matmul(rows, x), columns.transpose(0, 1))
    return F.adaptive_avg_pool2d(x, size)


def divides(size: Size, part: Size) -> bool:
    """Whether one size is a multiple of another; never of sizes that are known only when an exported file runs."""
    known = all(isinstance(side, int) for side in (*size, *part))
    return known and size[0] % part[0] == 0 and size[1] % part[1] == 0


def shrink_in_turn(x: Tensor, sizes: Sequence[Size], mode: Resize = "area") -> list[Tensor]:
    """One source at several smaller sizes, the larger first.

    Where a size divides the one before it, the map is made from the map before it and not from the source: means of
    means and maxima of maxima are the same, and the large source is read once.

    Args:
        x: ``(batch, channels, h, w)``.
        sizes: descending.
        mode: see ``shrink``.
    """
    made: list[Tensor] = []
    exact = x  # a map whose cells are blocks of the source's, from which coarser blocks can be made
    for size in sizes:
        if mode in ("area", "max") and divides(size_of(exact), size):
            kernel = (exact.shape[-2] // size[0], exact.shape[-1] // size[1])
            if mode == "max":
                exact = F.max_pool2d(exact, kernel)
            elif kernel == (2, 2) and not torch.compiler.is_exporting():
                exact = enlarge(exact, size)  # the same four cells' mean; half the time of avg_pool2d on a CPU
            else:
                exact = F.avg_pool2d(exact, kernel)
            made.append(exact)
        else:
            made.append(shrink(x, size, mode))
    return made


def _area_weights(source: int, target: int, like: Tensor) -> Tensor:
    """``(target, source)``: row i averages the cells that ``adaptive_avg_pool2d`` averages for output i."""
    outputs = torch.arange(target, device=like.device)[:, None]
    cells = torch.arange(source, device=like.device)[None, :]
    start = outputs * source // target
    end = ((outputs + 1) * source + target - 1) // target
    inside = ((cells >= start) & (cells < end)).to(like.dtype)
    return inside / (end - start).to(like.dtype)
