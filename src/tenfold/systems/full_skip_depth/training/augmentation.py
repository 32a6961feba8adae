"""Images and depth changed together; depth is never interpolated, since a mean of two depths is neither.

Depth is a ``tv_tensors.Mask`` to torchvision's transforms, which therefore take the nearest value, and 0, «no value»,
where nothing was.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tenfold.errors import UserError

KB_HEIGHT, KB_WIDTH = 352, 1216
NYU_BORDER = (45, 472, 43, 608)
"""Rows 45 .. 471 and columns 43 .. 607: what is left of 480 x 640 without the sensor's white border."""


@dataclass(frozen=True)
class Augmentation:
    """What training does to a pair, in this order: rotation, crop, flip, colour.

    Attributes:
        degrees: largest rotation either way; images bilinear, depth nearest.
        crop: ``(height, width)`` of a random crop, or ``None``.
        flip: probability of a horizontal flip.
        colour: probability of a change of colour: gamma in [0.9, 1.1], brightness, a factor in [0.9, 1.1] a channel.
        brightness: half-width of the range of the brightness factor around 1: 0.25 (NYU) or 0.1 (KITTI).
    """

    degrees: float = 0.0
    crop: tuple[int, int] | None = None
    flip: float = 0.5
    colour: float = 0.5
    brightness: float = 0.1

    def __call__(self, image: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Change one pair, with torch's global random generator.

        Args:
            image: ``(3, height, width)`` uint8.
            depth: ``(height, width)`` float32, 0 where there is no value.

        Returns:
            ``(3, h, w)`` float32 in [0, 1], and ``(h, w)``.

        Raises:
            UserError: the pair is smaller than the crop.
        """
        if self.degrees:
            image, depth = rotate(image, depth, float(torch.empty(()).uniform_(-self.degrees, self.degrees)))
        pixels = image.to(torch.float32) / 255
        if self.crop is not None:
            pixels, depth = random_crop(pixels, depth, self.crop)
        if self.flip and float(torch.rand(())) < self.flip:
            pixels, depth = pixels.flip(-1), depth.flip(-1)
        if self.colour and float(torch.rand(())) < self.colour:
            gamma = float(torch.empty(()).uniform_(0.9, 1.1))
            bright = float(torch.empty(()).uniform_(1 - self.brightness, 1 + self.brightness))
            channels = torch.empty(3, 1, 1).uniform_(0.9, 1.1)
            pixels = (pixels**gamma * bright * channels).clamp(0, 1)
        return pixels.contiguous(), depth.contiguous()


def rotate(image: Tensor, depth: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """Rotate a pair about its centre: the image bilinearly, depth by the nearest pixel; 0 comes in from outside.

    Args:
        image: ``(3, height, width)``.
        depth: ``(height, width)``.
        degrees: counter-clockwise.
    """
    # Here, since torchvision loads torch's compiler, which nothing needs that only scores or predicts.
    from torchvision import tv_tensors
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as TF

    turned = TF.rotate(image, degrees, interpolation=InterpolationMode.BILINEAR, fill=[0.0])
    mask = TF.rotate(tv_tensors.Mask(depth[None]), degrees, interpolation=InterpolationMode.NEAREST, fill=[0.0])
    return turned, mask.as_subclass(Tensor)[0]


def random_crop(image: Tensor, depth: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The same random part of both.

    Raises:
        UserError: the pair is smaller than the part.
    """
    height, width = depth.shape
    if height < size[0] or width < size[1]:
        raise UserError(f"a pair of {height} x {width} pixels is smaller than the training crop {size[0]} x {size[1]}")
    top = int(torch.randint(height - size[0] + 1, ()))
    left = int(torch.randint(width - size[1] + 1, ()))
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    return image[..., rows, columns], depth[rows, columns]


def kb_box(height: int, width: int) -> tuple[int, int]:
    """Top and left of KITTI's benchmark crop of 352 x 1216, at the bottom centre.

    Raises:
        UserError: the frame is smaller.
    """
    if height < KB_HEIGHT or width < KB_WIDTH:
        raise UserError(
            f"a frame of {height} x {width} is smaller than KITTI's crop of {KB_HEIGHT} x {KB_WIDTH}: choose a "
            "protocol without it, or give frames of full size"
        )
    return height - KB_HEIGHT, int((width - KB_WIDTH) / 2)


def kb_crop(x: Tensor) -> Tensor:
    """KITTI's benchmark crop: ``(..., height, width)`` to ``(..., 352, 1216)``."""
    top, left = kb_box(x.shape[-2], x.shape[-1])
    return x[..., top : top + KB_HEIGHT, left : left + KB_WIDTH]


def kb_paste(x: Tensor, size: tuple[int, int], fill: float = 0.0) -> Tensor:
    """Put a cropped map back into a full frame: the inverse of ``kb_crop``, ``fill`` around it."""
    top, left = kb_box(*size)
    whole = x.new_full((*x.shape[:-2], *size), fill)
    whole[..., top : top + KB_HEIGHT, left : left + KB_WIDTH] = x
    return whole


def cut_border(x: Tensor, border: str) -> Tensor:
    """What both published recipes cut off before training.

    Args:
        x: ``(..., height, width)``.
        border: ``kitti`` (``kb_crop``), ``nyu`` (to 427 x 565) or ``none``.

    Raises:
        UserError: the border does not fit the size.
    """
    if border == "kitti":
        return kb_crop(x)
    if border == "nyu":
        if tuple(x.shape[-2:]) != (480, 640):
            raise UserError(f"NYU's border is that of frames of 480 x 640; got {x.shape[-2]} x {x.shape[-1]}")
        top, bottom, left, right = NYU_BORDER
        return x[..., top:bottom, left:right]
    return x
