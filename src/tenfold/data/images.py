"""Labelled images in memory: what every image reader gives and every batch is made of."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tenfold.errors import UserError


@dataclass(frozen=True)
class LabelledImages:
    """Images and their classes.

    Attributes:
        images: ``(n, channels, height, width)`` uint8.
        labels: ``(n,)`` int64 class indices.
        classes: names of the classes, by index.

    Raises:
        UserError: there are no images, the shapes or types are not these, or a label is no class.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise UserError(
                f"images must be uint8 (n, channels, height, width); got {tuple(self.images.shape)} {self.images.dtype}"
            )
        if tuple(self.labels.shape) != (len(self.images),) or self.labels.dtype != torch.int64:
            raise UserError(
                f"labels must be {len(self.images)} int64 class indices, one per image; "
                f"got {tuple(self.labels.shape)} {self.labels.dtype}"
            )
        if len(self.images) == 0:
            raise UserError("there are no images")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise UserError(f"labels must lie in 0..{len(self.classes) - 1}; found {low}..{high}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)``."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def subset(self, indices: Tensor | slice | Sequence[int]) -> "LabelledImages":
        """Some of the images, with the same classes."""
        chosen = indices if isinstance(indices, Tensor | slice) else torch.as_tensor(indices, dtype=torch.int64)
        return LabelledImages(self.images[chosen], self.labels[chosen], self.classes)


def images_from_arrays(images: ArrayLike, labels: ArrayLike, classes: Sequence[str] | None = None) -> LabelledImages:
    """Labelled images from a user's arrays.

    Args:
        images: ``(n, height, width)`` or ``(n, channels, height, width)``; uint8, or floating point in [0, 1].
        labels: ``(n,)`` integers.
        classes: names; the numbers themselves where not given.

    Raises:
        UserError: NaN or values out of range, or anything ``LabelledImages`` refuses.
    """
    pixels = np.asarray(images)
    if np.issubdtype(pixels.dtype, np.floating):
        if not np.isfinite(pixels).all():
            raise UserError("images hold NaN or infinite values")
        if pixels.size and (pixels.min() < 0 or pixels.max() > 1):
            raise UserError(
                f"floating-point images must lie in [0, 1]; found {pixels.min():g}..{pixels.max():g}: divide by the "
                "largest pixel value first"
            )
        pixels = np.rint(pixels * 255).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise UserError(f"images must be uint8, or floating point in [0, 1]; got {pixels.dtype}")
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    numbers = np.asarray(labels)
    if not np.issubdtype(numbers.dtype, np.integer):
        raise UserError(f"labels must be integers; got {numbers.dtype}")
    tensor = torch.from_numpy(numbers.astype(np.int64))
    names = tuple(classes) if classes is not None else tuple(str(n) for n in range(int(numbers.max(initial=0)) + 1))
    return LabelledImages(torch.from_numpy(np.ascontiguousarray(pixels)), tensor, names)


def find_data(root: str | Path | None) -> Path:
    """The folder of the data: ``root``, else the environment's ``TENFOLD_DATA``.

    Raises:
        UserError: neither is given, or it is no folder.
    """
    named = root or os.environ.get("TENFOLD_DATA")
    if not named:
        raise UserError("these data are not embedded: name their folder with --data.root or the variable TENFOLD_DATA")
    folder = Path(named)
    if not folder.is_dir():
        raise UserError(f"the data folder {folder} does not exist")
    return folder


def digits() -> LabelledImages:
    """scikit-learn's embedded digits: 1,797 grey images of 8 x 8 pixels, ten classes."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    scaled = np.rint(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    return LabelledImages(torch.from_numpy(scaled), torch.from_numpy(labels), tuple("0123456789"))


def resize_images(data: LabelledImages, side: int) -> LabelledImages:
    """Bring images to ``side`` x ``side`` pixels with Pillow's bilinear filter on bytes, as the official programs do.

    Args:
        data: the images, with one or three channels.
        side: height and width in pixels.

    Raises:
        UserError: the side is not positive, or the images have another number of channels.
    """
    from PIL import Image

    channels, height, width = data.image_shape
    if side < 1 or channels not in (1, 3):
        raise UserError(f"cannot bring images of {channels} channels to {side} pixels; they need 1 or 3, and a side")
    if (height, width) == (side, side):
        return data
    pixels = data.images.permute(0, 2, 3, 1).numpy()
    resized = np.empty((len(data), side, side, channels), np.uint8)
    for index, image in enumerate(pixels if channels == 3 else pixels[..., 0]):
        smaller = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
        resized[index] = np.asarray(smaller).reshape(side, side, channels)
    return LabelledImages(torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous(), data.labels, data.classes)


def channel_statistics(data: LabelledImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, pixels scaled to [0, 1]; a constant channel gets deviation 1."""
    counts = torch.stack(
        [channel.flatten().bincount(minlength=256) for channel in data.images.transpose(0, 1)]
    ).double()
    levels = torch.arange(256, dtype=torch.float64) / 255
    shares = counts / counts.sum(1, keepdim=True)
    mean = shares @ levels
    deviation = (shares @ levels.square() - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(value or 1.0 for value in deviation.tolist())


def split_indices(n: int, sizes: Sequence[int], *, seed: int | None = None) -> list[Tensor]:
    """Disjoint index sets of the given sizes.

    Args:
        n: number of samples.
        sizes: sizes of the parts, at most ``n`` together.
        seed: of the permutation; by position, without one, where ``None``.

    Raises:
        UserError: a size is not positive, or they are more than ``n`` together.
    """
    if any(size < 1 for size in sizes) or sum(sizes) > n:
        raise UserError(f"cannot split {n} samples into parts of {', '.join(map(str, sizes))}")
    order = torch.arange(n) if seed is None else torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return list(order[: sum(sizes)].split(list(sizes)))


def stratified_order(labels: Sequence[int] | Tensor, *, seed: int) -> Tensor:
    """A random order in which every stretch holds the classes in about the shares that they have in all.

    Args:
        labels: ``(n,)`` class indices.
        seed: of the order.

    Returns:
        ``(n,)`` row numbers. Image k of the c of a class, in random order, stands at about the place ``(k + 1/2) / c``;
        so a class of one image stands in the middle.
    """
    numbers = torch.as_tensor(labels, dtype=torch.int64)
    shuffled = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[numbers[shuffled].argsort(stable=True)]
    counts = numbers.bincount()
    starts = (counts.cumsum(0) - counts)[numbers[by_class]]
    places = (torch.arange(len(numbers)) - starts + 0.5) / counts[numbers[by_class]]
    return by_class[places.argsort(stable=True)]
