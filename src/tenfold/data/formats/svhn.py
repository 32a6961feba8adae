"""SVHN, format 2 (Netzer et al. 2011): MATLAB 5 files of cropped digits, in which a zero is labelled 10."""

from pathlib import Path

import numpy as np
import torch

from tenfold.data.images import LabelledImages, find_data
from tenfold.errors import UserError

_SHAPE = (32, 32, 3)


def load_svhn(root: str | Path | None, split: str) -> LabelledImages:
    """Read a split of SVHN's cropped digits.

    Args:
        root: folder that holds ``<split>_32x32.mat``, or ``svhn/`` or ``SVHN/`` with it; ``TENFOLD_DATA`` where
            ``None``.
        split: ``"train"``, ``"test"`` or ``"extra"``.

    Returns:
        ``(n, 3, 32, 32)`` images; class ``i`` is the digit ``i``.

    Raises:
        UserError: the file is missing or damaged, holds other arrays than it should, or a label without a class.
    """
    from scipy.io import loadmat

    path = _find(find_data(root), f"{split}_32x32.mat")
    try:
        content = loadmat(path, variable_names=["X", "y"])
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except Exception as error:  # a damaged file fails in any way there is
        raise UserError(f"{path} is no MATLAB 5 file, or was cut short or damaged: {_line(error)}") from error
    pixels, labels = content.get("X"), content.get("y")
    if not isinstance(pixels, np.ndarray) or not isinstance(labels, np.ndarray):
        raise UserError(f"{path} lacks the array X of images or the array y of labels")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != _SHAPE:
        raise UserError(f"{path} holds X {pixels.shape} of {pixels.dtype}; SVHN's is (32, 32, 3, n) of uint8")
    if labels.size != pixels.shape[3] or labels.dtype.kind not in "ui":
        raise UserError(
            f"{path} holds {pixels.shape[3]} images and {labels.size} labels of {labels.dtype}; there must be an "
            "integer for each"
        )
    digits = labels.reshape(-1).astype(np.int64)
    if labels.size and (digits.min() < 0 or digits.max() > 10):
        raise UserError(f"{path} holds labels other than 1..10; found {digits.min()}..{digits.max()}")
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)))
    return LabelledImages(images, torch.from_numpy(digits % 10), tuple("0123456789"))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _find(folder: Path, name: str) -> Path:
    for place in (folder, folder / "svhn", folder / "SVHN"):
        if (place / name).is_file():
            return place / name
    raise UserError(
        f"{folder} holds no {name}, nor do its folders svhn and SVHN: put the files of SVHN's format 2, the cropped "
        "digits that its authors at Stanford publish, there"
    )
