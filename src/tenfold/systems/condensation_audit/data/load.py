"""Real images by the name of their data set: to condense, held out for the audit, to test. The one way to read them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tenfold.data.folder import ImageFiles
from tenfold.data.images import LabelledImages
from tenfold.data.options import FILE_SETS, ImageOptions
from tenfold.data.preprocessing import Preprocessing
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

# Of the images as the data sets have them; 28 where not named.
_SIDES = {"digits": 8, "cifar10": 32, "cifar100": 32, "svhn": 32, "stl10": 96, "tiny-imagenet": 64}


@dataclass
class Data:
    """What a run works on.

    Attributes:
        real: the images that are condensed.
        held_out: clean images for the audit, from the validation split: uint8, never condensed, never tested on.
        test: images that are only measured.
        reading: how images are brought to their size; belongs to every model of these data.
        notes: what a reader must know to judge the numbers.
    """

    real: RealData
    held_out: LabelledImages
    test: LabelledImages
    reading: Preprocessing
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.real.name

    def test_images(self) -> tuple[Tensor, Tensor]:
        """Normalized test images and their classes."""
        return self.real.preprocessing.normalize(self.test.images), self.test.labels


def load_data(
    options: ImageOptions,
    *,
    zca_eps: float | None = None,
    held_out: int | None = None,
    reading: Preprocessing | None = None,
    prefix: str = "--data.",
) -> Data:
    """Read and split a data set, all of it in memory.

    Args:
        options: which data; ``validation`` images are held out for the audit.
        zca_eps: whiten, fitted on the training images; see `real_data`.
        held_out: use only so many of the validation images.
        reading: how image files are brought to their size, of a model or a set; by the options where ``None``.
        prefix: how the names of the options begin that a user types, for messages.

    Raises:
        UserError: the data are missing or damaged, or the settings do not fit them.
    """
    options.check()
    splits = load_splits(**asdict(options), options=prefix)
    if reading is not None and options.name in FILE_SETS:
        splits = splits.prepared(preprocessing=reading)
    train, validation, test = (
        in_memory(part, splits.preprocessing) for part in (splits.train, splits.validation, splits.test)
    )
    mean, std = STATISTICS.get(splits.name, (None, None))
    if zca_eps is not None:  # the published whitening is fitted on pixels that are not normalized [MTT code]
        mean, std = (0.0,) * train.image_shape[0], (1.0,) * train.image_shape[0]
    real = real_data(train, name=splits.name, mean=mean, std=std, zca_eps=zca_eps, reading=_in_words(options, splits))
    clean = validation if held_out is None else validation.subset(slice(0, held_out))
    notes = splits.notes
    if len(clean) < len(validation):
        notes += (f"The audit uses {len(clean):,} of the {len(validation):,} images that are held out.",)
    return Data(real, clean, test, splits.preprocessing, notes)


def _in_words(options: ImageOptions, splits: Splits) -> dict[str, Any]:
    """How the images were brought to their size; nothing where they are as the data set has them."""
    reading = splits.preprocessing
    if options.name in FILE_SETS:
        return {
            "from": "image files",
            "resize": reading.resize,
            "resize_side": reading.resize_side,
            "interpolation": reading.interpolation,
        }
    native = _SIDES.get(options.name, 28)
    if options.resize in (None, native):
        return {}
    return {"from": [native, native], "resize": "squeeze", "interpolation": "bilinear"}


def in_memory(images: LabelledImages | ImageFiles, reading: Preprocessing) -> LabelledImages:
    """Images as they are, or files decoded and brought to the size of ``reading``.

    Raises:
        UserError: there are no images, or a file is none.
    """
    if isinstance(images, LabelledImages):
        return images
    if not len(images):
        raise UserError("there are no images")
    pixels = torch.stack([reading.prepare(images[row][0]) for row in range(len(images))])
    return LabelledImages(pixels, torch.tensor(images.labels), images.classes)


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
