"""A real drive of six cameras and LiDAR (PandaSet in its reduced form), as frames: the worked example of a rig."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.errors import UserError
from tenfold.files import inside, read_json
from tenfold.systems.cross_modal_detector.geometry.boxes import BOX_SIZE, points_in_boxes, transform_boxes
from tenfold.systems.cross_modal_detector.geometry.poses import inverse_pose, pose_of, transform
from tenfold.systems.cross_modal_detector.sets.frames import CameraView, Frame, check_frame

DRIVE_CLASSES = ("car", "pedestrian", "motorcycle", "truck", "construction_vehicle", "traffic_cone")
_LABELS = {
    "Car": "car",
    "Pickup Truck": "car",
    "Medium-sized Truck": "truck",
    "Pedestrian": "pedestrian",
    "Pedestrian with Object": "pedestrian",
    "Motorcycle": "motorcycle",
    "Other Vehicle - Construction Vehicle": "construction_vehicle",
    "Cones": "traffic_cone",
}
_SECOND_LIDAR = 1  # a moving object in the overlap of both LiDARs has a box of each; those of the spinning one are kept


def drive_frames(root: str | Path, *, farthest: float = 60.0) -> dict[str, list[Frame]]:
    """Frames of a drive by part, split by time with gaps between: ``train``, ``val``, ``test``.

    All is given in the frame that the data call the LiDAR's, which lies 0.35 m above the road (x right, y ahead). The
    cameras exposed up to 0.1 s before the LiDAR's time: each has its own pose, but what moves by itself is off by that.

    Args:
        root: folder with ``frames.json``, ``cuboids.json``, ``splits.json``, ``images`` and ``lidar``.
        farthest: boxes beyond are left out, metres from above (no points are shipped beyond 80).

    Raises:
        UserError: the folder is not such a drive.
    """
    root = Path(root)
    info, cuboids, splits = (read_json(root / f"{name}.json") for name in ("frames", "cuboids", "splits"))
    try:
        intrinsics = {name: _matrix(camera["intrinsics"]) for name, camera in info["cameras"].items()}
        boxes_of = {row["frame"]: row["cuboids"] for row in cuboids["frames"]}
        by_number = {row["frame"]: row for row in info["frames"]}
        velocities = _velocities(cuboids["frames"], by_number)
        return {
            part: [
                _frame(root, by_number[n], intrinsics, boxes_of[n], velocities, info["name"], farthest)
                for n in splits[part]
            ]
            for part in ("train", "val", "test")
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{root} is not a drive in this form: {type(error).__name__} {error}") from error


def _matrix(values: dict[str, float]) -> NDArray[np.float64]:
    # Pixel centres lie at whole numbers there, at halves here (a pixel covers [n, n + 1)).
    return np.array(
        [[values["fx"], 0, values["cx"] + 0.5], [0, values["fy"], values["cy"] + 0.5], [0, 0, 1]], dtype=np.float64
    )


def _pose(row: dict[str, Any]) -> NDArray[np.float64]:
    return pose_of(np.array(row["heading"]), row["position"])


def _velocities(rows: list[dict[str, Any]], frames: dict[int, Any]) -> dict[tuple[int, int], NDArray[np.float64]]:
    """World velocity of every (frame, track) from the frames before and after; standing things have none."""
    places: dict[int, dict[int, tuple[float, NDArray[np.float64]]]] = {}
    still = set()
    for row in rows:
        if row["frame"] not in frames:
            continue
        for cuboid in row["cuboids"]:
            if cuboid["sensor_id"] == _SECOND_LIDAR:
                continue
            when = frames[row["frame"]]["lidar"]["time"]
            places.setdefault(cuboid["track"], {})[row["frame"]] = (when, np.array(cuboid["position"][:2]))
            if cuboid.get("stationary"):
                still.add(cuboid["track"])
    found = {}
    for track, by_frame in places.items():
        numbers = sorted(by_frame)
        for index, number in enumerate(numbers):
            before, after = numbers[max(index - 1, 0)], numbers[min(index + 1, len(numbers) - 1)]
            passed = by_frame[after][0] - by_frame[before][0]
            if track in still:
                found[number, track] = np.zeros(2)
            elif 0 < passed < 1.0:
                found[number, track] = (by_frame[after][1] - by_frame[before][1]) / passed
            else:
                found[number, track] = np.full(2, np.nan)
    return found


def _frame(
    root: Path,
    row: dict[str, Any],
    intrinsics: dict[str, NDArray[np.float64]],
    cuboids: list[dict[str, Any]],
    velocities: dict[tuple[int, int], NDArray[np.float64]],
    scene: str,
    farthest: float,
) -> Frame:
    lidar2world = _pose(row["lidar"]["pose"])
    to_lidar = inverse_pose(lidar2world)
    points = _points(inside(root, row["lidar"]["file"]), to_lidar)
    boxes, names = [], []
    for cuboid in cuboids:
        name = _LABELS.get(cuboid["label"])
        if name is None or cuboid["sensor_id"] == _SECOND_LIDAR:
            continue
        width, length, height = cuboid["dimensions"]
        velocity = velocities[row["frame"], cuboid["track"]]
        # There, the length lies along y at yaw 0.
        boxes.append([*cuboid["position"], length, width, height, cuboid["yaw"] + np.pi / 2, *velocity])
        names.append(name)
    placed = transform_boxes(np.array(boxes).reshape(-1, BOX_SIZE), to_lidar)
    near = np.hypot(placed[:, 0], placed[:, 1]) < farthest
    cameras = tuple(
        CameraView(
            name,
            inside(root, view["file"]),
            intrinsics[name],
            inverse_pose(_pose(view["pose"])) @ lidar2world,
            float(view["time"]),
        )
        for name, view in row["cameras"].items()
    )
    return check_frame(
        Frame(
            token=f"{scene}-{row['frame']:02d}",
            scene=scene,
            timestamp=float(row["lidar"]["time"]),
            points=points,
            cameras=cameras,
            ego2global=lidar2world,
            boxes=placed[near],
            names=tuple(name for name, keep in zip(names, near, strict=True) if keep),
            num_points=points_in_boxes(points, placed[near]).sum(0),
        )
    )


def _points(path: Path, to_lidar: NDArray[np.float64]) -> NDArray[np.float32]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            xyz = np.stack([arrays[axis] for axis in "xyz"], 1)
            intensity = arrays["intensity"].astype(np.float32)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged or holds no points: {error}") from error
    return np.concatenate([transform(xyz, to_lidar), intensity[:, None]], 1).astype(np.float32)
