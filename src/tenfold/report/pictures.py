"""Pictures for the report page: grids of small images, one PNG file each."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from tenfold.errors import UserError
from tenfold.results import Picture

_INK, _SOFT, _PAPER = (28, 34, 38), (200, 200, 196), (255, 255, 255)
_TEXT = 13
_SIDE = 64


def picture(id: str, title: str, png: bytes, *, alt: str, caption: str = "") -> Picture:
    """A picture of the results from a PNG file's bytes.

    Args:
        id: short name, unique within the run.
        title: what it shows.
        png: the file, such as ``image_grid`` makes.
        alt: what is to be seen, for those who do not see it.
        caption: how to read it.
    """
    return Picture(id=id, title=title, data=base64.b64encode(png).decode("ascii"), alt=alt, caption=caption)


def image_grid(
    images: ArrayLike | Tensor,
    *,
    columns: int | None = None,
    scale: int | None = None,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
) -> bytes:
    """Draw small images in rows, every pixel a square of its own.

    Args:
        images: ``(n, channels, height, width)``, a tensor or an array, uint8 or floating point in [0, 1]; what lies
            beyond is drawn as black or white. One channel is grey, three are red, green and blue, of any other number
            the mean is drawn.
        columns: images a row; about a square where ``None``.
        scale: side of the square that a pixel becomes; where ``None``, such that an image is about 64 wide.
        row_names: texts before the rows.
        column_names: texts above the columns.

    Returns:
        The PNG file.

    Raises:
        UserError: there are no images, they hold NaN, or there are more names than rows or columns.
    """
    from PIL import Image, ImageDraw, ImageFont

    pixels = _bytes_of(images)
    n, height, width = pixels.shape[:3]
    columns = round(n**0.5) if columns is None else columns
    scale = max(1, round(_SIDE / max(height, width))) if scale is None else scale
    if columns < 1 or scale < 1:
        raise UserError(f"a grid needs at least one column and a scale of at least 1; got {columns} and {scale}")
    columns = min(columns, n)
    rows = -(-n // columns)
    if len(row_names) > rows or len(column_names) > columns:
        raise UserError(
            f"{len(row_names)} names of rows and {len(column_names)} of columns for {rows} x {columns} images"
        )
    gap = max(2, scale // 2)
    font = ImageFont.load_default(_TEXT)
    cell = max([width * scale, *(round(font.getlength(name)) + 4 for name in column_names)])
    step_x, step_y = cell + gap, height * scale + gap
    left = gap + max((round(font.getlength(name)) + 2 * gap + 4 for name in row_names), default=0)
    top = gap + (_TEXT + 6 if column_names else 0)
    sheet = Image.new("RGB", (left + columns * step_x, top + rows * step_y), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(row_names):
        draw.text((left - gap - 4, top + row * step_y + height * scale // 2), name, fill=_INK, font=font, anchor="rm")
    for column, name in enumerate(column_names):
        draw.text((left + column * step_x + cell // 2, top - 4), name, fill=_INK, font=font, anchor="mb")
    for index, image in enumerate(pixels):
        row, column = divmod(index, columns)
        x, y = left + column * step_x + (cell - width * scale) // 2, top + row * step_y
        drawn = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        # A hair line keeps white images apart from the paper.
        draw.rectangle((x - 1, y - 1, x + width * scale, y + height * scale), outline=_SOFT)
        sheet.paste(drawn, (x, y))
    content = io.BytesIO()
    sheet.save(content, "PNG", optimize=True)
    return content.getvalue()


def _bytes_of(images: ArrayLike | Tensor) -> np.ndarray:
    """uint8 ``(n, height, width, 3)``."""
    pixels = np.asarray(images.detach().cpu() if isinstance(images, Tensor) else images)
    if pixels.ndim != 4 or 0 in pixels.shape:
        raise UserError(f"images must be (n, channels, height, width), at least one; got {pixels.shape}")
    if pixels.dtype != np.uint8:
        if not np.isfinite(pixels).all():
            raise UserError("images hold NaN or infinite values")
        pixels = np.rint(np.clip(pixels.astype(np.float64), 0, 1) * 255).astype(np.uint8)
    if pixels.shape[1] != 3:
        pixels = np.rint(pixels.mean(1, keepdims=True)).astype(np.uint8).repeat(3, axis=1)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
