"""The kind of a set: everything about its making that moves what networks trained on it answer to patches.

Scores of a scan mean something only beside those of clean sets of the same kind.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet

_NOT_OF_THE_KIND = ("seed", "images_per_class", "network", "network_arguments", "recompute")
_RATIO, _TOLERANCE = 1.5, 0.05


@dataclass(frozen=True)
class SetKind:
    """How a set was made.

    Attributes:
        method: that condensed it; ``imported`` sets do not say.
        settings: of the method.
        images_per_class: of the set.
        network: that condensed it, by name.
        arguments: of the network.
        recipe: how networks are trained on the set.
        image_shape: ``(channels, height, width)``.
        classes: their names.
        mean: of the normalization, per channel.
        std: of the normalization, per channel.
        whitened: eps of the whitening, if any.
        images: real images that it was condensed from; 0 where it does not say.
        reading: how these were brought to their size; ``None`` where it does not say.
        pixel_mean: of the real images, per channel; empty where it does not say.
        pixel_std: likewise.
    """

    method: str
    settings: dict[str, Any]
    images_per_class: float
    network: str
    arguments: dict[str, Any]
    recipe: dict[str, Any]
    image_shape: tuple[int, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    whitened: float | None = None
    images: int = 0
    reading: dict[str, Any] | None = field(default_factory=dict)
    pixel_mean: tuple[float, ...] = ()
    pixel_std: tuple[float, ...] = ()

    def difference(self, other: "SetKind") -> str:
        """In what sets of two kinds differ, in words; empty where they are of one kind.

        The number of real images may differ by half, and statistics by five hundredths: those of two samples do.
        """
        for name in (
            "method",
            "classes",
            "image_shape",
            "images_per_class",
            "network",
            "arguments",
            "settings",
            "recipe",
            "reading",
            "whitened",
        ):
            ours, theirs = _plain(getattr(self, name)), _plain(getattr(other, name))
            if name == "reading" and (ours is None or theirs is None):
                return "how the real images were read, which is not told"
            if ours != theirs:
                what = name.replace("_", " ")
                if isinstance(ours, dict) and isinstance(theirs, dict):
                    key = next(key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key))
                    return f"{what} ({key}: {ours.get(key)!r}, not {theirs.get(key)!r})"
                return what if name == "classes" else f"{what} ({ours}, not {theirs})"
        for name in ("mean", "std", "pixel_mean", "pixel_std"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if not ours or not theirs:
                return "the statistics of the real images, which are not told"
            if not np.allclose(ours, theirs, atol=_TOLERANCE, rtol=_TOLERANCE):
                return f"{name.replace('_', ' ')} of the real images ({_plain(ours)}, not {_plain(theirs)})"
        if not self.images or not other.images:
            return "the number of real images, which is not told"
        if max(self.images, other.images) > math.ceil(_RATIO * min(self.images, other.images)):
            return f"the number of real images ({self.images:,}, not {other.images:,})"
        return ""


def _plain(value: Any) -> Any:
    """As JSON has it, so that what was read from a file equals what is in memory."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def kind_of(found: CondensedSet) -> SetKind:
    """The kind of a set, as far as it says: what moves the scores of an audit.

    Args:
        found: a set of any origin.
    """
    settings, source, pre = found.settings, found.source, found.preprocessing

    def numbers(name: str) -> tuple[float, ...]:
        values = source.get(name)
        fits = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
        return tuple(float(value) for value in values) if fits and values is not None else ()

    recipe = dataclasses.asdict(found.recipe)
    if found.learning_rates is not None:
        recipe.pop("learning_rate")  # it was learned: every set of the kind has its own
    arguments = settings.get("network_arguments")
    count, reading = source.get("n"), source.get("reading")
    return SetKind(
        method=found.method,
        settings=_plain({name: value for name, value in settings.items() if name not in _NOT_OF_THE_KIND}),
        images_per_class=found.images_per_class,
        network=str(settings.get("network", found.recipe.network)),
        arguments=_plain(arguments) if isinstance(arguments, dict) else {},
        recipe=_plain(recipe),
        image_shape=pre.image_shape,
        classes=found.classes,
        mean=pre.mean,
        std=pre.std,
        whitened=None if pre.zca is None else pre.zca.eps,
        images=count if isinstance(count, int) else 0,
        reading=reading if isinstance(reading, dict) else None,
        pixel_mean=numbers("mean"),
        pixel_std=numbers("std"),
    )
