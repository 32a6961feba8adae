"""``calibrate``: metric scale from one or a few measured distances, kept with the model."""

import csv
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tenfold.errors import UserError
from tenfold.files import inside, write_atomically
from tenfold.models.folder import MANIFEST
from tenfold.systems.full_skip_depth.cli.predicting import camera_of, depth_of_photo
from tenfold.systems.full_skip_depth.delivery.models import load_network
from tenfold.systems.full_skip_depth.scoring.calibration import calibrate as solve
from tenfold.systems.full_skip_depth.sets.frames import read_photo


def calibrate(
    run: str,
    *,
    distances: str,
    kind: Literal["scale", "scale-shift"] = "scale",
    intrinsics: list[float] | None = None,
    save: bool = False,
) -> dict[str, Any]:
    """Find the scale (and shift) that bring a run's depths to distances measured by hand.

    Args:
        run: folder of the run.
        distances: CSV file with the columns image, x, y, metres: a photo (within the file's folder), a pixel of it, and
            how far what is seen there is. One row is enough for a scale.
        kind: scale, or scale-shift (two rows or more).
        intrinsics: [fx, fy, cx, cy] or [f] in pixels: distances are then those of a tape from the camera; without them,
            distances along the optical axis.
        save: keep the calibration in model.json, for predict, evaluate and export.
    """
    network, manifest = load_network(run)
    rows = _rows(Path(distances))
    predicted, measured = [], []
    photos: dict[Path, tuple[np.ndarray, tuple[int, int]]] = {}
    for path, x, y, metres, where in rows:
        if path not in photos:
            image = read_photo(path)
            camera = camera_of(intrinsics, image.shape[1:])
            depth = depth_of_photo(
                network, image, manifest.extra.get("image_size"), camera[0] if camera else None, False
            )
            photos[path] = depth, (image.shape[1], image.shape[2])
        depth, (height, width) = photos[path]
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"{where}: the pixel ({x:g}, {y:g}) is not in the {width} x {height} photo {path.name}")
        u, v = int(x), int(y)
        around = depth[max(0, v - 2) : v + 3, max(0, u - 2) : u + 3]
        camera = camera_of(intrinsics, (height, width))
        if camera is not None:  # a tape measures along the ray, depth is along the optical axis
            metres /= math.hypot(1.0, (x - camera[2]) / camera[0], (y - camera[3]) / camera[1])
        predicted.append(float(np.median(around)))
        measured.append(metres)
    found = solve(predicted, measured, kind)
    if save:
        updated = manifest.model_copy(update={"extra": manifest.extra | {"calibration": found.to_dict()}})
        write_atomically(Path(run) / MANIFEST, updated.model_dump_json(indent=1) + "\n")
    return found.to_dict() | {
        "predicted_before": [round(value, 4) for value in predicted],
        "along_axis": [round(value, 4) for value in measured],
        "saved": save,
    }


def _rows(path: Path) -> list[tuple[Path, float, float, float, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            wanted = ("image", "x", "y", "metres")
            if not set(wanted) <= set(reader.fieldnames or ()):
                raise UserError(f"{path} needs the columns image, x, y, metres; it has {reader.fieldnames or 'none'}")
            rows = []
            for number, row in enumerate(reader, 2):
                where = f"{path}, line {number}"
                try:
                    x, y, metres = (float(row[name]) for name in wanted[1:])
                except (TypeError, ValueError) as error:
                    raise UserError(f"{where}: x, y and metres must be numbers") from error
                if not (math.isfinite(metres) and metres > 0):
                    raise UserError(f"{where}: the distance must lie above 0 metres; got {metres}")
                rows.append((inside(path.parent, row["image"] or ""), x, y, metres, where))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not rows:
        raise UserError(f"{path} holds no distances")
    return rows
