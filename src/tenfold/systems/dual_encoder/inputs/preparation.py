"""What an image goes through on its way into an encoder: one description per model, saved with it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from tenfold.data.preprocessing import normalize
from tenfold.data.reading import read_image
from tenfold.errors import UserError

_LARGEST = 2**13
"""Pixels of a side: a number in a model's file cannot ask for any amount of memory."""


@dataclass(frozen=True)
class ImagePreparation:
    """From an image to pixels; training, evaluation, index and service all use it.

    Attributes:
        patch: side of a patch in pixels; height and width become multiples of it.
        shorter: the shorter side in pixels.
        longest: the longer side at most; the image keeps its proportions up to rounding down to whole patches.
        square: both sides are ``shorter`` whatever the proportions.
        mean: per channel, of pixels scaled to [0, 1].
        std: per channel, likewise.
        interpolation: of the resize.

    Raises:
        UserError: a value out of its range.
    """

    patch: int = 32
    shorter: int = 384
    longest: int = 639
    square: bool = False
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.patch < 1 or self.shorter < self.patch or self.longest < self.shorter:
            raise UserError(
                f"an image needs patch <= shorter <= longest; got {self.patch}, {self.shorter}, {self.longest}"
            )
        if self.longest > _LARGEST:
            raise UserError(f"an image's sides are at most {_LARGEST} pixels; got {self.longest}")
        if self.square and self.shorter % self.patch:
            raise UserError(f"a side of {self.shorter} pixels is not whole patches of {self.patch}")
        if len(self.mean) != 3 or len(self.std) != 3 or not np.isfinite([*self.mean, *self.std]).all():
            raise UserError(f"mean and std are three finite numbers each; got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise UserError(f"std must be above 0; got {self.std}")

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of this size is brought to.

        As ViLT's: the shorter side to ``shorter``, both down where the longer would pass ``longest``, rounded to whole
        pixels and then down to whole patches, of which there is at least one.
        """
        if self.square:
            return self.shorter, self.shorter
        scale = self.shorter / min(height, width)
        new = (self.shorter, scale * width) if height < width else (scale * height, self.shorter)
        if max(new) > self.longest:
            new = tuple(side * self.longest / max(new) for side in new)  # type: ignore[assignment]
        rows, columns = (max(int(side + 0.5) // self.patch, 1) * self.patch for side in new)
        return rows, columns

    def prepare(self, image: Any) -> Tensor:
        """A PIL image (of ``read_image``) as uint8 ``(3, height, width)``."""
        from PIL import Image

        image = image.convert("RGB")
        height, width = self.size_of(image.height, image.width)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def read(self, path: str | Path) -> Tensor:
        """An image file, prepared; see ``read_image`` for what is refused."""
        return self.prepare(read_image(path))

    def batch(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Several prepared images as normalized pixels, padded at the right and at the bottom.

        Padding is marked by the mask and never told by its colour: an image may be black from edge to edge.

        Args:
            images: uint8 ``(3, height, width)`` each.

        Returns:
            ``(n, 3, height, width)`` float32, and ``(n, rows, columns)`` booleans, true for real patches; ``None``
            where all images have one size.
        """
        sizes = {image.shape[-2:] for image in images}
        if len(sizes) == 1:
            return normalize(torch.stack(list(images)), self.mean, self.std), None
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        pixels = torch.zeros(len(images), 3, height, width)
        mask = torch.zeros(len(images), height // self.patch, width // self.patch, dtype=torch.bool)
        for place, image in enumerate(images):
            rows, columns = image.shape[-2:]
            pixels[place, :, :rows, :columns] = normalize(image[None], self.mean, self.std)[0]
            mask[place, : rows // self.patch, : columns // self.patch] = True
        return pixels, mask

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``model.json``."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Any) -> "ImagePreparation":
        """What ``to_dict`` wrote.

        Raises:
            UserError: a value is missing, unknown, of another type or out of range.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "it"
            raise UserError(f"the model's image preparation is damaged: {place}: {first['msg']}") from error
