"""What the images of a saved network go through, from its manifest."""

from collections.abc import Mapping
from typing import Any

from tenfold.data import Preprocessing
from tenfold.errors import UserError
from tenfold.models.folder import Manifest

IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def statistics_of(extra: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a model's images, from its manifest's ``extra``."""
    found = extra.get("preprocessing", extra)
    try:
        return tuple(map(float, found["mean"])), tuple(map(float, found["std"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError("the model's manifest does not say what its images are normalized with") from error


def preprocessing_of(manifest: Manifest) -> Preprocessing:
    """What a model's images go through; where its manifest has statistics alone, ImageNet's evaluation around them.

    Raises:
        UserError: the manifest's values are damaged, or do not give the images that the network takes.
    """
    size, channels = manifest.arguments["image_size"], manifest.arguments["channels"]
    if "preprocessing" in manifest.extra:
        found = Preprocessing.from_dict(manifest.extra["preprocessing"])
    elif channels == 3:
        found = Preprocessing.cropped(size, *statistics_of(manifest.extra), interpolation="bicubic")
    else:
        found = Preprocessing.squeezed((channels, size, size), *statistics_of(manifest.extra))
    if found.image_shape != (channels, size, size):
        raise UserError(f"the model's preprocessing gives images {found.image_shape}, not {(channels, size, size)}")
    return found
