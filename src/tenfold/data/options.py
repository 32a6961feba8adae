"""Settings that say which images and how they are split; light, for the settings of the systems."""

from dataclasses import dataclass
from typing import Literal

from tenfold.errors import UserError
from tenfold.settings import Count, PositiveInt

Augment = Literal["none", "flip", "crop-flip", "imagenet"]

FILE_SETS = ("folder", "imagenet")
"""Names of data that are read file by file; the others are held in memory."""

# What the published programs, or the presets that were measured here, do with the data sets of these names.
OWN_VALIDATION = {
    "digits": 300,
    "fashion-mnist": 1000,
    "cifar10": 5000,
    "cifar100": 5000,
    "imagenet": 50000,
}
OWN_AUGMENT: dict[str, Augment] = {
    "fashion-mnist": "flip",
    "cifar10": "crop-flip",
    "cifar100": "crop-flip",
    "stl10": "flip",
    "tiny-imagenet": "flip",
    "imagenet": "imagenet",
    "folder": "imagenet",
}


@dataclass
class ImageOptions:
    """Which images, and how they are split.

    What is left out follows from the data, so that no preset's numbers for its own data act on others.

    Attributes:
        name: ``digits`` (embedded), ``mnist``, ``fashion-mnist``, ``emnist-balanced`` (``-byclass``, ``-bymerge``,
            ``-letters``, ``-digits``, ``-mnist``), ``cifar10``, ``cifar100``, ``svhn``, ``stl10``,
            ``tiny-imagenet`` (its file of tensors), ``imagenet``, or ``folder`` (any class-per-folder tree).
        root: folder of the data; ``TENFOLD_DATA`` where null.
        validation: images taken from the training split to choose epochs and thresholds; where null, as many as is
            usual for the data set, or a tenth.
        augment: what training images go through: ``none``, ``flip``, ``crop-flip`` (4 pixels of padding), ``imagenet``
            (random crops; for image files); ``auto`` is what is usual for the data set.
        augment_validation: augment validation images, too, as the official loader does.
        image_size: side of the square cut out of the images of ``folder`` and ``imagenet``, 224 where null.
        resize: side to which whole images are brought, squeezed where they are no squares; as they are where null.
        unreadable: what is done about files of ``folder`` that cannot be read: ``refuse`` names them, ``leave-out``
            goes on without them and says how many.
        workers: processes that decode image files.
    """

    name: Literal[
        "digits",
        "mnist",
        "fashion-mnist",
        "emnist-balanced",
        "emnist-byclass",
        "emnist-bymerge",
        "emnist-letters",
        "emnist-digits",
        "emnist-mnist",
        "cifar10",
        "cifar100",
        "svhn",
        "stl10",
        "tiny-imagenet",
        "imagenet",
        "folder",
    ] = "digits"
    root: str | None = None
    validation: PositiveInt | None = None
    augment: Literal["auto", "none", "flip", "crop-flip", "imagenet"] = "auto"
    augment_validation: bool = False
    image_size: PositiveInt | None = None
    resize: PositiveInt | None = None
    unreadable: Literal["refuse", "leave-out"] = "refuse"
    workers: Count = 0

    def check(self) -> None:
        """Refuse settings without effect on the data that are named.

        Raises:
            UserError: names the setting, and what to do.
        """
        if self.name == "digits" and self.root is not None:
            raise UserError(
                f"data.root {self.root!r} has no effect on the embedded digits: name the data, as with "
                "--data.name folder"
            )
        if self.image_size is not None and self.name not in FILE_SETS:
            raise UserError(
                f"data.image_size is for image files; the side of the images of {self.name!r} is --data.resize"
            )
        if self.image_size is not None and self.resize is not None:
            raise UserError(
                "of data.image_size (a square is cut out) and data.resize (the whole is squeezed) give one, not both"
            )
        if self.augment == "imagenet" and self.name not in FILE_SETS:
            raise UserError(f"data.augment imagenet is for image files; {self.name} takes none, flip or crop-flip")
        if self.unreadable != "refuse" and self.name != "folder":
            raise UserError(f"data.unreadable is for data.name folder, not for {self.name!r}")


def own_augment(name: str) -> Augment:
    """The training augmentation that is usual for a data set."""
    return OWN_AUGMENT.get(name, "none")


def validation_size(name: str, images: int, asked: int | None, option: str = "--data.validation") -> int:
    """How many of the training images validate.

    Args:
        name: of the data set.
        images: how many training images there are.
        asked: the setting; where ``None``, what is usual for the data set, or a tenth where that is more than a
            quarter of what is there.
        option: what a user types to set it.

    Raises:
        UserError: none would be left to train.
    """
    if asked is not None and not 1 <= asked < images:
        raise UserError(
            f"{option} {asked} leaves none of the {images} training images of {name}: leave it out, or take fewer, as "
            f"with {option} {max(images // 10, 1)}"
        )
    if images < 2:
        raise UserError(f"{name} holds {images} training images; it needs at least two, one of them to validate")
    own = OWN_VALIDATION.get(name, 0)
    return asked or (own if 0 < own <= images // 4 else max(images // 10, 1))
