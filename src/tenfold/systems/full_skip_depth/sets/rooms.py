"""Rooms with boxes, rendered by ray casting: colour images with exact depth, made in seconds, for tests and demos."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FOCAL_OF_WIDTH = 0.8
"""Focal length of the rooms' camera as a share of the image's width."""
NEAREST, FARTHEST = 0.3, 10.0
_AT_ONCE = 4  # images: their rays with all boxes stay in a processor's cache


@dataclass(frozen=True)
class Rooms:
    """Rendered rooms.

    Attributes:
        images: ``(n, 3, height, width)`` uint8.
        depths: ``(n, height, width)`` float32 metres along the optical axis, in [0.3, 10].
        focal: focal length in pixels.
    """

    images: Tensor
    depths: Tensor
    focal: float


def render_rooms(
    images: int, *, height: int = 72, width: int = 96, boxes: int = 14, thin: bool = True, seed: int = 0
) -> Rooms:
    """Render rooms by the slab test: the far side of the room's box and the near side of boxes in it.

    A room is 3 to 8 m wide, its far wall 3 to 8.5 m away; the camera is 1.2 to 1.6 m above the floor, turned by up to
    0.45 rad and tilted by up to 0.15 rad. Every object and axis has its colour and a checker texture in space, shaded
    by axis, with 3 % noise.

    Args:
        images: number of rooms.
        height: of an image.
        width: of an image.
        boxes: in a room, at least 1; three quarters stand on the floor.
        thin: boxes of 0.06 to 0.56 m and 0.1 to 1.7 m height, most of them thin; else of 0.25 to 1.15 m.
        seed: of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    part = max(1, 64 * 72 * 96 // (height * width))  # so many at a time that memory stays below a few hundred MiB
    starts = range(0, images, part)
    made = [_render(min(part, images - start), height, width, boxes, thin, generator) for start in starts]
    pixels, depths = (torch.cat(parts) for parts in zip(*made, strict=True))
    return Rooms(pixels, depths, FOCAL_OF_WIDTH * width)


def _render(
    n: int, height: int, width: int, boxes: int, thin: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    # Camera axes: x right, y down, z forward. Positions are relative to the camera.
    half, floor, far = uniform(1.5, 4, n), uniform(1.2, 1.6, n), uniform(3, 8.5, n)
    ceiling = floor - uniform(2.4, 3.2, n)
    room_low = torch.stack([-half, ceiling, torch.full((n,), -2.0)], 1)
    room_high = torch.stack([half, floor, far], 1)
    low, high = _boxes(n, boxes, thin, half, floor, far, uniform)

    direction = _rays(n, height, width, uniform(-0.45, 0.45, n), uniform(-0.15, 0.15, n))
    inverse = 1 / torch.where(direction.abs() < 1e-6, 1e-6, direction)  # (n, 3, pixels)

    leave = torch.maximum(room_low[:, :, None] * inverse, room_high[:, :, None] * inverse)  # (n, 3, pixels)
    room_t, room_axis = leave.min(1)
    few = zip(*(x.split(_AT_ONCE) for x in (low, high, inverse)), strict=True)
    box_t, box, box_axis = (torch.cat(parts) for parts in zip(*(_nearest_boxes(*part) for part in few), strict=True))
    hit = box_t < room_t
    t = torch.where(hit, box_t, room_t)
    depth = t.clamp(NEAREST, FARTHEST).view(n, height, width)

    # Object 0 is the room, whose two sides of an axis have colours of their own.
    side = (direction.gather(1, room_axis[:, None])[:, 0] > 0).long()
    surface = torch.where(hit, 6 + 3 * box + box_axis, 2 * room_axis + side)
    surfaces = 6 + 3 * boxes
    colours = uniform(0.15, 0.95, n, surfaces, 3)
    frequency = uniform(1.5, 7, n, surfaces)
    contrast = uniform(0.0, 0.35, n, surfaces)
    point = direction * t[:, None]
    checker = (point * frequency.gather(1, surface)[:, None]).floor().sum(1).remainder(2)
    shade = torch.tensor([0.8, 1.0, 0.65])[torch.where(hit, box_axis, room_axis)]
    tone = shade * (1 - contrast.gather(1, surface) * checker)
    image = colours.gather(1, surface[..., None].expand(-1, -1, 3)) * tone[..., None]
    image = image + 0.03 * torch.randn(image.shape, generator=generator)
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 1)
    return pixels.reshape(n, 3, height, width), depth


def _nearest_boxes(low: Tensor, high: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every ray: where it enters the nearest box (infinite: none), that box, and the axis of the side it enters by.

    Args:
        low: ``(n, boxes, 3)`` lowest corners.
        high: ``(n, boxes, 3)`` highest corners.
        inverse: ``(n, 3, pixels)`` 1 over the rays' directions.
    """
    first, second = low[..., None] * inverse[:, None], high[..., None] * inverse[:, None]  # (n, boxes, 3, pixels)
    near, far = torch.minimum(first, second), torch.maximum(first, second)
    enter = torch.maximum(torch.maximum(near[:, :, 0], near[:, :, 1]), near[:, :, 2])
    out = torch.minimum(torch.minimum(far[:, :, 0], far[:, :, 1]), far[:, :, 2])
    found, box = torch.where((out > enter) & (enter > 0.05), enter, torch.inf).min(1)
    sides = near.gather(1, box[:, None, None].expand(-1, 1, 3, -1))[:, 0]
    return found, box, sides.argmax(1)


def _boxes(
    n: int,
    boxes: int,
    thin: bool,
    half: Tensor,
    floor: Tensor,
    far: Tensor,
    uniform: Callable[..., Tensor],
) -> tuple[Tensor, Tensor]:
    """Lowest and highest corners ``(n, boxes, 3)``."""
    if thin:
        sides = 0.06 + 0.5 * uniform(0, 1, n, boxes, 2).square()
        tall = 0.1 + 1.6 * uniform(0, 1, n, boxes).square()
    else:
        sides, tall = uniform(0.25, 1.15, n, boxes, 2), uniform(0.25, 1.15, n, boxes)
    x = uniform(-1, 1, n, boxes) * half[:, None]
    z = 1.2 + uniform(0, 1, n, boxes) * (far[:, None] - 1.2)
    lifted = torch.where(uniform(0, 1, n, boxes) < 0.75, 0.0, 1.6 * uniform(0, 1, n, boxes))
    bottom = floor[:, None] - lifted
    low = torch.stack([x - sides[..., 0] / 2, bottom - tall, z - sides[..., 1] / 2], 2)
    high = torch.stack([x + sides[..., 0] / 2, bottom, z + sides[..., 1] / 2], 2)
    return low, high


def _rays(n: int, height: int, width: int, yaw: Tensor, pitch: Tensor) -> Tensor:
    """Rays of depth 1 in the room's axes: ``(n, 3, pixels)``."""
    focal = FOCAL_OF_WIDTH * width
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rays = torch.stack([(u - (width - 1) / 2) / focal, (v - (height - 1) / 2) / focal, torch.ones(height, width)])
    rays = rays.view(3, -1)
    cy, sy, cp, sp = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin()
    zero, one = torch.zeros(n), torch.ones(n)
    turn = torch.stack([cy, zero, sy, zero, one, zero, -sy, zero, cy], 1).view(n, 3, 3)
    tilt = torch.stack([one, zero, zero, zero, cp, -sp, zero, sp, cp], 1).view(n, 3, 3)
    return turn @ tilt @ rays
