"""Settings that say which images and how they are split; light, for the settings of the systems."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class ImageOptions:
    """Which images, and how they are split.

    Attributes:
        name: ``digits`` (embedded), ``mnist``, ``fashion-mnist``, ``emnist-balanced`` (``-byclass``, ``-bymerge``,
            ``-letters``, ``-digits``, ``-mnist``), ``cifar10``, ``cifar100``, ``svhn``, ``stl10``,
            ``tiny-imagenet`` (its file of tensors), ``imagenet``, or ``folder`` (any class-per-folder tree).
        root: folder of the data; ``TENFOLD_DATA`` where null.
        validation: images taken from the training split to choose epochs and thresholds.
        augment: what training images go through: ``none``, ``flip``, ``crop-flip`` (4 pixels of padding), ``imagenet``.
        augment_validation: augment validation images, too, as the official loader does.
        image_size: side to which the images of ``folder`` and ``imagenet`` are brought.
        resize: side to which images that are held in memory are brought, by a bilinear filter; as they are where null.
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
    validation: int = 300
    augment: Literal["none", "flip", "crop-flip", "imagenet"] = "none"
    augment_validation: bool = False
    image_size: int = 224
    resize: int | None = None
    workers: int = 0
