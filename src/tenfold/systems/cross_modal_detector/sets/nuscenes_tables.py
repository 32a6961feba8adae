"""nuScenes from its thirteen JSON tables, without the devkit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.errors import UserError
from tenfold.files import inside, printable, read_json
from tenfold.systems.cross_modal_detector.geometry.boxes import BOX_SIZE, transform_boxes
from tenfold.systems.cross_modal_detector.geometry.poses import inverse_pose, pose_of, rotation_of, yaw_of
from tenfold.systems.cross_modal_detector.sets.frames import CameraView, Frame, Sweep, check_frame
from tenfold.systems.cross_modal_detector.sets.nuscenes_splits import SIZES, scenes_of

TABLES = (
    "category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log", "scene",
    "sample", "sample_data", "sample_annotation", "map",
)  # fmt: skip
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
LIDAR = "LIDAR_TOP"

CATEGORIES = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
"""nuScenes' categories that are scored, with their class; others are not detected."""
RACK = "static_object.bicycle_rack"


class NuScenesTables:
    """The tables, each row found by its token.

    Args:
        root: folder with ``VERSION`` and ``samples``.
        version: name of the folder of the tables, such as ``v1.0-mini``.

    Raises:
        UserError: a table is missing or not what it should be.
    """

    def __init__(self, root: str | Path, version: str) -> None:
        self.root, self.version = Path(root), version
        folder = self.root / version
        if not folder.is_dir():
            raise UserError(
                f"{printable(self.root)} holds no folder {version!r} of tables; nuScenes (nuscenes.org) unpacks to "
                "v1.0-trainval, samples and sweeps"
            )
        self._rows: dict[str, dict[str, Any]] = {}
        self._lists: dict[str, list[dict[str, Any]]] = {}
        for name in TABLES:
            rows = read_json(folder / f"{name}.json", 2**32)
            if not isinstance(rows, list) or not all(isinstance(row, dict) and "token" in row for row in rows):
                raise UserError(f"{folder / name}.json is no table: a list of rows with a token each is expected")
            self._lists[name] = rows
            self._rows[name] = {row["token"]: row for row in rows}
        self._data: dict[str, dict[str, dict[str, Any]]] = {}
        for row in self._lists["sample_data"]:
            if row["is_key_frame"]:
                channel = self._channel(row)
                self._data.setdefault(row["sample_token"], {})[channel] = row
        self._annotations: dict[str, list[dict[str, Any]]] = {}
        for row in self._lists["sample_annotation"]:
            self._annotations.setdefault(row["sample_token"], []).append(row)

    def get(self, table: str, token: str, wanted_by: str = "") -> dict[str, Any]:
        """A row.

        Raises:
            UserError: there is none with this token; the message names who points at it.
        """
        row = self._rows[table].get(token)
        if row is None:
            origin = f", which {wanted_by} points at" if wanted_by else ""
            raise UserError(
                f"{printable(self.root / self.version)}: {table}.json has no row {printable(token)!r}{origin}; "
                "the tables are not whole"
            )
        return row

    def rows(self, table: str) -> list[dict[str, Any]]:
        """All rows of a table."""
        return self._lists[table]

    def _channel(self, data: dict[str, Any]) -> str:
        where = f"sample_data {data['token']}"
        sensor = self.get("calibrated_sensor", data["calibrated_sensor_token"], where)
        return str(self.get("sensor", sensor["sensor_token"], where)["channel"])

    def splits(self) -> dict[str, list[str]]:
        """Names of scenes by split: of ``splits.json``, else nuScenes' own as far as they are there, and ``all``."""
        path = self.root / self.version / "splits.json"
        if path.exists():
            found = read_json(path)
            if not isinstance(found, dict) or not all(isinstance(part, list) for part in found.values()):
                raise UserError(f"{path} must map names of splits to lists of scenes")
            return {str(name): [str(scene) for scene in scenes] for name, scenes in found.items()}
        own = {row["name"] for row in self.rows("scene")}
        found = {split: [name for name in scenes_of(split) if name in own] for split in SIZES}
        return {split: names for split, names in found.items() if names} | {"all": sorted(own)}

    def frames(self, split: str | Sequence[str], *, sweeps: int = 10) -> list[Frame]:
        """Frames of a split (or of the scenes named), scene by scene in time.

        Args:
            split: a name of ``splits``, or names of scenes.
            sweeps: most earlier clouds of a frame.

        Raises:
            UserError: there is no such split or scene, or a token leads nowhere.
        """
        if isinstance(split, str):
            known = self.splits()
            if split not in known:
                raise UserError(
                    f"{printable(self.root)} has no split {split!r}; it has: {', '.join(known)} (others go into "
                    f"{self.version}/splits.json)"
                )
            split = known[split]
        try:
            return self._frames_of(split, sweeps)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{printable(self.root / self.version)}: a row is not as nuScenes' tables are: "
                f"{type(error).__name__} {error}"
            ) from error

    def _frames_of(self, split: Sequence[str], sweeps: int) -> list[Frame]:
        by_name = {row["name"]: row for row in self.rows("scene")}
        frames = []
        for name in split:
            if name not in by_name:
                raise UserError(f"{printable(self.root / self.version)} has no scene {printable(name)!r}")
            scene = by_name[name]
            token = scene["first_sample_token"]
            while token:
                sample = self.get("sample", token, f"scene {name}")
                frames.append(self.frame(sample, scene=name, sweeps=sweeps))
                token = sample["next"]
        return frames

    def frame(self, sample: dict[str, Any], *, scene: str = "", sweeps: int = 10) -> Frame:
        """The frame of a row of ``sample``."""
        token = sample["token"]
        data = self._data.get(token, {})
        if LIDAR not in data:
            raise UserError(f"sample {token} has no key frame of {LIDAR}, in whose coordinates all is given")
        lidar = data[LIDAR]
        lidar2ego, ego2global = self._poses(lidar)
        to_lidar = inverse_pose(ego2global @ lidar2ego)
        cameras = []
        for channel in CAMERAS:
            if channel not in data:
                continue
            row = data[channel]
            cam2ego, camego2global = self._poses(row)
            # The camera exposes at another time than the LiDAR, from another pose of the vehicle.
            lidar2cam = inverse_pose(camego2global @ cam2ego) @ ego2global @ lidar2ego
            intrinsics = self.get("calibrated_sensor", row["calibrated_sensor_token"], token)["camera_intrinsic"]
            cameras.append(
                CameraView(
                    channel,
                    inside(self.root, row["filename"]),
                    np.asarray(intrinsics, dtype=np.float64),
                    lidar2cam,
                    row["timestamp"] / 1e6,
                )
            )
        boxes, names, counts, attributes, racks = self._boxes(token, to_lidar)
        return check_frame(
            Frame(
                token=token,
                scene=scene,
                timestamp=lidar["timestamp"] / 1e6,
                points=inside(self.root, lidar["filename"]),
                sweeps=self._sweeps(lidar, to_lidar, sweeps),
                cameras=tuple(cameras),
                lidar2ego=lidar2ego,
                ego2global=ego2global,
                boxes=boxes,
                names=names,
                num_points=counts,
                attributes=attributes,
                racks=racks,
            )
        )

    def _poses(self, data: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        where = f"sample_data {data['token']}"
        sensor = self.get("calibrated_sensor", data["calibrated_sensor_token"], where)
        ego = self.get("ego_pose", data["ego_pose_token"], where)
        return pose_of(sensor["rotation"], sensor["translation"]), pose_of(ego["rotation"], ego["translation"])

    def _sweeps(self, lidar: dict[str, Any], to_lidar: NDArray, most: int) -> tuple[Sweep, ...]:
        found: list[Sweep] = []
        row = lidar
        while len(found) < most and row["prev"]:
            row = self.get("sample_data", row["prev"], f"sample_data {row['token']}")
            sensor2ego, ego2global = self._poses(row)
            found.append(
                Sweep(
                    inside(self.root, row["filename"]),
                    to_lidar @ ego2global @ sensor2ego,
                    (lidar["timestamp"] - row["timestamp"]) / 1e6,
                )
            )
        return tuple(found)

    def _boxes(
        self, token: str, to_lidar: NDArray
    ) -> tuple[NDArray, tuple[str, ...], NDArray[np.int64], tuple[str, ...], NDArray]:
        rows, names, counts, attributes, racks = [], [], [], [], []
        for annotation in self._annotations.get(token, []):
            where = f"sample_annotation {annotation['token']}"
            instance = self.get("instance", annotation["instance_token"], where)
            category = self.get("category", instance["category_token"], where)["name"]
            if category not in CATEGORIES and category != RACK:
                continue
            width, length, height = annotation["size"]
            yaw = yaw_of(rotation_of(annotation["rotation"], where))
            velocity = self.velocity(annotation) if category != RACK else (np.nan, np.nan)
            box = [*annotation["translation"], length, width, height, yaw, *velocity]
            if category == RACK:
                racks.append(box)
                continue
            tokens = annotation["attribute_tokens"]
            if len(tokens) > 1:
                raise UserError(f"{where} has {len(tokens)} attributes; at most one is scored")
            rows.append(box)
            names.append(CATEGORIES[category])
            counts.append(int(annotation["num_lidar_pts"]) + int(annotation.get("num_radar_pts", 0)))
            attributes.append(self.get("attribute", tokens[0], where)["name"] if tokens else "")
        boxes = transform_boxes(np.array(rows).reshape(-1, BOX_SIZE), to_lidar)
        return (
            boxes,
            tuple(names),
            np.array(counts, dtype=np.int64),
            tuple(attributes),
            transform_boxes(np.array(racks).reshape(-1, BOX_SIZE), to_lidar),
        )

    def velocity(self, annotation: dict[str, Any], longest: float = 1.5) -> tuple[float, float]:
        """Metres a second in the global frame, from the neighbouring annotations; NaN where they are too far apart."""
        where = f"sample_annotation {annotation['token']}"
        before, after = annotation["prev"], annotation["next"]
        if not before and not after:
            return float("nan"), float("nan")
        first = self.get("sample_annotation", before, where) if before else annotation
        last = self.get("sample_annotation", after, where) if after else annotation
        times = [1e-6 * self.get("sample", row["sample_token"], where)["timestamp"] for row in (last, first)]
        passed = times[0] - times[1]
        if passed > (2 * longest if before and after else longest):
            return float("nan"), float("nan")
        moved = (np.array(last["translation"]) - np.array(first["translation"])) / passed
        return float(moved[0]), float(moved[1])
