"""Images without a folder per class: flat trees, and webdataset's tar shards, read at random places.

A shard is an ordinary tar whose files come in groups of one name with several endings: ``17.jpg``, ``17.cls``.
Uncompressed, each file lies in one piece, so that an index of places is enough to read any image: order,
ranks and resumption are then those of ``tenfold.data.FileBatches``, unlike with a stream.
"""

import glob
import io
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from torch.utils.data import Dataset

from tenfold.data.folder import ImageFiles, is_image_name
from tenfold.data.reading import IMAGE_ENDINGS, read_image
from tenfold.errors import UserError
from tenfold.files import files_below

UNLABELLED = ("unlabelled",)


def find_unlabelled(folder: str | Path) -> ImageFiles:
    """All image files under a folder, at any depth, as one class.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"the image folder {folder} does not exist")
    paths = tuple(files_below(folder, is_image_name)[0])
    if not paths:
        raise UserError(f"the folder {folder} holds no images")
    return ImageFiles(paths, (0,) * len(paths), UNLABELLED)


@dataclass(frozen=True)
class ShardImages(Dataset):
    """Images in tar shards; item ``i`` is ``(RGB PIL image, class index)``.

    Attributes:
        places: shard, offset and size in bytes of each image.
        labels: class index of each; 0 where the shards hold none.
        classes: names of the classes.
    """

    places: tuple[tuple[Path, int, int], ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, offset, size = self.places[index]
        try:
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise UserError(f"cannot read the shard {path}: {error.strerror or error}") from error
        return read_image(io.BytesIO(content), name=f"{path} at {offset}"), self.labels[index]

    def subset(self, indices: Sequence[int]) -> "ShardImages":
        """Some of the images, with the same classes."""
        return ShardImages(tuple(self.places[i] for i in indices), tuple(self.labels[i] for i in indices), self.classes)


def find_shards(pattern: str) -> ShardImages:
    """Index webdataset shards.

    Args:
        pattern: path of the shards, with ``*`` or with a range such as ``{0000..0146}``.

    Raises:
        UserError: no shard is there, one is missing from the range, damaged or compressed, or holds no image; or only
            some of the images have a label.
    """
    places: list[tuple[Path, int, int]] = []
    labels: list[int | None] = []
    for path in _shards(pattern):
        images: dict[str, tuple[Path, int, int]] = {}
        classes: dict[str, int] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if not member.isfile():
                        continue
                    name = PurePosixPath(member.name)
                    key, _, ending = name.name.partition(".")
                    key = str(name.parent / key)
                    if f".{ending.lower()}" in IMAGE_ENDINGS:
                        images[key] = (path, member.offset_data, member.size)
                    elif ending == "cls":
                        content = archive.extractfile(member)
                        classes[key] = int(content.read()) if content is not None else 0
        except (OSError, EOFError, tarfile.TarError, ValueError) as error:
            raise UserError(f"cannot read the shard {path}: {error}; shards are uncompressed tar files") from error
        if not images:
            raise UserError(f"the shard {path} holds no images")
        places += images.values()
        labels += [classes.get(key) for key in images]
    known = [label for label in labels if label is not None]
    if known and len(known) < len(labels):
        raise UserError(f"{len(labels) - len(known)} of the {len(labels)} images of {pattern} have no .cls file")
    if known and min(known) < 0:
        raise UserError(f"the shards {pattern} hold the class {min(known)}; classes are numbered from 0")
    names = tuple(str(n) for n in range(max(known) + 1)) if known else UNLABELLED
    return ShardImages(tuple(places), tuple(known) if known else (0,) * len(labels), names)


def _shards(pattern: str) -> list[Path]:
    span = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if span is None:
        found = [Path(name) for name in sorted(glob.glob(pattern))]  # noqa: PTH207 (absolute patterns, too)
        if not found:
            raise UserError(f"there are no shards {pattern}")
        return found
    first, last = span.groups()
    paths = [
        Path(pattern[: span.start()] + str(number).zfill(len(first)) + pattern[span.end() :])
        for number in range(int(first), int(last) + 1)
    ]
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise UserError(f"of the shards {pattern}, {missing[0] if missing else 'all'} is missing")
    return paths
