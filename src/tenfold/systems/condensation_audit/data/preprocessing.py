"""From pixels to what networks see, and back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.data.zca import ZCA


@dataclass(frozen=True)
class Preprocessing:
    """From pixels in [0, 1] to what networks see, and back.

    Attributes:
        mean: per channel, of pixels in [0, 1].
        std: per channel, above 0.
        image_shape: ``(channels, height, width)``.
        zca: whitening after the normalization, if any.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]
    zca: ZCA | None = None

    def __post_init__(self) -> None:
        channels = self.image_shape[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise UserError(
                f"images of {channels} channels need {channels} means and deviations; "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        if not all(0 < value < math.inf for value in self.std) or not all(map(math.isfinite, self.mean)):
            raise UserError(f"means must be finite, deviations above 0; got {self.mean} and {self.std}")

    def normalize(self, pixels: Tensor) -> Tensor:
        """Images ``(n, channels, height, width)``, uint8 or floating point in [0, 1], as networks see them."""
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        images = (pixels - self._column(self.mean, pixels)) / self._column(self.std, pixels)
        return images if self.zca is None else self.zca.transform(images)

    def pixels(self, images: Tensor) -> Tensor:
        """Undo `normalize`: pixel units, where [0, 1] is legal; not clamped."""
        images = images if self.zca is None else self.zca.undo(images)
        return images * self._column(self.std, images) + self._column(self.mean, images)

    @property
    def lowest(self) -> Tensor:
        """``(channels, 1, 1)`` value of a black pixel, before whitening."""
        return -torch.tensor(self.mean).view(-1, 1, 1) / torch.tensor(self.std).view(-1, 1, 1)

    @property
    def highest(self) -> Tensor:
        """``(channels, 1, 1)`` value of a white pixel, before whitening."""
        return (1 - torch.tensor(self.mean).view(-1, 1, 1)) / torch.tensor(self.std).view(-1, 1, 1)

    @staticmethod
    def _column(values: Sequence[float], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
