"""Stores of images: in memory, in files, within a table."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tenfold.data.reading import read_image
from tenfold.errors import UserError
from tenfold.systems.dual_encoder.inputs.preparation import ImagePreparation


class ImageStore(Protocol):
    """Images by their number."""

    @property
    def names(self) -> Sequence[str]:
        """A name for each."""

    def picture(self, number: int) -> Any:
        """One of them as an upright RGB PIL image."""

    def prepared(self, rows: Sequence[int], preparation: ImagePreparation) -> list[Tensor]:
        """Some of them, uint8 ``(3, height, width)`` each."""


class ArrayImages:
    """Images in memory.

    Args:
        pixels: ``(n, 3, height, width)`` uint8.
        names: their numbers where ``None``.

    Raises:
        UserError: another shape or type.
    """

    def __init__(self, pixels: Tensor, names: Sequence[str] | None = None) -> None:
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.dtype != torch.uint8 or not len(pixels):
            raise UserError(f"images must be uint8 (n, 3, height, width); got {tuple(pixels.shape)} {pixels.dtype}")
        self.pixels = pixels
        self.names = list(names) if names is not None else [str(n) for n in range(len(pixels))]

    def __len__(self) -> int:
        return len(self.pixels)

    def picture(self, number: int) -> Any:
        """See ``ImageStore``."""
        from PIL import Image

        return Image.fromarray(self.pixels[number].permute(1, 2, 0).numpy())

    def prepared(self, rows: Sequence[int], preparation: ImagePreparation) -> list[Tensor]:
        """See ``ImageStore``."""
        size = tuple(self.pixels.shape[2:])
        if preparation.size_of(*size) == size:
            return list(self.pixels[torch.as_tensor(rows)])
        return [preparation.prepare(self.picture(row)) for row in rows]


class FileImages:
    """Images in files, decoded when they are asked for, several at once.

    Args:
        paths: the files; of any endings, since some data sets' endings lie.
        names: their paths where ``None``.
        threads: how many decode at once.
    """

    def __init__(self, paths: Sequence[Path], names: Sequence[str] | None = None, threads: int = 4) -> None:
        self.paths = list(paths)
        self.names = list(names) if names is not None else [str(path) for path in self.paths]
        self._threads = threads

    def __len__(self) -> int:
        return len(self.paths)

    def picture(self, number: int) -> Any:
        """See ``ImageStore``."""
        return read_image(self.paths[number])

    def prepared(self, rows: Sequence[int], preparation: ImagePreparation) -> list[Tensor]:
        """See ``ImageStore``."""
        if len(rows) == 1:
            return [preparation.prepare(self.picture(rows[0]))]
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(lambda row: preparation.prepare(self.picture(row)), rows))

    def in_memory(self, preparation: ImagePreparation) -> ArrayImages:
        """All of them, prepared once, for small sets whose images come out in one size.

        Raises:
            UserError: they come out in several sizes.
        """
        images = self.prepared(range(len(self)), preparation)
        if len({image.shape for image in images}) > 1:
            raise UserError("images of several sizes are not held in memory; use square=True")
        return ArrayImages(torch.stack(images), self.names)


class EncodedImages(FileImages):
    """Image files within a table: their bytes.

    Args:
        content: gives the bytes of an image by its number.
        names: a name for each.
        threads: see ``FileImages``.
    """

    def __init__(self, content: Any, names: Sequence[str], threads: int = 4) -> None:
        super().__init__([Path(name) for name in names], names, threads)
        self._content = content

    def picture(self, number: int) -> Any:
        """See ``ImageStore``."""
        return read_image(io.BytesIO(self._content(number)), name=self.names[number])
