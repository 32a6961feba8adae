"""IDX files: MNIST, Fashion-MNIST, EMNIST. Big-endian header, then unsigned bytes; gzipped or not."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from tenfold.data.images import LabelledImages, find_data
from tenfold.errors import UserError
from tenfold.files import regular

_IMAGES, _LABELS = 2051, 2049

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read_idx(path: str | Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes.

    Returns:
        uint8 array, ``(n,)`` for labels, ``(n, rows, columns)`` for images.

    Raises:
        UserError: the file is missing, damaged, not IDX of unsigned bytes, empty, or shorter or longer than its header
            says.
    """
    path = Path(path)
    try:
        content = regular(path).read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}; it is missing, cut short or damaged") from error
    dimensions = content[3] if len(content) >= 4 else 0
    if content[:3] != b"\x00\x00\x08" or not 1 <= dimensions <= 4:
        raise UserError(f"{path} is not an IDX file of unsigned bytes: it begins with {content[:4].hex() or 'nothing'}")
    header = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:header], ">u4").tolist() if len(content) >= header else []
    if len(content) <= header or len(content) - header != math.prod(shape):
        raise UserError(
            f"{path} was cut short or damaged: it holds {max(len(content) - header, 0)} values, its header says "
            f"{' x '.join(map(str, shape)) or 'nothing'}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def load_idx(
    root: str | Path | None,
    split: str,
    *,
    name: str = "FashionMNIST",
    prefix: str | None = None,
    classes: tuple[str, ...] = tuple("0123456789"),
    transposed: bool = False,
) -> LabelledImages:
    """Read a split of a data set in MNIST's layout.

    Args:
        root: folder that holds the files, or ``images/`` or torchvision's ``<name>/raw/`` with them;
            ``TENFOLD_DATA`` where ``None``.
        split: ``"train"`` or ``"test"``.
        name: torchvision's name of the data set.
        prefix: how the files' names begin; ``train`` and ``t10k`` where ``None``.
        classes: names of the classes.
        transposed: whether rows and columns are exchanged in the file, as in EMNIST.

    Raises:
        UserError: the files are missing or damaged, do not belong together, or hold labels without a class.
    """
    folder = find_data(root)
    start = prefix or {"train": "train", "test": "t10k"}[split]
    pixels = read_idx(_find(folder, f"{start}-images-idx3-ubyte", name))
    labels = read_idx(_find(folder, f"{start}-labels-idx1-ubyte", name))
    if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels):
        raise UserError(f"{folder}: the {split} images {pixels.shape} and labels {labels.shape} do not belong together")
    images = torch.from_numpy(pixels.copy())[:, None]
    return LabelledImages(
        images.transpose(2, 3).contiguous() if transposed else images,
        torch.from_numpy(labels.astype(np.int64)),
        classes,
    )


def has_idx(root: str | Path | None, split: str, *, name: str = "FashionMNIST") -> bool:
    """Whether the split's images are there."""
    try:
        _find(find_data(root), f"{ {'train': 'train', 'test': 't10k'}[split] }-images-idx3-ubyte", name)
    except UserError:
        return False
    return True


def _find(folder: Path, stem: str, name: str) -> Path:
    for place in (folder, folder / "images", folder / name / "raw", folder / name):
        for suffix in ("", ".gz"):
            if (place / (stem + suffix)).is_file():
                return place / (stem + suffix)
    raise UserError(
        f"{folder} holds no {stem}[.gz], nor do its folders images and {name}/raw: put the IDX files of {name}, as its "
        "authors publish them, there"
    )
