"""Three splits of labelled images by the name of their data set, and what their batches go through."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.data.augment import Augmentation, random_crop, random_flip
from tenfold.data.batches import FileBatches, TensorBatches, evaluation_batches
from tenfold.data.folder import ImageFiles, find_image_files, find_imagenet, require_readable
from tenfold.data.formats.cifar import load_cifar
from tenfold.data.formats.emnist import load_emnist
from tenfold.data.formats.idx import FASHION_CLASSES, has_idx, load_idx
from tenfold.data.formats.stl10 import load_stl10
from tenfold.data.formats.svhn import load_svhn
from tenfold.data.formats.tiny_imagenet import load_tiny_imagenet
from tenfold.data.images import (
    LabelledImages,
    channel_statistics,
    digits,
    find_data,
    resize_images,
    split_indices,
    stratified_order,
)
from tenfold.data.options import FILE_SETS, ImageOptions, own_augment, validation_size
from tenfold.data.preprocessing import Preprocessing
from tenfold.errors import UserError
from tenfold.settings import check_settings

Batches = Iterable[tuple[Tensor, Tensor, Tensor]]
"""``(images, labels, indices)``, this rank's share of the images, in order."""

_AUGMENTATIONS: dict[str, list[Augmentation]] = {
    "none": [],
    "flip": [random_flip],
    "crop-flip": [random_crop(4), random_flip],
}
# Of the training sets, as the official scripts have them.
STATISTICS = {
    "cifar10": ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "tiny-imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation of the channels of published data sets, pixels scaled to [0, 1]."""

_READERS = {"svhn": load_svhn, "stl10": load_stl10, "tiny-imagenet": load_tiny_imagenet}
_FILES_SIDE = 224


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images, disjoint, with what their batches need.

    Attributes:
        name: of the data set.
        train: images that train the network.
        validation: images that choose epochs and thresholds; never augmented.
        test: images that are only measured.
        preprocessing: what images go through into the network; save it with the model.
        augment: name of the training augmentation.
        augment_validation: whether validation images are augmented like training images, as in the official loader.
        workers: processes that decode files.
        notes: what a reader must know to judge numbers on these splits: how many are in each, what was left out.
    """

    name: str
    train: LabelledImages | ImageFiles
    validation: LabelledImages | ImageFiles
    test: LabelledImages | ImageFiles
    preprocessing: Preprocessing
    augment: str = "none"
    augment_validation: bool = False
    workers: int = 0
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.train.classes

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, of pixels scaled to [0, 1]."""
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel."""
        return self.preprocessing.std

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)`` of a batch's images."""
        return self.preprocessing.image_shape

    def prepared(self, **changes: Any) -> "Splits":
        """The same images with another preprocessing: that of a saved model, or some of its fields changed.

        Args:
            changes: ``preprocessing``, or fields of it such as ``mean`` and ``interpolation``.
        """
        given = changes.pop("preprocessing", None) or self.preprocessing
        return replace(self, preprocessing=replace(given, **changes))

    def example(self, batch: int) -> Tensor:
        """A batch of blank images ``(batch, channels, height, width)``, for shapes and costs."""
        return torch.zeros(batch, *self.image_shape)

    def training_batches(self, batch_size: int, *, seed: int) -> TensorBatches | FileBatches:
        """Shuffled, augmented training batches that resume; the order depends on the seed only."""
        statistics: dict[str, Any] = {"mean": self.mean, "std": self.std}
        if isinstance(self.train, LabelledImages):
            augmentations = _AUGMENTATIONS[self.augment]
            return TensorBatches(self.train, batch_size, seed=seed, augmentations=augmentations, **statistics)
        transform = self._of_files(augmented=True)
        return FileBatches(self.train, batch_size, seed=seed, transform=transform, workers=self.workers, **statistics)

    def plain_training_batches(self, batch_size: int = 512, *, limit: int = 10_000) -> Batches:
        """The first ``limit`` training images in order, without augmentation."""
        return self._in_order(self.train.subset(range(min(limit, len(self.train)))), batch_size)

    def validation_batches(self, batch_size: int = 512) -> Batches:
        """The validation images; not augmented, unlike in the official loader, unless the splits say so."""
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
            options["transform"] = self._of_files(augmented)
        return evaluation_batches(images, batch_size, **options)

    def _of_files(self, augmented: bool) -> Callable[[Any], Tensor]:
        if augmented and self.augment == "imagenet":
            return self.preprocessing.random_crop()
        if not augmented or self.augment == "none":
            return self.preprocessing.prepare
        from torchvision.transforms import v2

        crop = [v2.RandomCrop(self.preprocessing.size, padding=4)] if self.augment == "crop-flip" else []
        return v2.Compose([self.preprocessing.prepare, *crop, v2.RandomHorizontalFlip()])


def load_splits(
    name: str,
    *,
    root: str | None = None,
    validation: int | None = None,
    augment: str = "none",
    image_size: int | None = None,
    augment_validation: bool = False,
    resize: int | None = None,
    unreadable: str = "refuse",
    workers: int = 0,
    options: str = "--data.",
) -> Splits:
    """Read a data set and split it.

    Args:
        name: see ``ImageOptions``.
        root: its folder; ``TENFOLD_DATA`` where ``None``. ``folder`` wants ``train/`` in it, with ``test/`` or
            ``val/`` or both; or the class folders themselves, of whose images a fifth is then the test.
        validation: images taken from the training split; see ``ImageOptions``. A folder that has ``train``, ``val``
            and ``test`` validates on ``val``.
        augment: ``auto``, ``none``, ``flip``, ``crop-flip`` or ``imagenet``.
        image_size: side of the squares cut out of the images of ``imagenet`` and ``folder``; 224 where ``None``.
        augment_validation: see ``Splits``.
        resize: see ``ImageOptions``.
        unreadable: see ``ImageOptions``.
        workers: processes that decode image files.
        options: how the names of the options begin that a user types, for messages.

    Raises:
        UserError: the data are missing or damaged, the settings do not fit them, or a split would be empty.
    """
    files = name in FILE_SETS
    chosen = own_augment(name) if augment == "auto" else augment
    if chosen == "imagenet" and not files:
        raise UserError(f"{options}augment imagenet is for image files; {name} takes none, flip or crop-flip")
    how: dict[str, Any] = {"augment": chosen, "augment_validation": augment_validation, "workers": workers}
    if files:
        preprocessing = _preprocessing_of_files(image_size, resize)
        read = partial(_readable_files, leave_out=unreadable == "leave-out", option=f"{options}unreadable")
        count = partial(validation_size, name, asked=validation, option=f"{options}validation")
        return _split_files(name, find_data(root), preprocessing, how, read=read, count=count)
    train, test, notes = _read_images(name, root)
    if resize is not None and train.image_shape[1:] != (resize, resize):
        height, width = train.image_shape[1:]
        notes.append(f"The images were brought from {height} x {width} to {resize} x {resize} pixels.")
        train, test = resize_images(train, resize), resize_images(test, resize)
    held = validation_size(name, len(train), validation, f"{options}validation")
    rest, held_rows = split_indices(len(train), [len(train) - held, held])
    training = train.subset(rest)
    preprocessing = Preprocessing.squeezed(
        training.image_shape, *(STATISTICS.get(name) or channel_statistics(training))
    )
    notes.append(_note_of_sizes(len(rest), held, len(test)))
    return Splits(name, training, train.subset(held_rows), test, preprocessing, notes=tuple(notes), **how)


def load_image_splits(options: ImageOptions) -> Splits:
    """``load_splits`` by the settings, which are checked first (their ranges, too)."""
    check_settings(options)
    return load_splits(**asdict(options))


def _note_of_sizes(train: int, validation: int, test: int) -> str:
    return f"{train:,} images train, {validation:,} validate, {test:,} are the test."


def _read_images(name: str, root: str | None) -> tuple[LabelledImages, LabelledImages, list[str]]:
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
    if name not in ("mnist", "fashion-mnist"):
        raise UserError(f"there are no data {name!r}; a tree with a folder per class is read as 'folder'")
    folder, classes = ("FashionMNIST", FASHION_CLASSES) if name == "fashion-mnist" else ("MNIST", tuple("0123456789"))
    test = load_idx(root, "test", name=folder, classes=classes)
    if has_idx(root, "train", name=folder) or name != "fashion-mnist":
        return load_idx(root, "train", name=folder, classes=classes), test, []
    note = (
        "Only Fashion-MNIST's test file is there: its first 8,000 images train and validate, its last 2,000 are the "
        "test. The numbers are not comparable with published Fashion-MNIST results."
    )
    if len(test) <= 2002:
        raise UserError(f"the {len(test)} images are too few to be split into training, validation and test")
    return test.subset(slice(0, len(test) - 2000)), test.subset(slice(len(test) - 2000, len(test))), [note]


def _preprocessing_of_files(image_size: int | None, resize: int | None) -> Preprocessing:
    mean, std = STATISTICS["imagenet"]
    if resize is None:
        return Preprocessing.cropped(image_size or _FILES_SIDE, mean, std)
    if image_size is not None:
        raise UserError(
            "of data.image_size (a square is cut out) and data.resize (the whole is squeezed) give one, not both"
        )
    return Preprocessing.squeezed((3, resize, resize), mean, std)


def _split_files(
    name: str,
    folder: Path,
    preprocessing: Preprocessing,
    how: dict[str, Any],
    *,
    read: Callable[[Path], ImageFiles],
    count: Callable[[int], int],
) -> Splits:
    if name == "imagenet":
        train, test = find_imagenet(folder, "train"), find_imagenet(folder, "val")
        _require_same_classes(train, folder / "train", test, folder / "val")
        held = count(len(train))
        chosen, rest = split_indices(len(train), [held, len(train) - held], seed=0)
        note = _note_of_sizes(len(rest), held, len(test))
        parts = train.subset(rest.tolist()), train.subset(chosen.tolist()), test
        return Splits(name, *parts, preprocessing, notes=(note,), **how)

    if not (folder / "train").is_dir():
        everything = read(folder)
        test_size = max(len(everything) // 5, 1)
        held = count(len(everything) - test_size)
        order = stratified_order(everything.labels, seed=0).tolist()
        test, train = everything.subset(order[:test_size]), everything.subset(order[test_size:])
        chosen_files, train = train.subset(range(held)), train.subset(range(held, len(train)))
        origin = [f"{folder} has no split of its own: a fifth of its images, drawn once, is the test."]
        origin += everything.notes
    else:
        train, test, own, origin = _given_split(folder, read)
        if own is not None:
            chosen_files = own
        else:
            held = count(len(train))
            order = stratified_order(train.labels, seed=0).tolist()
            chosen_files, train = train.subset(order[:held]), train.subset(order[held:])
    missing = [train.classes[label] for label in range(len(train.classes)) if label not in set(train.labels)]
    if missing:
        raise UserError(
            f"{folder}: no image of the class {missing[0]} is left to train, beside those that validate and test: it "
            "needs more images"
        )
    for part, files in (("validation", chosen_files), ("test", test)):
        absent = sorted(set(range(len(train.classes))) - set(files.labels))
        if absent:
            origin.append(f"No {part} image is of the class {', '.join(train.classes[label] for label in absent)}.")
    notes = (*origin, _note_of_sizes(len(train), len(chosen_files), len(test)))
    return Splits(name, train, chosen_files, test, preprocessing, notes=notes, **how)


def _readable_files(folder: Path, *, leave_out: bool, option: str) -> ImageFiles:
    return require_readable(find_image_files(folder), folder, leave_out=leave_out, option=option)


def _given_split(
    folder: Path, read: Callable[[Path], ImageFiles]
) -> tuple[ImageFiles, ImageFiles, ImageFiles | None, list[str]]:
    """Training and test images of a folder that splits them, validation images where it has them, too; notes."""
    held = [folder / part for part in ("test", "val", "validation") if (folder / part).is_dir()]
    if not held:
        raise UserError(f"{folder} has a folder train but none of test, val, validation")
    train, test = read(folder / "train"), read(held[0])
    _require_same_classes(train, folder / "train", test, held[0])
    origin = [f"The test images are those of {held[0].name}/.", *train.notes, *test.notes]
    if held[0].name != "test" or len(held) == 1:
        return train, test, None, origin
    validation = read(held[1])
    _require_same_classes(train, folder / "train", validation, held[1])
    origin.insert(1, f"The validation images are those of {held[1].name}/.")
    return train, test, validation, [*origin, *validation.notes]


def _require_same_classes(train: ImageFiles, place: Path, other: ImageFiles, other_place: Path) -> None:
    for here, there, where in ((train, other, other_place), (other, train, place)):
        lacking = [name for name in here.classes if name not in there.classes]
        if lacking:
            listed = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
            raise UserError(
                f"{where} lacks the class folder {listed}: {place} and {other_place} must hold the same classes"
            )
