"""A network trained on a condensed set, as it is served: pixels in, the range guard first, then the preprocessing."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tenfold.data.preprocessing import Preprocessing as ImagePreprocessing
from tenfold.errors import UserError
from tenfold.files import inside, printable
from tenfold.models.folder import (
    MANIFEST,
    Manifest,
    load_manifest,
    load_weights,
    no_larger_than_its_files,
    refuse_code,
)
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.defences.range_guard import RangeGuard
from tenfold.systems.condensation_audit.networks.factories import Factory, make_network
from tenfold.systems.condensation_audit.sets.files import load_set

SYSTEM = "condensation-audit"


def load(folder: str | Path, *, factory: str | None = None) -> RangeGuard:
    """The network of a run or model folder, ready to call: pixels in, logits out.

    Args:
        folder: of a run or a model.
        factory: must repeat the factory of a network of the user's own: a manifest alone never runs code.

    Returns:
        Takes ``(batch, channels, height, width)`` uint8 images or pixels in [0, 1]; gives ``(batch, classes)`` logits.

    Raises:
        UserError: the folder holds no such network, or it was changed.
    """
    return load_served(folder, factory)[0]


def load_served(folder: str | Path, factory: str | None = None) -> tuple[RangeGuard, dict[str, Any]]:
    """The network of a run or model folder behind the range guard, in evaluation mode; and its manifest's extra values.

    Args:
        folder: holds ``model.safetensors``, ``model.json`` and, for a whitened set, the set.
        factory: must repeat the factory of a network of the user's own: a manifest alone never runs code.

    Raises:
        UserError: the folder holds no such network, or it was changed.
    """
    manifest = load_manifest(folder, SYSTEM)
    make = factory_of_manifest(folder, manifest, factory)
    with no_larger_than_its_files(folder, manifest.arguments):
        network = make()
    load_weights(network, folder)
    return RangeGuard(network, preprocessing_of(folder, manifest, factory)).eval(), manifest.extra


def factory_of_manifest(folder: str | Path, manifest: Manifest, allowed: str | None) -> Factory:
    """What makes an untrained network of a model's kind.

    Args:
        folder: of the model.
        manifest: its own.
        allowed: see `load_served`.

    Raises:
        UserError: the manifest says how to make no network, or one of a function that was not allowed.
    """
    refuse_code(manifest, allowed)
    arguments = dict(manifest.arguments)
    shape, classes = shape_of(folder, manifest), arguments.pop("num_classes", None)
    arguments.pop("image_shape")
    if type(classes) is not int or classes < 1:
        raise UserError(f"{printable(folder)}: its manifest does not say for how many classes its network is")
    return partial(
        make_network,
        manifest.builder,
        image_shape=shape,
        num_classes=classes,
        from_file=str(Path(folder) / MANIFEST),
        **arguments,
    )


def shape_of(folder: str | Path, manifest: Manifest) -> tuple[int, int, int]:
    """``(channels, height, width)`` of the images that a model takes.

    Raises:
        UserError: the manifest does not say it.
    """
    shape = manifest.arguments.get("image_shape")
    numbers = shape if isinstance(shape, list) and len(shape) == 3 else [0]
    if shape is None or not all(type(number) is int and 0 < number <= LARGEST_SIDE for number in numbers):
        raise UserError(f"{printable(folder)}: its manifest does not say the shape of its images, three numbers")
    return shape[0], shape[1], shape[2]


LARGEST_SIDE = 4096
"""Channels and pixels of a side that a file may ask for."""


def preprocessing_of(folder: str | Path, manifest: Manifest, allowed: str | None = None) -> Preprocessing:
    """From pixels to what a model's network sees.

    Args:
        folder: of the model.
        manifest: its own.
        allowed: see `load_served`; also of the set that carries the whitening.

    Raises:
        UserError: the manifest, or the set that it names, does not say it.
    """
    extra = manifest.extra
    if extra.get("zca"):
        place = inside(folder, str(extra.get("set", "")))
        return load_set(place, allow_poisoned=True, allow_network=allowed or manifest.builder).preprocessing
    mean, std = extra.get("mean"), extra.get("std")
    numbers = [isinstance(values, list) and all(isinstance(v, int | float) for v in values) for values in (mean, std)]
    if not all(numbers):
        raise UserError(f"{printable(folder)}: its manifest names no mean and std")
    return Preprocessing(tuple(mean), tuple(std), shape_of(folder, manifest))  # type: ignore[arg-type]


def reading_of(image_shape: Sequence[int], extra: dict[str, Any]) -> ImagePreprocessing:
    """How image files are brought to the size of a network: as its manifest says, else squeezed.

    Args:
        image_shape: ``(channels, height, width)``.
        extra: values of the manifest.

    Raises:
        UserError: the manifest says something that cannot be.
    """
    told = extra.get("preprocessing")
    reading = ImagePreprocessing.squeezed(image_shape) if told is None else ImagePreprocessing.from_dict(told)
    if list(reading.image_shape) != list(image_shape):
        raise UserError(f"the manifest reads images as {reading.image_shape}; its network takes {tuple(image_shape)}")
    return reading
