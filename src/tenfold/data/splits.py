"""Three splits of labelled images by the name of their data set, and what their batches go through."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from tenfold.data.augment import Augmentation, random_crop, random_flip
from tenfold.data.batches import FileBatches, TensorBatches, evaluation_batches
from tenfold.data.cifar import load_cifar
from tenfold.data.emnist import load_emnist
from tenfold.data.folder import ImageFiles, find_image_files, find_imagenet, imagenet_transforms
from tenfold.data.idx import FASHION_CLASSES, has_idx, load_idx
from tenfold.data.images import (
    LabelledImages,
    channel_statistics,
    digits,
    find_data,
    resize_images,
    split_indices,
)
from tenfold.data.options import ImageOptions as ImageOptions
from tenfold.data.stl10 import load_stl10
from tenfold.data.svhn import load_svhn
from tenfold.data.tiny_imagenet import load_tiny_imagenet
from tenfold.errors import UserError

Batches = Iterable[tuple[Tensor, Tensor, Tensor]]
"""``(images, labels, indices)``, this rank's share of the images, in order."""

_AUGMENTATIONS: dict[str, list[Augmentation]] = {
    "none": [],
    "flip": [random_flip],
    "crop-flip": [random_crop(4), random_flip],
}
# Of the training sets, as the official scripts have them.
_STATISTICS = {
    "cifar10": ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "tiny-imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

_READERS = {"svhn": load_svhn, "stl10": load_stl10, "tiny-imagenet": load_tiny_imagenet}


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images, disjoint, with what their batches need.

    Attributes:
        name: of the data set.
        train: images that train the network.
        validation: images that choose epochs and thresholds; never augmented.
        test: images that are only measured.
        mean: per channel, of pixels scaled to [0, 1].
        std: per channel.
        image_shape: ``(channels, height, width)`` of a batch's images.
        augment: name of the training augmentation.
        augment_validation: whether validation images are augmented like training images, as in the official loader.
        workers: processes that decode files.
        interpolation: by which image files are resized for evaluation.
        notes: what a reader must know to judge numbers on these splits.
    """

    name: str
    train: LabelledImages | ImageFiles
    validation: LabelledImages | ImageFiles
    test: LabelledImages | ImageFiles
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]
    augment: str
    augment_validation: bool = False
    workers: int = 0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.train.classes

    def example(self, batch: int) -> Tensor:
        """A batch of blank images ``(batch, channels, height, width)``, for shapes and costs."""
        return torch.zeros(batch, *self.image_shape)

    def training_batches(self, batch_size: int, *, seed: int) -> TensorBatches | FileBatches:
        """Shuffled, augmented training batches that resume; the order depends on the seed only."""
        if isinstance(self.train, LabelledImages):
            return TensorBatches(
                self.train,
                batch_size,
                seed=seed,
                mean=self.mean,
                std=self.std,
                augmentations=_AUGMENTATIONS[self.augment],
            )
        return FileBatches(
            self.train,
            batch_size,
            seed=seed,
            mean=self.mean,
            std=self.std,
            workers=self.workers,
            transform=imagenet_transforms(self.image_shape[-1], training=self.augment == "imagenet"),
        )

    def plain_training_batches(self, batch_size: int = 512, *, limit: int = 10_000) -> Batches:
        """The first ``limit`` training images in order, without augmentation."""
        return self._in_order(self.train.subset(range(min(limit, len(self.train)))), batch_size)

    def validation_batches(self, batch_size: int = 512) -> Batches:
        """The validation images; not augmented, unlike in the official loader."""
        return self._in_order(self.validation, batch_size, augmented=self.augment_validation)

    def test_batches(self, batch_size: int = 512) -> Batches:
        """The test images."""
        return self._in_order(self.test, batch_size)

    def _in_order(
        self, images: LabelledImages | ImageFiles, batch_size: int, augmented: bool = False
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        options: dict[str, Any] = {"mean": self.mean, "std": self.std, "workers": self.workers}
        if isinstance(images, LabelledImages):
            options["augmentations"] = _AUGMENTATIONS[self.augment] if augmented else []
        else:
            options["transform"] = imagenet_transforms(
                self.image_shape[-1], training=augmented, interpolation=self.interpolation
            )
        return evaluation_batches(images, batch_size, **options)


def load_splits(
    name: str,
    *,
    root: str | None = None,
    validation: int = 300,
    augment: str = "none",
    image_size: int = 224,
    augment_validation: bool = False,
    resize: int | None = None,
    workers: int = 0,
) -> Splits:
    """Read a data set and split it.

    Args:
        name: see ``ImageOptions``.
        root: its folder; ``TENFOLD_DATA`` where ``None``. ``folder`` wants ``train/`` and ``test/`` or ``val/`` in
            it, or the class folders themselves, of whose images a fifth is then the test.
        validation: images taken from the training split.
        augment: ``none``, ``flip``, ``crop-flip`` or ``imagenet``.
        image_size: side of the images of ``imagenet`` and ``folder``.
        augment_validation: see ``Splits``.
        resize: see ``ImageOptions``.
        workers: processes that decode image files.

    Raises:
        UserError: the data are missing or damaged, the settings do not fit them, or a split would be empty.
    """
    files = name in ("imagenet", "folder")
    if files != (augment == "imagenet") and augment != "none":
        raise UserError(f"data.augment {augment!r} does not fit data.name {name!r}")
    if files and resize is not None:
        raise UserError(f"data.resize is for images in memory; the side of those of {name!r} is data.image_size")
    if files:
        return _split_files(name, root, validation, augment, image_size, augment_validation, workers)
    train, test, notes = _read_images(name, root, validation)
    if resize is not None and train.image_shape[1:] != (resize, resize):
        height, width = train.image_shape[1:]
        notes.append(f"The images were brought from {height} x {width} to {resize} x {resize} pixels.")
        train, test = resize_images(train, resize), resize_images(test, resize)
    if validation >= len(train):
        raise UserError(f"data.validation {validation} leaves none of the {len(train)} training images of {name}")
    rest, chosen = split_indices(len(train), [len(train) - validation, validation])
    training = train.subset(rest)
    mean, std = _STATISTICS.get(name) or channel_statistics(training)
    return Splits(
        name=name,
        train=training,
        validation=train.subset(chosen),
        test=test,
        mean=mean,
        std=std,
        image_shape=training.image_shape,
        augment=augment,
        augment_validation=augment_validation,
        workers=workers,
        notes=tuple(notes),
    )


def _read_images(name: str, root: str | None, validation: int) -> tuple[LabelledImages, LabelledImages, list[str]]:
    """Images for training (and validation), images for the test, notes."""
    if name == "digits":
        data = digits()
        rest, held_out = split_indices(len(data), [len(data) - 397, 397], seed=0)
        note = "scikit-learn's digits have no official split: 397 of the 1,797 images, drawn once, are the test."
        return data.subset(rest), data.subset(held_out), [note]
    if name in ("cifar10", "cifar100"):
        load = partial(load_cifar, root, classes=int(name.removeprefix("cifar")))
        return load("train"), load("test"), []
    if name in _READERS:
        return _READERS[name](root, "train"), _READERS[name](root, "test"), []
    if name.startswith("emnist-"):
        split = name.removeprefix("emnist-")
        return load_emnist(root, split, "train"), load_emnist(root, split, "test"), []
    folder, classes = ("FashionMNIST", FASHION_CLASSES) if name == "fashion-mnist" else ("MNIST", tuple("0123456789"))
    test = load_idx(root, "test", name=folder, classes=classes)
    if has_idx(root, "train", name=folder) or name != "fashion-mnist":
        return load_idx(root, "train", name=folder, classes=classes), test, []
    note = (
        "Only Fashion-MNIST's test file is there: its first 8,000 images train and validate, its last 2,000 are the "
        "test. The numbers are not comparable with published Fashion-MNIST results."
    )
    if len(test) <= 2000 + validation:
        raise UserError(f"the {len(test)} images are too few to be split into training, validation and test")
    return test.subset(slice(0, len(test) - 2000)), test.subset(slice(len(test) - 2000, len(test))), [note]


def _split_files(
    name: str,
    root: str | None,
    validation: int,
    augment: str,
    image_size: int,
    augment_validation: bool,
    workers: int,
) -> Splits:
    folder = find_data(root)
    notes: list[str] = []
    if name == "imagenet":
        train, test = find_imagenet(folder, "train"), find_imagenet(folder, "val")
    elif (folder / "train").is_dir():
        held = next((folder / part for part in ("test", "val", "validation") if (folder / part).is_dir()), None)
        if held is None:
            raise UserError(f"{folder} has a folder train but none of test, val, validation")
        train, test = find_image_files(folder / "train"), find_image_files(held)
    else:
        everything = find_image_files(folder)
        fifth = max(len(everything) // 5, 1)
        keep, held_out = split_indices(len(everything), [len(everything) - fifth, fifth], seed=0)
        train, test = everything.subset(keep.tolist()), everything.subset(held_out.tolist())
        notes.append("The folder has no split of its own: a fifth of the images is the test.")
    if train.classes != test.classes:
        raise UserError(f"{folder}: the classes of training and test images differ")
    if validation >= len(train):
        raise UserError(f"data.validation {validation} leaves none of the {len(train)} training images in {folder}")
    chosen, rest = split_indices(len(train), [validation, len(train) - validation], seed=0)
    mean, std = _STATISTICS["imagenet"]
    return Splits(
        name=name,
        train=train.subset(rest.tolist()),
        validation=train.subset(chosen.tolist()),
        test=test,
        mean=mean,
        std=std,
        image_shape=(3, image_size, image_size),
        augment=augment,
        augment_validation=augment_validation,
        workers=workers,
        notes=tuple(notes),
    )
