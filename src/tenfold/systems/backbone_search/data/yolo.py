"""YOLO folders: ``images/SPLIT``, ``labels/SPLIT`` with lines ``class cx cy w h`` (shares of 1), ``data.yaml``."""

from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from tenfold.errors import UserError
from tenfold.files import regular
from tenfold.systems.backbone_search.data.detection_set import (
    Boxes,
    DetectionSet,
    cleaned,
    cleaning_notes,
    image_size,
)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def read_yolo(root: str | Path, split: str) -> DetectionSet:
    """Read a split of a YOLO folder.

    An image without a label file, or with an empty one, has no boxes.

    Args:
        root: the folder with ``data.yaml``, ``images`` and ``labels``.
        split: a folder in both, such as ``train``; or ``.`` where there is only one.

    Raises:
        UserError: a file is missing or damaged, a line is no box, a class is not among the names, or there are no
        boxes.
    """
    root = Path(root)
    names = _names(root / "data.yaml")
    places = [(root / "images" / split, root / "labels" / split), (root / split / "images", root / split / "labels")]
    folder, labels = next((pair for pair in places if pair[0].is_dir()), places[0])
    if not folder.is_dir():
        raise UserError(f"{root} has no split {split!r}: neither {places[0][0]} nor {places[1][0]} is there")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{folder} holds no image")
    sizes, boxes, total = [], [], {"cut": 0, "dropped": 0}
    for path in files:
        size = image_size(path)
        corners, kinds = _lines(labels / f"{path.stem}.txt", size, len(names))
        kept, numbers, counts = cleaned(corners, size)
        total = {kind: total[kind] + counts[kind] for kind in total}
        areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in kept]
        boxes.append(Boxes.of(kept, [kinds[n] for n in numbers], [False] * len(kept), areas))
        sizes.append(size)
    read = DetectionSet(
        f"{root.name}/{split}", files, sizes, boxes, names, tuple(range(len(names))), [p.stem for p in files],
        cleaning_notes(f"{root.name} {split}", total),
    )  # fmt: skip
    if read.count == 0:
        raise UserError(f"no image of {folder} has a box in {labels}: are the label files there?")
    return read


def _names(path: Path) -> tuple[str, ...]:
    try:
        content: Any = yaml.safe_load(regular(path).read_text(encoding="utf-8"))
        names = content["names"]
        ordered = [names[number] for number in sorted(names)] if isinstance(names, dict) else list(names)
    except OSError as error:
        raise UserError(f"cannot read {path}, which names the classes: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} names no classes: it needs a list, or numbers and names, under 'names'") from error
    if not ordered or (isinstance(names, dict) and sorted(names) != list(range(len(names)))):
        raise UserError(f"{path}: the classes must be numbered from 0 without gaps")
    return tuple(str(name) for name in ordered)


def _lines(path: Path, size: tuple[int, int], classes: int) -> tuple[list[list[float]], list[int]]:
    if not path.exists():
        return [], []
    try:
        text = regular(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    height, width = size
    corners, kinds = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            kind, cx, cy, w, h = (float(value) for value in line.split())
            if not all(map(isfinite, (kind, cx, cy, w, h))) or kind != int(kind):
                raise ValueError
        except ValueError:
            raise UserError(f"{path}, line {number}: expected 'class cx cy w h', found {line.strip()[:60]!r}") from None
        if not 0 <= kind < classes:
            raise UserError(f"{path}, line {number}: class {int(kind)}, but data.yaml names 0 to {classes - 1}")
        if max(cx, cy, w, h) > 2:
            raise UserError(f"{path}, line {number}: {line.strip()[:60]!r} is in pixels; YOLO's boxes are shares of 1")
        corners.append([(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height])
        kinds.append(int(kind))
    return corners, kinds
