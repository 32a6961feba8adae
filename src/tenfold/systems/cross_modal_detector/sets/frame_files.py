"""Frames as a JSON or Parquet file beside the sensors' files: the format of a rig of one's own.

    {"format": "tenfold-frames-1",
     "frames": [{"token": "000", "timestamp": 0.0, "scene": "drive",
                 "points": "lidar/000.bin",
                 "cameras": [{"name": "front", "image": "front/000.jpg", "intrinsics": [[...]], "lidar2cam": [[...]]}],
                 "boxes": [[x, y, z, l, w, h, yaw, vx, vy]], "names": ["car"]}]}

Names of files are relative to the file and stay below its folder.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.errors import UserError, require
from tenfold.files import atomic_path, inside, printable, read_json, write_atomically
from tenfold.systems.cross_modal_detector.geometry.boxes import BOX_SIZE
from tenfold.systems.cross_modal_detector.sets.frames import CameraView, Frame, Sweep, check_frame

FORMAT = "tenfold-frames-1"


def write_frames(path: str | Path, frames: Sequence[Frame]) -> None:
    """Write frames whose sensors are files below the folder of ``path``; ``.parquet`` or JSON.

    Args:
        path: ``.json`` or ``.parquet``.
        frames: to write.

    Raises:
        UserError: a sensor's data are no file, or lie outside the folder.
    """
    path = Path(path)
    rows = [_to_row(frame, path.parent) for frame in frames]
    if path.suffix == ".parquet":
        arrow, parquet = require("pyarrow", "tables"), require("pyarrow.parquet", "tables")
        columns = {"token": [row["token"] for row in rows], "frame": [json.dumps(row) for row in rows]}
        table = arrow.table(columns).replace_schema_metadata({"format": FORMAT})
        with atomic_path(path) as temporary:
            parquet.write_table(table, temporary)
        return
    write_atomically(path, json.dumps({"format": FORMAT, "frames": rows}))


def read_frames(path: str | Path) -> list[Frame]:
    """Read frames.

    Args:
        path: ``.json`` or ``.parquet``; its sensors lie below its folder.

    Raises:
        UserError: the file is not such a one, names a file outside its folder, or holds calibrations or boxes that
            cannot be.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        arrow, parquet = require("pyarrow", "tables"), require("pyarrow.parquet", "tables")
        try:
            rows = [json.loads(text) for text in parquet.read_table(path, columns=["frame"])["frame"].to_pylist()]
        except (OSError, ValueError, TypeError, KeyError, arrow.ArrowException) as error:
            raise UserError(f"{printable(path)} is damaged or no Parquet file of frames") from error
    else:
        content = read_json(path, 2**32)
        if (
            not isinstance(content, dict)
            or content.get("format") != FORMAT
            or not isinstance(content.get("frames"), list)
        ):
            raise UserError(
                f"{printable(path)} is no file of frames: a mapping with format {FORMAT!r} and frames is expected"
            )
        rows = content["frames"]
    if not rows:
        raise UserError(f"{printable(path)} holds no frames")
    frames = [_from_row(row, path.parent, f"{printable(path)}: frame {n}") for n, row in enumerate(rows)]
    twice = len(frames) - len({frame.token for frame in frames})
    if twice:
        raise UserError(f"{printable(path)}: {twice} tokens are used twice; each frame needs one of its own")
    return frames


def _to_row(frame: Frame, folder: Path) -> dict[str, Any]:
    def name_of(source: Any) -> str | None:
        if source is None:
            return None
        if not isinstance(source, Path):
            raise UserError(f"frame {frame.token} holds arrays, not files: write its points and images to files first")
        try:
            return source.resolve().relative_to(folder.resolve()).as_posix()
        except ValueError as error:
            raise UserError(f"{source} does not lie below {folder}, where the frames are to be written") from error

    return {
        "token": frame.token,
        "scene": frame.scene,
        "timestamp": frame.timestamp,
        "points": name_of(frame.points),
        "sweeps": [{"points": name_of(s.points), "to_key": s.to_key.tolist(), "age": s.age} for s in frame.sweeps],
        "cameras": [
            {
                "name": view.name,
                "image": name_of(view.image),
                "intrinsics": view.intrinsics.tolist(),
                "lidar2cam": view.lidar2cam.tolist(),
                "timestamp": view.timestamp,
            }
            for view in frame.cameras
        ],
        "lidar2ego": frame.lidar2ego.tolist(),
        "ego2global": frame.ego2global.tolist(),
        "boxes": _without_nan(frame.boxes),
        "names": list(frame.names),
        "num_points": frame.counts.tolist(),
        "attributes": list(frame.attributes),
        "racks": _without_nan(frame.racks),
    }


def _without_nan(rows: np.ndarray) -> list[list[float | None]]:
    """Rows as JSON has them: it knows no NaN."""
    return [[None if math.isnan(value) else value for value in row] for row in rows.tolist()]


def _from_row(row: Any, folder: Path, where: str) -> Frame:
    try:
        frame = Frame(
            token=str(row["token"]),
            scene=str(row.get("scene", "")),
            timestamp=float(row.get("timestamp", 0.0)),
            points=_file(folder, row.get("points")),
            sweeps=tuple(
                Sweep(inside(folder, sweep["points"]), np.array(sweep["to_key"], dtype=np.float64), float(sweep["age"]))
                for sweep in row.get("sweeps", [])
            ),
            cameras=tuple(
                CameraView(
                    str(view["name"]),
                    _file(folder, view.get("image")),
                    np.array(view["intrinsics"], dtype=np.float64),
                    np.array(view["lidar2cam"], dtype=np.float64),
                    float(view.get("timestamp", 0.0)),
                )
                for view in row.get("cameras", [])
            ),
            lidar2ego=np.array(row.get("lidar2ego", np.eye(4)), dtype=np.float64),
            ego2global=np.array(row.get("ego2global", np.eye(4)), dtype=np.float64),
            boxes=_boxes(row.get("boxes", [])),
            names=tuple(map(str, row.get("names", []))),
            num_points=np.array(row["num_points"], dtype=np.int64) if row.get("num_points") is not None else None,
            attributes=tuple(map(str, row.get("attributes", []))),
            racks=_boxes(row.get("racks", [])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where} is not as the format says: {type(error).__name__} {error}") from error
    if len(frame.counts) != len(frame.names) or (frame.attributes and len(frame.attributes) != len(frame.names)):
        raise UserError(f"{where}: names, num_points and attributes must be as many as boxes")
    return check_frame(frame)


def _file(folder: Path, name: Any) -> Path | None:
    return None if name is None else inside(folder, str(name))


def _boxes(rows: Any) -> np.ndarray:
    """Rows of nine numbers, or of seven without velocity; null is unknown."""
    boxes = np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)
    if boxes.size == 0:
        return np.zeros((0, BOX_SIZE))
    if boxes.ndim == 2 and boxes.shape[1] == BOX_SIZE - 2:
        boxes = np.concatenate([boxes, np.full((len(boxes), 2), np.nan)], 1)
    return boxes
