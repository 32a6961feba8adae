"""ADE20K scene parsing (``ADEChallengeData2016``): its files, the published training pipeline, sliding windows.

Annotations are 8-bit images: 0 is *other*, 1 to 150 are the classes. Here they become 255, which counts nowhere, and
0 to 149, before anything looks at them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tenfold.data import read_image
from tenfold.errors import UserError

CLASSES, IGNORED = 150, 255


@dataclass(frozen=True)
class SegmentationFiles(Dataset):
    """Pairs of image and annotation files; item ``i`` is ``((RGB PIL image, labels), 0)``.

    Attributes:
        images: the photographs.
        annotations: the file with the classes of each.
    """

    images: tuple[Path, ...]
    annotations: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, labels = read_image(self.images[index]), read_annotation(self.annotations[index])
        if labels.shape != (image.height, image.width):
            raise UserError(
                f"{self.annotations[index]} has {labels.shape[0]} x {labels.shape[1]} pixels, its image "
                f"{image.height} x {image.width}"
            )
        return (image, labels), 0

    def subset(self, indices: Sequence[int]) -> "SegmentationFiles":
        """Some of the pairs."""
        return SegmentationFiles(tuple(self.images[i] for i in indices), tuple(self.annotations[i] for i in indices))


def read_annotation(path: str | Path) -> np.ndarray:
    """Classes of an annotation file, ``(height, width)`` uint8: 0 to 149, and 255 for pixels without.

    Raises:
        UserError: the file is missing or damaged, is in colour, or holds a number above 150.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            mode, labels = image.mode, np.asarray(image)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UserError(f"cannot read the annotation {path}: {error}") from error
    if mode not in ("L", "P") or labels.ndim != 2:
        raise UserError(f"the annotation {path} is no 8-bit image of one channel (it is {mode})")
    if labels.max(initial=0) > CLASSES:
        raise UserError(f"the annotation {path} holds the number {labels.max()}; there are 0 (other) to {CLASSES}")
    return np.where(labels == 0, IGNORED, labels - 1).astype(np.uint8)  # 0 - 1 would wrap around to 255, too: say it


def find_ade20k(root: str | Path, split: str) -> SegmentationFiles:
    """A split of ``ADEChallengeData2016``.

    Args:
        root: folder with ``images/<split>/ADE_*.jpg`` and ``annotations/<split>/ADE_*.png``.
        split: ``training`` or ``validation``.

    Raises:
        UserError: the folders are missing or empty, an image has no annotation, or it is the full-size release, whose
            files are laid out otherwise.
    """
    root = Path(root)
    folder = root / "images" / split
    if any(root.rglob("*_seg.png")) if root.is_dir() and not folder.is_dir() else False:
        raise UserError(
            f"{root} is the full-size release of ADE20K (*_seg.png); this needs the scene parsing one, "
            "ADEChallengeData2016, with images/ and annotations/"
        )
    if not folder.is_dir():
        raise UserError(
            f"{root} holds no images/{split}: ADEChallengeData2016 is images/ and annotations/, each with it"
        )
    images = tuple(sorted(folder.glob("*.jpg")))
    if not images:
        raise UserError(f"{folder} holds no .jpg images")
    annotations = tuple(root / "annotations" / split / f"{path.stem}.png" for path in images)
    missing = [path for path in annotations if not path.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(images)} images have no annotation, such as {missing[0]}")
    return SegmentationFiles(images, annotations)


def resized_size(height: int, width: int, longest: int, shortest: int) -> tuple[int, int]:
    """The largest size of the same ratio whose sides are at most ``longest`` and ``shortest``."""
    factor = min(longest / max(height, width), shortest / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


class TrainingCrop:
    """The published training pipeline of one pair: ``(4, crop, crop)`` uint8, colours, then labels.

    Resize into ``(4 crop, crop)`` times a factor in [0.5, 2]; crop with at most three quarters of one class; mirror;
    photometric distortion. What the image does not fill is the mean colour, which normalizes to nothing, and label 255.

    Args:
        crop: side of the result in pixels; 512 as published.
        mean: per channel, of pixels scaled to [0, 1].
        most: largest share of one class among the labelled pixels of a crop; ten crops are tried.
    """

    def __init__(self, crop: int, mean: Sequence[float], most: float = 0.75) -> None:
        from torchvision.transforms import v2

        self.crop, self.most = crop, most
        self.fill = torch.tensor([round(255 * value) for value in mean], dtype=torch.uint8).view(3, 1, 1)
        self.distortion = v2.RandomPhotometricDistort(
            brightness=(0.875, 1.125), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.05, 0.05), p=0.5
        )

    def __call__(self, pair: tuple[Any, np.ndarray]) -> Tensor:
        """One crop of ``(RGB PIL image, labels)``."""
        from torchvision.transforms.v2 import functional

        image, labels = functional.pil_to_tensor(pair[0]), torch.from_numpy(pair[1])[None]
        factor = 0.5 + 1.5 * float(torch.rand(()))
        height, width = labels.shape[-2:]
        size = resized_size(height, width, round(4 * self.crop * factor), round(self.crop * factor))
        image = functional.resize(image, list(size), antialias=True)
        labels = functional.resize(labels, list(size), interpolation=functional.InterpolationMode.NEAREST)
        for _ in range(10):
            window = self._window(size)
            found = labels[0, window[0], window[1]]
            if self.acceptable(found):
                break
        image, labels = image[:, window[0], window[1]], labels[:, window[0], window[1]]
        if float(torch.rand(())) < 0.5:
            image, labels = image.flip(-1), labels.flip(-1)
        image = self.distortion(image)
        whole = torch.cat([self.fill.expand(3, self.crop, self.crop), torch.full((1, self.crop, self.crop), IGNORED)])
        whole = whole.to(torch.uint8).clone()
        whole[:3, : image.shape[1], : image.shape[2]] = image
        whole[3, : labels.shape[1], : labels.shape[2]] = labels[0]
        return whole

    def acceptable(self, labels: Tensor) -> bool:
        """Whether no class has too large a share of the labelled pixels, and more than one is there."""
        counts = torch.bincount(labels[labels != IGNORED].flatten().long(), minlength=1)
        return bool((counts > 0).sum() > 1 and counts.max() < self.most * counts.sum())

    def _window(self, size: tuple[int, int]) -> tuple[slice, slice]:
        starts = [int(torch.randint(max(side - self.crop, 0) + 1, ())) for side in size]
        return slice(starts[0], starts[0] + self.crop), slice(starts[1], starts[1] + self.crop)
