"""Random changes of whole batches of images, drawn from a generator of their own."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

Augmentation = Callable[[Tensor, Generator], Tensor]
"""Maps ``(batch, channels, height, width)`` uint8 images and a CPU generator to such images."""


def random_flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    flipped = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flipped.view(-1, 1, 1, 1).to(images.device), images.flip(-1), images)


def random_crop(padding: int) -> Augmentation:
    """Cut each image out of itself with a border of zeros, at a random place.

    Args:
        padding: width of the border in pixels; the result has the size of the input.
    """

    def crop(images: Tensor, generator: Generator) -> Tensor:
        batch, channels, height, width = images.shape
        tops, lefts = torch.randint(0, 2 * padding + 1, (2, batch), generator=generator).to(images.device)
        padded = torch.nn.functional.pad(images, (padding,) * 4)
        rows = (tops[:, None] + torch.arange(height, device=images.device))[:, None, :, None]
        columns = (lefts[:, None] + torch.arange(width, device=images.device))[:, None, None, :]
        sample = torch.arange(batch, device=images.device).view(-1, 1, 1, 1)
        return padded[sample, torch.arange(channels, device=images.device).view(1, -1, 1, 1), rows, columns]

    return crop
