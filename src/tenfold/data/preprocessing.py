"""What an image goes through on its way into a network: one description per model, saved with it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from tenfold.data.reading import read_image
from tenfold.errors import UserError

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocessing:
    """From an image to the network's input; training, evaluation, prediction, export and serving all use it.

    Attributes:
        size: ``(height, width)`` in pixels that the network takes.
        mean: per channel, of pixels scaled to [0, 1].
        std: per channel, likewise.
        channels: 3, or 1 for grey (ITU-R 601 luma).
        resize: ``squeeze``: the whole image is brought to the size, whatever its proportions, by Pillow's filter on
            bytes. ``crop``: its shorter side is brought to ``resize_side``, its centre is cut out.
        resize_side: in pixels, at least the larger side of ``size``; for ``crop``.
        interpolation: of the resize; always with antialias.

    Raises:
        UserError: a value out of its range.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3
    resize: Literal["squeeze", "crop"] = "squeeze"
    resize_side: int | None = None
    interpolation: Interpolation = "bilinear"

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1 or self.channels < 1:
            raise UserError(f"images are (channels, height, width), all positive; got {self.channels}, {self.size}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise UserError(f"mean and std hold one number per channel ({self.channels}); got {self.mean}, {self.std}")
        if not np.isfinite([*self.mean, *self.std]).all() or min(self.std) <= 0:
            raise UserError(f"mean and std are finite numbers, std positive; got {self.mean} and {self.std}")
        if self.resize == "crop" and not (self.resize_side and self.resize_side >= max(self.size)):
            raise UserError(f"resize_side must be at least {max(self.size)} to cut {self.size} out; {self.resize_side}")

    @classmethod
    def squeezed(
        cls,
        image_shape: Sequence[int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        interpolation: Interpolation = "bilinear",
    ) -> "Preprocessing":
        """The whole image, squeezed to a shape ``(channels, height, width)``; pixels in [0, 1] without statistics."""
        channels, height, width = image_shape
        return cls(
            size=(height, width),
            mean=tuple(mean) if mean is not None else (0.0,) * channels,
            std=tuple(std) if std is not None else (1.0,) * channels,
            channels=channels,
            interpolation=interpolation,
        )

    @classmethod
    def cropped(
        cls, side: int, mean: Sequence[float], std: Sequence[float], interpolation: Interpolation = "bilinear"
    ) -> "Preprocessing":
        """ImageNet's evaluation: the shorter side to ``side * 256 / 224``, then the central ``side`` x ``side``."""
        return cls(
            size=(side, side),
            mean=tuple(mean),
            std=tuple(std),
            resize="crop",
            resize_side=round(side * 256 / 224),
            interpolation=interpolation,
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)``."""
        return self.channels, *self.size

    def prepare(self, image: Any) -> Tensor:
        """A PIL image (of ``read_image``) as the network's size and channels: uint8 ``(channels, height, width)``.

        Raises:
            UserError: the network takes neither grey nor RGB images.
        """
        if self.channels not in (1, 3):
            raise UserError(f"an image file has 1 or 3 channels; this network takes {self.channels}")
        image = image.convert("L" if self.channels == 1 else "RGB")
        if self.resize == "squeeze":
            from PIL import Image

            height, width = self.size
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
            return torch.from_numpy(np.array(image)).reshape(height, width, self.channels).permute(2, 0, 1)
        from torchvision.transforms.v2 import InterpolationMode, functional

        assert self.resize_side is not None  # checked when made
        tensor = functional.pil_to_tensor(image)
        how = InterpolationMode(self.interpolation)
        resized = functional.resize(tensor, [self.resize_side], interpolation=how, antialias=True)
        return functional.center_crop(resized, list(self.size))

    def read(self, path: str | Path) -> Tensor:
        """An image file, prepared: uint8 ``(channels, height, width)``; see ``read_image`` for what is refused."""
        return self.prepare(read_image(path))

    def random_crop(self) -> Callable[[Any], Tensor]:
        """ImageNet's training: a random rectangle resized to the size, mirrored half of the time.

        Returns:
            A transform from a PIL image to a uint8 tensor ``(channels, height, width)``; draws from torch's generator.
        """
        from torchvision.transforms import InterpolationMode, v2

        crop = v2.RandomResizedCrop(self.size, interpolation=InterpolationMode(self.interpolation), antialias=True)
        first = [] if self.channels == 3 else [v2.Grayscale()]
        return v2.Compose([v2.PILToTensor(), *first, crop, v2.RandomHorizontalFlip()])

    def normalize(self, images: Tensor) -> Tensor:
        """``(images / 255 - mean) / std`` per channel: uint8 ``(batch, channels, height, width)`` to float32."""
        return normalize(images, self.mean, self.std)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``model.json``."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Any) -> "Preprocessing":
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
            raise UserError(f"the model's preprocessing is damaged: {place}: {first['msg']}") from error


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``(images / 255 - mean) / std`` per channel: ``(batch, channels, height, width)`` uint8 to float32."""
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float32, device=images.device)).view(-1, 1, 1)
    shift = (torch.tensor(mean, device=images.device) / torch.tensor(std, device=images.device)).view(-1, 1, 1)
    return images.to(torch.float32).mul_(scale).sub_(shift)
