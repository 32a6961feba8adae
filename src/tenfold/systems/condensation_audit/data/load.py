"""The data of the experiment: real images to condense, clean images for the audit, test images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tenfold.data.folder import ImageFiles
from tenfold.data.images import LabelledImages
from tenfold.data.options import ImageOptions
from tenfold.data.splits import Splits, load_splits
from tenfold.errors import UserError
from tenfold.systems.condensation_audit.data.real_data import RealData, real_data

# Mean and deviation as the published programs have them; SVHN's and STL-10's, too, are not those of their own pixels.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2861,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "stl10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}


@dataclass
class Data:
    """What a run works on.

    Attributes:
        real: the images that are condensed.
        held_out: clean images for the audit, from the validation split: uint8, never condensed, never tested on.
        test: images that are only measured.
        notes: what a reader must know to judge the numbers.
    """

    real: RealData
    held_out: LabelledImages
    test: LabelledImages
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.real.name

    def test_images(self) -> tuple[Tensor, Tensor]:
        """Normalized test images and their classes."""
        return self.real.preprocessing.normalize(self.test.images), self.test.labels


def load_data(options: ImageOptions, *, zca_eps: float | None = None, held_out: int | None = None) -> Data:
    """Read and split a data set, all of it in memory.

    Args:
        options: which data; ``validation`` images are held out for the audit.
        zca_eps: whiten, fitted on the training images; see `real_data`.
        held_out: use only so many of the validation images.

    Raises:
        UserError: the data are missing or damaged, or their images have several sizes.
    """
    splits = load_splits(
        options.name,
        root=options.root,
        validation=options.validation,
        image_size=options.image_size,
        workers=options.workers,
        resize=options.resize,
    )
    return prepare(splits, zca_eps=zca_eps, held_out=held_out)


def prepare(splits: Splits, *, zca_eps: float | None = None, held_out: int | None = None) -> Data:
    """The splits, decoded and normalized."""
    size = splits.image_shape[-1]
    train, validation, test = (in_memory(part, size) for part in (splits.train, splits.validation, splits.test))
    mean, std = STATISTICS.get(splits.name, (None, None))
    if zca_eps is not None:  # the published whitening is fitted on pixels that are not normalized [MTT code]
        mean, std = (0.0,) * train.image_shape[0], (1.0,) * train.image_shape[0]
    real = real_data(train, name=splits.name, mean=mean, std=std, zca_eps=zca_eps)
    clean = validation if held_out is None else validation.subset(slice(0, held_out))
    return Data(real, clean, test, splits.notes)


def in_memory(images: LabelledImages | ImageFiles, size: int) -> LabelledImages:
    """Images as they are, or files decoded and scaled to ``size`` x ``size`` with Pillow's bilinear filter.

    Raises:
        UserError: a file is no image.
    """
    if isinstance(images, LabelledImages):
        return images
    from PIL import Image

    if not len(images):
        raise UserError("there are no images")
    pixels = np.empty((len(images), size, size, 3), np.uint8)
    for row in range(len(images)):
        pixels[row] = np.asarray(images[row][0].resize((size, size), Image.Resampling.BILINEAR))
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return LabelledImages(tensor, torch.tensor(images.labels), images.classes)


def require_shape(data: Data, shape: Sequence[int], what: str) -> None:
    """Make sure that images fit.

    Args:
        data: whose images.
        shape: ``(channels, height, width)`` that is wanted.
        what: takes them, for the message.

    Raises:
        UserError: they do not.
    """
    if list(data.test.image_shape) != list(shape):
        raise UserError(f"{what} takes images {tuple(shape)}; those of {data.name} are {data.test.image_shape}")
