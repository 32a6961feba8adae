"""A small set of image files in one tar archive, decoded into memory: nothing is unpacked to the disk."""

import io
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from tenfold.data.images import LabelledImages
from tenfold.errors import UserError

_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def load_image_archive(path: str | Path, split: str, *, size: int) -> LabelledImages:
    """One split of an archive with ``[.../]<split>/<class>/<image>``, such as ``clothing64.tar.gz``.

    Args:
        path: tar file, compressed or not.
        split: name of the split's folder, such as ``train``, ``validation``, ``test``.
        size: side to which the images are resized, in pixels.

    Raises:
        UserError: the archive is missing, damaged or cut short; the split is not in it or has fewer than two classes;
            or an image cannot be decoded.
    """
    from PIL import Image, UnidentifiedImageError

    pixels: list[np.ndarray] = []
    names: list[str] = []
    place = str(path)
    try:
        with tarfile.open(path) as archive:
            members = [m for m in archive if m.isfile() and PurePosixPath(m.name).suffix.lower() in _ENDINGS]
            for member in sorted(members, key=lambda m: m.name):
                parts = PurePosixPath(member.name).parts
                if len(parts) < 3 or parts[-3] != split:
                    continue
                place = f"{path}: {member.name}"
                content = archive.extractfile(member)
                assert content is not None  # a regular file
                with Image.open(io.BytesIO(content.read())) as image:
                    resized = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
                pixels.append(np.asarray(resized))
                names.append(parts[-2])
    except (OSError, EOFError, zlib.error, tarfile.TarError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UserError(f"cannot read {place}: {error}; it is missing, cut short or damaged") from error
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        raise UserError(f"{path} holds {len(classes)} classes of images under {split}/; it needs at least two")
    labels = torch.tensor([classes.index(name) for name in names], dtype=torch.int64)
    return LabelledImages(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), labels, classes)
