"""EMNIST (Cohen et al. 2017): IDX files whose images are stored transposed, and whose letters are labelled from 1."""

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from tenfold.data.formats.idx import read_idx
from tenfold.data.images import LabelledImages, find_data
from tenfold.errors import UserError

EmnistSplit = Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"]


def load_emnist(root: str | Path | None, split: str, part: str) -> LabelledImages:
    """Read a part of one of EMNIST's six splits; images stand upright.

    Args:
        root: folder with the files of ``gzip.zip``, or with its folder ``gzip``, or torchvision's ``EMNIST/raw``;
            ``TENFOLD_DATA`` where ``None``.
        split: ``byclass``, ``bymerge``, ``balanced``, ``letters``, ``digits`` or ``mnist``.
        part: ``train`` or ``test``.

    Raises:
        UserError: files are missing or damaged, or hold a label without a class.
    """
    if split not in get_args(EmnistSplit):
        raise UserError(f"EMNIST has no split {split!r}; it has: {', '.join(get_args(EmnistSplit))}")
    folder = find_data(root)
    pixels = read_idx(_find(folder, f"emnist-{split}-{part}-images-idx3-ubyte"))
    labels = read_idx(_find(folder, f"emnist-{split}-{part}-labels-idx1-ubyte")).astype(np.int64)
    codes, classes = _mapping(_find(folder, f"emnist-{split}-mapping.txt"))
    if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels):
        raise UserError(f"{folder}: the {part} images {pixels.shape} and labels {labels.shape} do not belong together")
    places = np.searchsorted(codes, labels)  # letters count from 1
    if (codes[np.minimum(places, len(codes) - 1)] != labels).any():
        raise UserError(f"{folder}: a label of emnist-{split} is not in its mapping; found up to {labels.max()}")
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 2, 1)))[:, None]
    return LabelledImages(images, torch.from_numpy(places), classes)


def _mapping(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as they are in the files, ascending, and the characters that they stand for."""
    names: dict[int, str] = {}
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            if line.strip():
                label, *characters = map(int, line.split())
                names[label] = "/".join(map(chr, characters))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a mapping (index ascii [ascii] in each line): {error}") from error
    if not names or any(not name for name in names.values()):
        raise UserError(f"{path} is not a mapping: it is empty, or a line has no character")
    codes = sorted(names)
    return np.array(codes), tuple(names[code] for code in codes)


def _find(folder: Path, stem: str) -> Path:
    for place in (folder, folder / "gzip", folder / "EMNIST" / "raw", folder / "emnist", folder / "emnist" / "gzip"):
        for suffix in ("", ".gz"):
            if (place / (stem + suffix)).is_file():
                return place / (stem + suffix)
    raise UserError(
        f"{folder} holds no {stem}, nor do its folders gzip, EMNIST/raw and emnist: put the files of EMNIST's gzip.zip "
        "there, as NIST publishes them"
    )
