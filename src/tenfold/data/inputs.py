"""Images that a user names on the command line, prepared for a network."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tenfold.data.preprocessing import Preprocessing
from tenfold.data.reading import load_image_array, read_image
from tenfold.errors import UserError


def read_images(inputs: Sequence[str], preprocessing: Preprocessing) -> Iterator[tuple[str, Tensor]]:
    """Images that a user names on the command line, each with its name: uint8 ``(channels, height, width)``.

    Args:
        inputs: image files, which go through the preprocessing; or ``.npy`` files of uint8 that have its size already:
            one image ``(height, width[, channels])`` or several ``(n, channels, height, width)``.
        preprocessing: of the model.

    Raises:
        UserError: a file is missing, no image, or an array of another type or shape.
    """
    for name in inputs:
        if name.endswith(".npy"):
            yield from _read_array(name, preprocessing.image_shape)
        else:
            yield name, preprocessing.prepare(read_image(name))


def _read_array(name: str, shape: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    array = load_image_array(name)
    if array.dtype != np.uint8:
        raise UserError(f"{name} holds {array.dtype}; images are uint8, 0 to 255")
    if array.ndim == 2:
        array = array[None, None]
    elif array.ndim == 3:
        array = np.moveaxis(array, -1, 0)[None]
    if array.ndim != 4 or list(array.shape[1:]) != list(shape):
        raise UserError(f"{name} has shape {array.shape}; the network takes images (n, {', '.join(map(str, shape))})")
    if len(array) == 0:
        raise UserError(f"{name} holds no images")
    for number, image in enumerate(array):
        yield f"{name}[{number}]", torch.from_numpy(np.array(image))
