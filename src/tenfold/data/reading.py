"""The one reader of image files, and of arrays of images: everything that learns, measures or predicts reads here.

What a file becomes, whatever its format: eight bits of red, green and blue, upright.

=====================================  ===========================================================================
in the file                            what is read
=====================================  ===========================================================================
orientation in EXIF                    applied, so that a photo from a phone stands upright; none where the EXIF block
                                       is damaged
1 bit                                  0 and 255
16 bits (grey; PNG, PGM, TIFF)         the upper eight bits
palette, grey                          their colours; grey gives three equal channels
transparency (alpha, palette, key)     laid over white
CMYK, YCbCr, HSV                       Pillow's conversion, without colour profiles
several frames or pages                the first
32-bit integers, floats, CIE Lab       refused: they have no range, or no conversion, of their own
=====================================  ===========================================================================
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np

from tenfold.errors import UserError

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}

_ORIENTATION = 0x0112  # EXIF's tag
_SIXTEEN_BIT_FORMATS = {"PNG", "PPM"}  # whose mode "I" of Pillow means 16 bits by definition


def read_image(path: str | Path | IO[bytes], *, name: str | None = None) -> Any:
    """Decode an image file to an upright RGB PIL image, by the rules of this module.

    Args:
        path: the file, or an open one.
        name: what the message calls it; its path where ``None``.

    Raises:
        UserError: the file is missing, damaged or no image, or of a kind that is refused.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            turn = _transposition(image)
            converted = _to_rgb(image)
            return converted if turn is None else converted.transpose(turn)
    except Exception as error:  # a damaged file can fail in any way in any of the decoders
        raise UserError(f"cannot read the image {name or path}: {_reason(error)}") from error


def find_unreadable(paths: Iterable[Path], *, threads: int | None = None) -> dict[Path, str]:
    """Look at all image files, in parallel, and say which cannot be read, and why.

    Every file is decoded to its end, JPEG at an eighth of its size: enough to notice that one is cut short.

    Args:
        paths: image files.
        threads: how many decode at once; by default twice the cores, for much of it is waiting for the disk.
    """
    paths = list(paths)
    with ThreadPoolExecutor(threads or min(32, 2 * (os.cpu_count() or 1))) as pool:
        reasons = pool.map(_look_at, paths)
        return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}


def _look_at(path: Path) -> str:
    from PIL import Image

    try:
        with Image.open(path) as image:
            _require_range(image)
            image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
            image.load()
    except Exception as error:
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "it is damaged, or of a format that is not known here"
    if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
        return error.strerror or type(error).__name__
    return " ".join(str(error).split())[:120] or type(error).__name__


def _transposition(image: Any) -> Any:
    from PIL import Image

    how = Image.Transpose
    turns = {
        2: how.FLIP_LEFT_RIGHT,
        3: how.ROTATE_180,
        4: how.FLIP_TOP_BOTTOM,
        5: how.TRANSPOSE,
        6: how.ROTATE_270,
        7: how.TRANSVERSE,
        8: how.ROTATE_90,
    }
    try:
        return turns.get(image.getexif().get(_ORIENTATION))
    except Exception:  # the pixels may be whole nevertheless
        return None


def _require_range(image: Any) -> None:
    if image.mode == "F":
        raise UserError("floating-point pixels have no range of their own: save it with 8 or 16 bits")
    if image.mode == "I" and image.format not in _SIXTEEN_BIT_FORMATS:
        raise UserError("32-bit pixels have no range of their own: save it with 8 or 16 bits")


def _to_rgb(image: Any) -> Any:
    from PIL import Image

    _require_range(image)
    if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow would clip to white what is above 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        if image.mode == "La":
            image = image.convert("LA")
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def load_image_array(path: str | Path) -> np.ndarray:
    """A ``.npy`` file of images, mapped into memory; never unpickled.

    Raises:
        UserError: the file is missing, empty, damaged or shorter than it says, or holds objects.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header cannot ask for more than there is
    except (OSError, ValueError, EOFError, OverflowError, MemoryError, BadZipFile, SyntaxError, TypeError) as error:
        raise UserError(f"cannot read the array {path}: {_reason(error)}") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive of several arrays; save the images alone, with numpy.save")
    return array
