"""Boxes drawn: from above, and in the images of all cameras."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tenfold.systems.cross_modal_detector.geometry.boxes import EDGES, corners_of
from tenfold.systems.cross_modal_detector.geometry.poses import project

_TRUE, _FOUND = (30, 140, 60), (210, 60, 30)
_PAPER, _POINT, _INK = (255, 255, 255), (150, 160, 170), (28, 34, 38)
_NEAR = 0.1


def draw_from_above(
    points: NDArray | None,
    found: NDArray,
    scores: NDArray,
    truth: NDArray | None = None,
    *,
    area: Sequence[float],
    side: int = 420,
    title: str = "",
) -> NDArray[np.uint8]:
    """Points, found boxes (red, fainter where the score is low) and true ones (green) from above.

    Args:
        points: ``(n, 3 or more)``, or ``None``.
        found: ``(n, 9)``.
        scores: ``(n,)``.
        truth: ``(n, 9)``, or ``None``.
        area: the range.
        side: pixels.
        title: written into the corner.

    Returns:
        ``(side, side, 3)``; x to the right, y up.
    """
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (side, side), _PAPER)
    draw = ImageDraw.Draw(picture)
    scale = side / max(area[3] - area[0], area[4] - area[1])

    def pixels(xy: NDArray) -> NDArray:
        return np.stack([(xy[..., 0] - area[0]) * scale, side - (xy[..., 1] - area[1]) * scale], -1)

    if points is not None and len(points):
        for u, v in pixels(points[:: max(1, len(points) // 6000), :2]):
            draw.point((u, v), fill=_POINT)
    for boxes, strength, colour in ((truth, None, _TRUE), (found, scores, _FOUND)):
        if boxes is None or not len(boxes):
            continue
        for n, corners in enumerate(pixels(corners_of(boxes)[:, ::2, :2])):
            share = 1.0 if strength is None else 0.25 + 0.75 * float(strength[n])
            ink = tuple(round(255 + (c - 255) * share) for c in colour)
            outline = [tuple(corners[k]) for k in (0, 1, 3, 2, 0)]
            draw.line(outline, fill=ink, width=2)
            front = (corners[2] + corners[3]) / 2
            draw.line([tuple(corners.mean(0)), tuple(front)], fill=ink, width=2)
    middle = pixels(np.zeros(2))
    draw.ellipse((*(middle - 3), *(middle + 3)), fill=_INK)
    if title:
        draw.text((6, 4), title, fill=_INK)
    return np.asarray(picture)


def draw_in_image(
    image: NDArray,
    lidar2img: NDArray,
    found: NDArray,
    scores: NDArray,
    truth: NDArray | None = None,
    *,
    scale: int = 1,
) -> NDArray[np.uint8]:
    """An image with the edges of boxes; what lies behind the camera is cut off.

    Args:
        image: ``(height, width, 3)`` in [0, 255].
        lidar2img: ``(4, 4)`` to the pixels of this image.
        found: ``(n, 9)``.
        scores: ``(n,)``.
        truth: ``(n, 9)``, or ``None``.
        scale: each pixel becomes a square of this side.
    """
    from PIL import Image, ImageDraw

    height, width = image.shape[:2]
    picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).resize(
        (width * scale, height * scale), Image.Resampling.NEAREST
    )
    draw = ImageDraw.Draw(picture)
    for boxes, strength, colour in ((truth, None, _TRUE), (found, scores, _FOUND)):
        if boxes is None or not len(boxes):
            continue
        for n, corners in enumerate(corners_of(boxes)):
            if strength is not None and strength[n] < 0.05:
                continue
            for first, second in EDGES:
                line = _visible(corners[first], corners[second], lidar2img)
                if line is not None:
                    draw.line([tuple(line[0] * scale), tuple(line[1] * scale)], fill=colour, width=max(1, scale // 2))
    return np.asarray(picture)


def _visible(first: NDArray, second: NDArray, lidar2img: NDArray) -> tuple[NDArray, NDArray] | None:
    """Pixels of the part of a line that lies before the camera."""
    ends = np.stack([first, second])
    depth = (ends @ lidar2img[:3, :3].T + lidar2img[:3, 3])[:, 2]
    if depth.max() < _NEAR:
        return None
    if depth.min() < _NEAR:
        share = (_NEAR - depth[0]) / (depth[1] - depth[0])
        ends[int(depth.argmin())] = first + share * (second - first)
    pixels, _ = project(ends, lidar2img)
    if not np.isfinite(pixels).all() or np.abs(pixels).max() > 1e5:
        return None
    return pixels[0], pixels[1]


def tile(images: Sequence[NDArray], columns: int, gap: int = 4) -> NDArray[np.uint8]:
    """Images of one size side by side in rows."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for n, image in enumerate(images):
        top, left = n // columns * (height + gap), n % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    return content.getvalue()
