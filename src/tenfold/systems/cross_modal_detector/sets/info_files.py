"""mmdet3d's info files, versions 1 and 2, read without executing what is in them."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.errors import UserError
from tenfold.files import first_line, inside, printable, read_bytes
from tenfold.systems.cross_modal_detector.geometry.boxes import BOX_SIZE
from tenfold.systems.cross_modal_detector.geometry.poses import inverse_pose, pose_of
from tenfold.systems.cross_modal_detector.sets.frames import NUSCENES_CLASSES, CameraView, Frame, Sweep, check_frame

_HARMLESS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
}
_LARGEST = 2**32


class _Restricted(pickle.Unpickler):
    """Builds plain values and numpy arrays of numbers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise UserError(
                f"it wants to build {printable(module)}.{printable(name)}, which is no array or plain value"
            )
        if name == "dtype":
            return _dtype
        if name in ("_reconstruct", "scalar"):
            from numpy._core import multiarray

            return getattr(multiarray, name)
        return {"ndarray": np.ndarray, "encode": _encode}[name]

    def persistent_load(self, pid: Any) -> Any:
        raise UserError("it refers to objects outside itself")


def _dtype(kind: Any, *rest: Any) -> np.dtype:
    """Only numbers and fixed texts: no objects, whose elements could be anything."""
    found = np.dtype(kind, *rest)
    if found.hasobject:
        raise UserError("it holds an array of objects")
    return found


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    if encoding not in ("latin1", "latin-1", "utf-8"):
        raise UserError(f"it names the encoding {printable(encoding)}")
    return text.encode(encoding)


def read_restricted_pickle(path: str | Path) -> Any:
    """Plain values and numpy arrays of a pickle; anything beyond them is refused before it is built.

    Args:
        path: of the file.

    Raises:
        UserError: the file is missing or damaged, or wants to build something else.
    """
    content = read_bytes(path, _LARGEST)
    try:
        return _Restricted(io.BytesIO(content)).load()
    except UserError as error:
        raise UserError(f"{printable(path)} was not read: {error}") from error
    except Exception as error:  # a damaged pickle can end the reader anywhere
        raise UserError(f"{printable(path)} is damaged or no info file: {first_line(error)}") from error


def read_infos(path: str | Path, root: str | Path) -> list[Frame]:
    """Frames of an info file; its class names must be nuScenes' ten, or of its own ``metainfo``.

    Args:
        path: the pickle.
        root: folder of the data, below which its files lie; leading folders of version 1 (``./data/nuscenes/``) are
            taken off.

    Raises:
        UserError: the file is neither version, or names a class that is not known.
    """
    content = read_restricted_pickle(path)
    where = printable(path)
    if isinstance(content, Mapping) and "infos" in content:
        rows, version = content["infos"], 1
    elif isinstance(content, Mapping) and "data_list" in content:
        rows, version = content["data_list"], 2
    else:
        raise UserError(f"{where} is no info file of mmdet3d: it has neither 'infos' (version 1) nor 'data_list' (2)")
    try:
        if version == 1:
            return [_version_1(row, Path(root), f"{where}: info {n}") for n, row in enumerate(rows)]
        categories = content["metainfo"]["categories"]
        names = {int(number): str(name) for name, number in categories.items()}
        return [_version_2(row, names, Path(root), f"{where}: item {n}") for n, row in enumerate(rows)]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{where} is not as version {version} says: {type(error).__name__} {error}") from error


def _below(root: Path, name: Any) -> Path:
    """A file of version 1, whose names begin with the folder in which the data lay when they were written."""
    parts = [part for part in Path(str(name)).parts if part not in (".", "/")]
    for folder in ("samples", "sweeps"):
        if folder in parts:
            parts = parts[parts.index(folder) :]
            break
    return inside(root, "/".join(parts))


def _version_1(row: Mapping[str, Any], root: Path, where: str) -> Frame:
    lidar2ego = pose_of(row["lidar2ego_rotation"], row["lidar2ego_translation"])
    ego2global = pose_of(row["ego2global_rotation"], row["ego2global_translation"])
    cameras = []
    for name, view in row["cams"].items():
        # points_lidar = points_camera R^T + t
        cam2lidar = pose_of(np.asarray(view["sensor2lidar_rotation"]), view["sensor2lidar_translation"])
        cameras.append(
            CameraView(
                str(name),
                _below(root, view["data_path"]),
                np.asarray(view["cam_intrinsic"], dtype=np.float64),
                inverse_pose(cam2lidar),
                float(view["timestamp"]) / 1e6,
            )
        )
    sweeps = tuple(
        Sweep(
            _below(root, sweep["data_path"]),
            pose_of(np.asarray(sweep["sensor2lidar_rotation"]), sweep["sensor2lidar_translation"]),
            (float(row["timestamp"]) - float(sweep["timestamp"])) / 1e6,
        )
        for sweep in row["sweeps"]
    )
    names = tuple(str(name) for name in row.get("gt_names", ()))
    boxes = np.asarray(row.get("gt_boxes", np.zeros((0, 7))), dtype=np.float64).reshape(-1, 7)
    velocity = np.asarray(row.get("gt_velocity", np.full((len(boxes), 2), np.nan)), dtype=np.float64).reshape(-1, 2)
    counts = np.asarray(row.get("num_lidar_pts", np.full(len(boxes), -1))).astype(np.int64)
    return _frame(row["token"], float(row["timestamp"]) / 1e6, _below(root, row["lidar_path"]), cameras, sweeps,
                  lidar2ego, ego2global, np.concatenate([boxes, velocity], 1), names, counts, where)  # fmt: skip


def _version_2(row: Mapping[str, Any], names: Mapping[int, str], root: Path, where: str) -> Frame:
    points = row["lidar_points"]
    lidar2ego = np.asarray(points["lidar2ego"], dtype=np.float64)
    ego2global = np.asarray(row["ego2global"], dtype=np.float64)
    cameras = [
        CameraView(
            str(name),
            inside(root, f"samples/{name}/{Path(str(view['img_path'])).name}"),
            np.asarray(view["cam2img"], dtype=np.float64),
            np.asarray(view["lidar2cam"], dtype=np.float64),
            float(view["timestamp"]),
        )
        for name, view in row["images"].items()
    ]
    to_lidar = inverse_pose(ego2global @ lidar2ego)
    sweeps = []
    for sweep in row.get("lidar_sweeps", ()):
        inner = sweep["lidar_points"]
        own = np.asarray(inner["ego2global"], dtype=np.float64) @ np.asarray(inner["lidar2ego"], dtype=np.float64)
        file = (
            _below(root, inner["lidar_path"])
            if "/" in str(inner["lidar_path"])
            else inside(root, f"sweeps/LIDAR_TOP/{inner['lidar_path']}")
        )
        sweeps.append(Sweep(file, to_lidar @ own, float(row["timestamp"]) - float(sweep["timestamp"])))
    boxes, labels, counts = [], [], []
    for instance in row.get("instances", ()):
        number = int(instance["bbox_label_3d"])
        if number < 0:
            continue
        if number not in names:
            raise UserError(f"{where}: an object has the class {number}, which metainfo.categories does not name")
        velocity = instance.get("velocity") or (np.nan, np.nan)
        boxes.append([*map(float, instance["bbox_3d"]), *map(float, velocity)])
        labels.append(names[number])
        counts.append(int(instance.get("num_lidar_pts", -1)))
    lidar = inside(root, f"samples/LIDAR_TOP/{Path(str(points['lidar_path'])).name}")
    return _frame(row["token"], float(row["timestamp"]), lidar, cameras, tuple(sweeps), lidar2ego, ego2global,
                  np.array(boxes, dtype=np.float64).reshape(-1, BOX_SIZE), tuple(labels),
                  np.array(counts, dtype=np.int64), where)  # fmt: skip


def _frame(
    token: Any,
    timestamp: float,
    points: Path,
    cameras: list[CameraView],
    sweeps: tuple[Sweep, ...],
    lidar2ego: NDArray[np.float64],
    ego2global: NDArray[np.float64],
    boxes: NDArray[np.float64],
    names: tuple[str, ...],
    counts: NDArray[np.int64],
    where: str,
) -> Frame:
    unknown = sorted(set(names) - set(NUSCENES_CLASSES) - {"ignore"})
    if unknown:
        raise UserError(f"{where}: there is no class {printable(unknown[0])!r}; known: {', '.join(NUSCENES_CLASSES)}")
    return check_frame(
        Frame(
            token=str(token),
            timestamp=timestamp,
            points=points,
            cameras=tuple(cameras),
            sweeps=sweeps,
            lidar2ego=lidar2ego,
            ego2global=ego2global,
            boxes=boxes,
            names=names,
            num_points=counts,
        )
    )
