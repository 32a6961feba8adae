"""STL-10 (Coates et al. 2011): binary files of 96 x 96 images, whose planes are stored column by column."""

from pathlib import Path

import numpy as np
import torch

from tenfold.data.images import LabelledImages, find_data
from tenfold.errors import UserError

_SIDE = 96

STL10_CLASSES = (
    "airplane",
    "bird",
    "car",
    "cat",
    "deer",
    "dog",
    "horse",
    "monkey",
    "ship",
    "truck",
)


def load_stl10(root: str | Path | None, split: str) -> LabelledImages:
    """Read a labelled split of STL-10.

    Args:
        root: folder that holds ``<split>_X.bin`` and ``<split>_y.bin``, or ``stl10_binary/`` with them;
            ``TENFOLD_DATA`` where ``None``.
        split: ``"train"`` or ``"test"``.

    Returns:
        ``(n, 3, 96, 96)`` images.

    Raises:
        UserError: the files are missing or damaged, do not belong together, or hold labels without a class.
    """
    folder = find_data(root)
    folder = folder / "stl10_binary" if (folder / "stl10_binary").is_dir() else folder
    pixels, labels = _bytes(folder / f"{split}_X.bin"), _bytes(folder / f"{split}_y.bin")
    record = 3 * _SIDE * _SIDE
    count, rest = divmod(pixels.size, record)
    if count == 0 or rest:
        raise UserError(
            f"{folder / split}_X.bin has {pixels.size} bytes, no whole number of images of {record}: it was cut short"
        )
    if labels.size != count:
        raise UserError(f"{folder} holds {count} {split} images and {labels.size} labels; there must be one for each")
    if labels.min() < 1 or labels.max() > len(STL10_CLASSES):
        raise UserError(f"{folder / split}_y.bin holds labels other than 1..10; found {labels.min()}..{labels.max()}")
    images = torch.from_numpy(pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 1, 3, 2).copy())
    return LabelledImages(images, torch.from_numpy(labels.astype(np.int64) - 1), _class_names(folder))


def _bytes(path: Path) -> np.ndarray:
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; unpack the archive of STL-10 that Stanford publishes there"
        ) from error


def _class_names(folder: Path) -> tuple[str, ...]:
    try:
        names = tuple((folder / "class_names.txt").read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError):
        names = ()
    return names if len(names) == len(STL10_CLASSES) else STL10_CLASSES
