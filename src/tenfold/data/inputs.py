"""Images that a user names on the command line, brought to the shape that a network takes."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tenfold.errors import UserError


def read_images(inputs: Sequence[str], shape: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """Images from files, each with its name: uint8 ``(channels, height, width)``.

    Args:
        inputs: image files, which are scaled to the shape; or ``.npy`` files of uint8 in that shape: one image
            ``(height, width[, channels])`` or several ``(n, channels, height, width)``.
        shape: ``(channels, height, width)``.

    Raises:
        UserError: a file is missing, no image, or an array of another type or shape.
    """
    from PIL import Image, UnidentifiedImageError

    channels, height, width = shape
    for name in inputs:
        if name.endswith(".npy"):
            yield from _read_array(name, shape)
            continue
        try:
            with Image.open(name) as image:
                converted = image.convert("L" if channels == 1 else "RGB").resize(
                    (width, height), Image.Resampling.BILINEAR
                )
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"cannot read the image {name}: {error}") from error
        pixels = torch.from_numpy(np.array(converted)).reshape(height, width, channels)
        yield name, pixels.permute(2, 0, 1)


def _read_array(name: str, shape: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    try:
        array = np.load(name, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the array {name}: {error}") from error
    if array.dtype != np.uint8:
        raise UserError(f"{name} holds {array.dtype}; images are uint8, 0 to 255")
    if array.ndim == 2:
        array = array[None, None]
    elif array.ndim == 3:
        array = np.moveaxis(array, -1, 0)[None]
    if array.ndim != 4 or list(array.shape[1:]) != list(shape):
        raise UserError(f"{name} has shape {array.shape}; the network takes images (n, {', '.join(map(str, shape))})")
    for number, image in enumerate(array):
        yield f"{name}[{number}]", torch.from_numpy(image)
