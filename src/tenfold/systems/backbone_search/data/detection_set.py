"""Images with boxes, however they were stored: what every reader here gives."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.data import read_image
from tenfold.errors import UserError
from tenfold.files import regular

PIXELS_AT_MOST = 2**28
"""Of one image; larger ones are refused before they are unpacked."""


@dataclass(frozen=True)
class Boxes:
    """What is in one image.

    Attributes:
        corners: ``(n, 4)`` float32 x1, y1, x2, y2 in pixels of the image, 0-based, right and bottom edges exclusive.
        labels: ``(n,)`` int64 class indices.
        crowd: ``(n,)`` bool: a region (COCO's ``iscrowd``) or a difficult object (VOC): not learnt, not counted.
        areas: ``(n,)`` float32 areas by which COCO sorts sizes.
    """

    corners: Tensor
    labels: Tensor
    crowd: Tensor
    areas: Tensor

    @classmethod
    def of(
        cls, corners: Sequence[Sequence[float]], labels: Sequence[int], crowd: Sequence[bool], areas: Sequence[float]
    ) -> "Boxes":
        """Boxes from plain lists."""
        return cls(
            torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor(crowd, dtype=torch.bool),
            torch.tensor(areas, dtype=torch.float32),
        )


@dataclass
class DetectionSet:
    """Images and their boxes.

    Attributes:
        name: for messages.
        files: image files; or arrays ``(height, width, 3)`` uint8 RGB of images that were drawn.
        sizes: height and width of every image, as its record says.
        boxes: of every image.
        classes: names of the classes.
        category_ids: id of every class in the source, to which results are mapped back.
        image_ids: id of every image in the source.
        notes: what was left out or cleaned, with numbers.
    """

    name: str
    files: list[Path] | list[np.ndarray]
    sizes: list[tuple[int, int]]
    boxes: list[Boxes]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: list[int | str]
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def count(self) -> int:
        """Boxes in all that are learnt and counted."""
        return sum(int((~boxes.crowd).sum()) for boxes in self.boxes)

    def subset(self, rows: Sequence[int], name: str) -> "DetectionSet":
        """Some of the images under another name; notes stay with the whole."""
        return DetectionSet(
            name,
            [self.files[row] for row in rows],  # type: ignore[arg-type]
            [self.sizes[row] for row in rows],
            [self.boxes[row] for row in rows],
            self.classes,
            self.category_ids,
            [self.image_ids[row] for row in rows],
        )

    def place(self, row: int) -> str:
        """How messages name an image."""
        found = self.files[row]
        return str(found) if isinstance(found, Path) else f"image {self.image_ids[row]} of {self.name}"

    def image(self, row: int) -> np.ndarray:
        """An image as ``(height, width, 3)`` uint8 RGB, turned as it is shown.

        Raises:
            UserError: the file is missing, damaged, too large, or of another size than its record says.
        """
        found = self.files[row]
        pixels = read_rgb(found) if isinstance(found, Path) else found
        if pixels.shape[:2] != self.sizes[row]:
            (height, width), (rows, columns) = self.sizes[row], pixels.shape[:2]
            raise UserError(
                f"{self.place(row)} is {columns} x {rows} pixels, but its record says {width} x {height}: its boxes "
                "would be in the wrong places; tenfold backbone-search doctor lists all such images"
            )
        return pixels

    def digests(self) -> list[str]:
        """SHA-256 of every image's file, or of its pixels."""

        def digest(found: Path | np.ndarray) -> str:
            content = read_bytes(found) if isinstance(found, Path) else found.tobytes()
            return hashlib.sha256(content).hexdigest()

        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(digest, self.files))

    def to_coco(self) -> dict[str, Any]:
        """The records as COCO's JSON, with the source's category ids and images numbered from 1."""
        annotations: list[dict[str, Any]] = []
        for row, boxes in enumerate(self.boxes):
            low, sides = boxes.corners[:, :2], boxes.corners[:, 2:] - boxes.corners[:, :2]
            for box, label, crowd, area in zip(
                torch.cat([low, sides], 1).tolist(), boxes.labels.tolist(), boxes.crowd.tolist(), boxes.areas.tolist(),
                strict=True,
            ):  # fmt: skip
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": row + 1,
                        "category_id": self.category_ids[label],
                        "bbox": box,
                        "area": area,
                        "iscrowd": int(crowd),
                    }
                )
        images = [
            {"id": row + 1, "file_name": Path(str(self.place(row))).name, "height": height, "width": width}
            for row, (height, width) in enumerate(self.sizes)
        ]
        categories = [{"id": id, "name": name} for id, name in zip(self.category_ids, self.classes, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, or one line that says why not."""
    try:
        return regular(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def read_rgb(path: str | Path) -> np.ndarray:
    """An image file as ``(height, width, 3)`` uint8 RGB, upright; see ``tenfold.data.reading`` for kinds of pixels.

    Raises:
        UserError: the file is missing, damaged, cut short, or has more than ``PIXELS_AT_MOST`` pixels.
    """
    height, width = image_size(Path(path))
    if height * width > PIXELS_AT_MOST:
        raise UserError(f"{path} has {width} x {height} pixels; at most {PIXELS_AT_MOST:,} are read")
    return np.asarray(read_image(path))


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as it is shown, from its header alone.

    Raises:
        UserError: the file is missing or no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:
        raise UserError(f"cannot read the image {path}: {' '.join(str(error).split())[:160]}") from error


def cleaned(corners: list[list[float]], size: tuple[int, int]) -> tuple[list[list[float]], list[int], dict[str, int]]:
    """Boxes cut at the image's edges, without those that nothing is left of (as YOLOX's reader does).

    Args:
        corners: x1, y1, x2, y2 of each box.
        size: height and width.

    Returns:
        The boxes, the number that each had before, and how many were ``cut`` and ``dropped``.
    """
    height, width = size
    kept, rows, counts = [], [], {"cut": 0, "dropped": 0}
    for row, (x1, y1, x2, y2) in enumerate(corners):
        box = [max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2)]
        if box[2] <= box[0] or box[3] <= box[1]:
            counts["dropped"] += 1
            continue
        counts["cut"] += box != [x1, y1, x2, y2]
        kept.append(box)
        rows.append(row)
    return kept, rows, counts


def cleaning_notes(name: str, counts: dict[str, int]) -> list[str]:
    """What cleaning did, in words; nothing where it did nothing."""
    words = {
        "cut": "boxes reached beyond their image and were cut at its edge",
        "dropped": "boxes had no extent inside their image and were left out",
    }
    return [f"{name}: {counts[kind]} {text}." for kind, text in words.items() if counts.get(kind)]
