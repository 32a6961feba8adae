"""Random changes of whole batches of images, drawn from a generator of their own."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
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
        padded = F.pad(images, (padding,) * 4)
        rows = (tops[:, None] + torch.arange(height, device=images.device))[:, None, :, None]
        columns = (lefts[:, None] + torch.arange(width, device=images.device))[:, None, None, :]
        sample = torch.arange(batch, device=images.device).view(-1, 1, 1, 1)
        return padded[sample, torch.arange(channels, device=images.device).view(1, -1, 1, 1), rows, columns]

    return crop


def random_resized_crop(
    size: int, *, scale: tuple[float, float] = (0.2, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Augmentation:
    """Cut a random rectangle out of each image and resize it to a square, bicubically.

    Args:
        size: side of the result in pixels.
        scale: range of the rectangle's share of the image's area.
        ratio: range of its width over its height, drawn on a logarithmic scale; what would not fit is cut down to the
            image's side (torchvision draws again).
    """

    def crop(images: Tensor, generator: Generator) -> Tensor:
        batch = len(images)
        area, shape, left, top = torch.rand(4, batch, generator=generator).to(images.device)
        area = scale[0] + (scale[1] - scale[0]) * area
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = (low + (high - low) * shape).exp()
        width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
        # In grid_sample's coordinates the image spans -1 .. 1.
        theta = torch.zeros(batch, 2, 3, device=images.device)
        theta[:, 0, 0], theta[:, 0, 2] = width, (1 - width) * (2 * left - 1)
        theta[:, 1, 1], theta[:, 1, 2] = height, (1 - height) * (2 * top - 1)
        grid = F.affine_grid(theta, [batch, images.shape[1], size, size], align_corners=False)
        cut = F.grid_sample(images.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False)
        return cut.round_().clamp_(0, 255).to(torch.uint8)

    return crop


def color_jitter(brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4) -> Augmentation:
    """Change brightness, contrast and saturation of each image by random factors in ``[1 - x, 1 + x]``.

    The three are applied in an order drawn for the batch. Grey images have no saturation.

    Args:
        brightness: half-width of its range, in [0, 1].
        contrast: likewise; towards the mean of the grey image.
        saturation: likewise; towards the grey image.
    """

    def jitter(images: Tensor, generator: Generator) -> Tensor:
        drawn = torch.rand(3, len(images), 1, 1, 1, generator=generator).to(images.device)
        order = torch.randperm(3, generator=generator).tolist()
        x = images.float()
        for which in order:
            strength = (brightness, contrast, saturation)[which]
            factor = 1 + strength * (2 * drawn[which] - 1)
            if which == 0:
                x = x * factor
            else:
                grey = _grey(x) if which == 2 else _grey(x).mean((2, 3), keepdim=True)
                x = grey + factor * (x - grey)
            x = x.clamp(0, 255)
        return x.round().to(torch.uint8)

    return jitter


def _grey(images: Tensor) -> Tensor:
    """Luma of RGB images (ITU-R 601), ``(batch, 1, height, width)``; grey images as they are."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(3, 1, 1)
    return (images * weights).sum(1, keepdim=True)
