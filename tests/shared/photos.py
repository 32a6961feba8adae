"""A stranger's photos: 200 files of mixed sizes, formats, modes and orientations, one of them broken.

Three classes that only an upright reading tells apart: ``top`` is light above, ``left`` is light on the left, ``even``
is light all over. Read by the rules of ``tenfold.data.reading``, every file but the broken one shows its class.
"""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("even", "left", "top")
PHOTOS = 200
BROKEN = "top/photo197.jpg"

_SIZES = ((40, 120), (120, 40), (64, 64), (33, 47), (90, 60))
_KINDS = ("jpg", "turned", "rgba", "palette", "grey", "grey16", "one-bit", "cmyk", "la", "webp")
# EXIF orientation: how the file's pixels are turned so that applying the orientation gives them back.
_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def scene(label: int, width: int, height: int, generator: np.random.Generator) -> np.ndarray:
    """Upright grey pixels ``(height, width)`` of a class, with noise."""
    pixels = np.full((height, width), 60.0)
    light = {0: np.s_[:, :], 1: np.s_[:, : width // 2], 2: np.s_[: height // 2, :]}[label]
    pixels[light] = 190
    return np.clip(pixels + generator.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)


def save_as(kind: str, pixels: np.ndarray, stem: Path, number: int) -> Path:
    """Write a scene as one kind of file; all kinds show the same scene."""
    grey = Image.fromarray(pixels)
    if kind == "turned":
        orientation = number // len(_KINDS) % 8 + 1
        turn = _STORED[orientation]
        stored = grey.convert("RGB") if turn is None else grey.convert("RGB").transpose(turn)
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.save(path := stem.with_suffix(".jpg"), exif=exif, quality=92)
    elif kind == "rgba":  # black ink whose absence is light: it shows over white only
        ink = np.zeros((*pixels.shape, 4), np.uint8)
        ink[..., 3] = 255 - pixels
        Image.fromarray(ink).save(path := stem.with_suffix(".png"))
    elif kind == "palette":
        grey.convert("RGB").quantize(16).save(path := stem.with_suffix(".gif"))
    elif kind == "grey16":
        Image.fromarray(pixels.astype(np.uint16) * 257).save(path := stem.with_suffix(".png"))
    elif kind == "one-bit":
        grey.convert("1").save(path := stem.with_suffix(".png"))
    elif kind == "cmyk":
        grey.convert("RGB").convert("CMYK").save(path := stem.with_suffix(".tif"))
    elif kind == "la":
        grey.convert("LA").save(path := stem.with_suffix(".png"))
    elif kind == "grey":
        grey.save(path := stem.with_suffix(".PNG"))
    else:
        grey.convert("RGB").save(path := stem.with_suffix(f".{kind}"), quality=92)
    return path


def make_photos(folder: Path) -> Path:
    """Write the photos in a folder per class, with a text file and a hidden file beside them."""
    generator = np.random.default_rng(0)
    for number in range(PHOTOS):
        label = number % len(CLASSES)
        place = folder / CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        width, height = _SIZES[number % len(_SIZES)]
        kind = "jpg" if f"photo{number}" in BROKEN else _KINDS[number // 3 % len(_KINDS)]
        save_as(kind, scene(label, width, height, generator), place / f"photo{number}", number)
    broken = folder / BROKEN
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    (folder / "even" / "notes.txt").write_text("bought in March")
    (folder / "even" / "._photo0.jpg").write_bytes(b"\x00\x05\x16\x07")
    return folder
