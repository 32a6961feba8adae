"""Triggers, and how they get into data: stamped in pixel space, before any normalization.

A trigger's pattern is in pixel units, where [0, 1] is what a camera or an 8-bit file can hold. The published attack
does not keep to that range; a trigger here may leave it, too, and says by how much (`Trigger.excess`).
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from tenfold.errors import UserError

pass

Mode = Literal["patch", "blend", "additive"]


@dataclass(frozen=True)
class Trigger:
    """What an attacker adds to an image.

    Attributes:
        mask: ``(height, width)`` bool, the pixels that it touches.
        pattern: ``(channels, height, width)`` float32 in pixel units; for ``additive`` a difference.
        mode: ``patch``: ``x(1-m) + m p``; ``blend``: ``x(1-am) + am p``; ``additive``: ``x + am p``.
        alpha: strength ``a`` of ``blend`` and ``additive``.

    Raises:
        UserError: shapes do not fit, the mask is empty, values are not finite.
    """

    mask: Tensor
    pattern: Tensor
    mode: Mode = "patch"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in ("patch", "blend", "additive"):
            raise UserError(f"there is no trigger mode {self.mode!r}; there are: patch, blend, additive")
        if self.mask.dtype != torch.bool or self.pattern.ndim != 3 or self.mask.shape != self.pattern.shape[1:]:
            raise UserError(
                "a trigger needs a bool mask (height, width) and a pattern (channels, height, width); "
                f"got {tuple(self.mask.shape)} {self.mask.dtype} and {tuple(self.pattern.shape)}"
            )
        if not bool(self.mask.any()):
            raise UserError("the trigger's mask is empty")
        if not bool(self.pattern.isfinite().all()):
            raise UserError("the trigger's pattern holds NaN or infinite values")
        if not 0 < self.alpha <= 1:
            raise UserError(f"a trigger's alpha must lie in (0, 1]; got {self.alpha}")

    def stamp(self, pixels: Tensor) -> Tensor:
        """Images with the trigger, not clamped.

        Args:
            pixels: ``(n, channels, height, width)`` uint8, or floating point in pixel units.

        Returns:
            Floating point in pixel units; new memory.
        """
        x = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        if tuple(x.shape[1:]) != tuple(self.pattern.shape):
            raise UserError(
                f"the trigger is made for images {tuple(self.pattern.shape)}; these are {tuple(x.shape[1:])}"
            )
        pattern, mask = self.pattern.to(x), self.mask.to(x.device)
        if self.mode == "patch":
            return torch.where(mask, pattern, x)
        change = (pattern if self.mode == "additive" else pattern - x) * self.alpha
        return torch.where(mask, x + change, x)

    def stamp_valid(self, pixels: Tensor) -> Tensor:
        """Images with the trigger as an 8-bit file holds them: clamped to [0, 1], rounded to 1/255, as uint8."""
        return to_bytes(self.stamp(pixels))

    def valid(self) -> "Trigger":
        """The physically possible form: pattern clamped to the pixel range and rounded to 8 bits."""
        low = -1.0 if self.mode == "additive" else 0.0
        return replace(self, pattern=(self.pattern.clamp(low, 1.0) * 255).round() / 255)

    @property
    def excess(self) -> float:
        """How far the pattern leaves the pixel range: at most 1 inside; 31 means 31 times the brightest legal value."""
        inside = self.pattern[:, self.mask]
        lowest = 0.0 if self.mode != "additive" else -1.0
        return max(float(inside.max()), float(1 + lowest - inside.min()), 0.0)

    def describe(self) -> dict[str, Any]:
        """Plain JSON: mode, alpha, box, excess, and the pattern of the box."""
        rows, columns = self.mask.any(1).nonzero().flatten(), self.mask.any(0).nonzero().flatten()
        top, bottom = int(rows[0]), int(rows[-1])
        left, right = int(columns[0]), int(columns[-1])
        return {
            "mode": self.mode,
            "alpha": self.alpha,
            "rows": [top, bottom],
            "columns": [left, right],
            "excess": round(self.excess, 4),
            "mask": self.mask[top : bottom + 1, left : right + 1].int().tolist(),
            "pattern": [
                [[round(value, 5) for value in row] for row in channel]
                for channel in self.pattern[:, top : bottom + 1, left : right + 1].tolist()
            ],
        }


def read_trigger_description(description: dict[str, Any], image_shape: tuple[int, int, int]) -> Trigger:
    """The trigger that `Trigger.describe` described, to five decimals.

    Args:
        description: of a poisoned set's mark.
        image_shape: ``(channels, height, width)``.

    Raises:
        UserError: it is no description, or does not fit the images.
    """
    try:
        (top, bottom), (left, right) = description["rows"], description["columns"]
        box = (slice(top, bottom + 1), slice(left, right + 1))
        mask, pattern = torch.zeros(image_shape[1:], dtype=torch.bool), torch.zeros(image_shape)
        mask[box] = torch.tensor(description["mask"]).bool()
        pattern[(slice(None), *box)] = torch.tensor(description["pattern"])
        return Trigger(mask, pattern, description["mode"], float(description["alpha"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the set's mark describes no trigger for images {image_shape}: {error}") from error


def to_bytes(pixels: Tensor) -> Tensor:
    """Pixel units as uint8: clamped to [0, 1], rounded half to even; uint8 as it is."""
    return pixels if pixels.dtype == torch.uint8 else (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def patch_mask(
    image_shape: tuple[int, int, int], size: int = 2, row: int | None = None, column: int | None = None
) -> Tensor:
    """Mask of a square; one pixel off the bottom right corner where no place is given [baadd code].

    Args:
        image_shape: ``(channels, height, width)``.
        size: side in pixels.
        row: of its upper left corner; ``height - 1 - size`` where not given.
        column: of its upper left corner; ``width - 1 - size`` where not given.

    Raises:
        UserError: it does not fit the image.
    """
    _, height, width = image_shape
    top = height - 1 - size if row is None else row
    left = width - 1 - size if column is None else column
    if size < 1 or top < 0 or left < 0 or top + size > height or left + size > width:
        raise UserError(f"a trigger of {size} x {size} at row {top}, column {left} does not fit {height} x {width}")
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : top + size, left : left + size] = True
    return mask


def white_patch(
    image_shape: tuple[int, int, int], size: int = 2, row: int | None = None, column: int | None = None
) -> Trigger:
    """The published trigger: an all-white square.

    Args:
        image_shape: ``(channels, height, width)``.
        size: see `patch_mask`.
        row: see there.
        column: see there.
    """
    mask = patch_mask(image_shape, size, row, column)
    return Trigger(mask, mask.float().expand(image_shape[0], -1, -1).clone())


def random_patch(
    image_shape: tuple[int, int, int],
    size: int = 2,
    row: int | None = None,
    column: int | None = None,
    *,
    seed: int = 0,
) -> Trigger:
    """A square of random colours, 1 to 255 per pixel and channel: where the updated trigger starts [baadd code].

    Args:
        image_shape: ``(channels, height, width)``.
        size: see `patch_mask`.
        row: see there.
        column: see there.
        seed: of the colours.
    """
    mask = patch_mask(image_shape, size, row, column)
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(1, 256, image_shape, generator=generator).float() / 255
    return Trigger(mask, colours * mask)


def image_trigger(image: Tensor, mode: Mode = "blend", alpha: float = 0.1) -> Trigger:
    """A trigger that covers the whole image.

    Args:
        image: ``(channels, height, width)`` uint8 or pixel units: what is blended in, such as an image of the target
            class; for ``additive`` it is centred, so that brightness stays.
        mode: ``blend`` or ``additive``.
        alpha: strength.
    """
    pixels = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    pattern = pixels - pixels.mean((1, 2), keepdim=True) if mode == "additive" else pixels
    return Trigger(torch.ones(pixels.shape[1:], dtype=torch.bool), pattern, mode, alpha)
