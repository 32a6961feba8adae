"""The real images that are condensed: in memory, normalized, with the raw pixels beside them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tenfold.data.images import LabelledImages, channel_statistics
from tenfold.errors import UserError
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.data.zca import fit_zca


@dataclass
class RealData:
    """Real images and their classes.

    Attributes:
        pixels: ``(n, channels, height, width)`` uint8; triggers are stamped on these.
        labels: ``(n,)`` int64.
        classes: names of the classes.
        preprocessing: from pixels to images.
        name: of the data set.
        images: ``(n, channels, height, width)`` float32, normalized; an attack may change rows of it in place.
        reading: how they were brought to their size; empty where they are as they were given.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    name: str = "data"
    images: Tensor = field(default=None)  # type: ignore[assignment]
    reading: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images is None:
            self.images = self.preprocessing.normalize(self.pixels)
        self._rows: list[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def rows(self) -> list[Tensor]:
        """For each class the indices of its images; of the labels as they are when first asked."""
        if self._rows is None:
            self._rows = [(self.labels == label).nonzero().flatten() for label in range(len(self.classes))]
        return self._rows

    def draw_rows(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """Indices of ``count`` images of a class, drawn without replacement; of all, where there are fewer."""
        rows = self.rows[label]
        return rows[torch.randperm(len(rows), generator=generator)[:count]]

    def draw(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """Images of a class, as `draw_rows` draws them."""
        return self.images[self.draw_rows(label, count, generator)]

    def subset(self, indices: Tensor) -> "RealData":
        """Some of the images, with the same preprocessing."""
        return replace(self, pixels=self.pixels[indices], labels=self.labels[indices], images=self.images[indices])

    def source(self) -> dict[str, Any]:
        """What a set's manifest says about where it comes from: name, counts, reading, and statistics of the pixels."""
        counts = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        pixels = LabelledImages(self.pixels, self.labels, self.classes)
        mean, std = ([round(float(value), 4) for value in values] for values in channel_statistics(pixels))
        return {
            "name": self.name,
            "n": len(self),
            "class_counts": counts,
            "reading": self.reading,
            "mean": mean,
            "std": std,
        }

    def fingerprint(self) -> str:
        """SHA-256 of pixels, labels, classes and preprocessing: what is made from other data has another."""
        made = hashlib.sha256()
        for part in (self.pixels, self.labels, self.images):
            made.update(part.cpu().contiguous().numpy().tobytes())
        made.update(repr((self.classes, self.preprocessing.mean, self.preprocessing.std)).encode())
        return made.hexdigest()


def real_data(
    data: LabelledImages,
    *,
    name: str = "data",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    zca_eps: float | None = None,
    reading: dict[str, Any] | None = None,
) -> RealData:
    """Labelled images made ready.

    Args:
        data: the training images.
        name: of the data set.
        mean: per channel, of pixels in [0, 1]; measured on the images where ``None``.
        std: per channel, likewise.
        zca_eps: whiten with this eps, fitted on these images; no whitening where ``None``.
        reading: how the images were brought to their size, where they were.

    Raises:
        UserError: a class has no image.
    """
    counts = torch.bincount(data.labels, minlength=len(data.classes))
    if bool((counts == 0).any()):
        missing = data.classes[int((counts == 0).nonzero()[0])]
        raise UserError(f"class {missing!r} has no training image: nothing can be condensed for it")
    measured = channel_statistics(data)
    preprocessing = Preprocessing(
        tuple(measured[0] if mean is None else mean), tuple(measured[1] if std is None else std), data.image_shape
    )
    if zca_eps is not None:
        zca = fit_zca(preprocessing.normalize(data.images), zca_eps)
        preprocessing = Preprocessing(preprocessing.mean, preprocessing.std, data.image_shape, zca)
    return RealData(data.images, data.labels, data.classes, preprocessing, name, reading=reading or {})
