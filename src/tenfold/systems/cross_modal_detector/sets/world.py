"""A rendered world in nuScenes' own format: its tables, images and clouds are read by the reader of the real ones.

Boxes of three classes stand and move on a plane. Six cameras and a LiDAR on a moving vehicle see them by ray casting;
every camera exposes at a time of its own. The class shows in the colour of an image, the shape alone in the cloud.
"""

import hashlib
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenfold.errors import UserError
from tenfold.files import make_folder, write_atomically
from tenfold.systems.cross_modal_detector.geometry.boxes import overlap_from_above, points_in_boxes
from tenfold.systems.cross_modal_detector.geometry.poses import quaternion_about_z, quaternion_of
from tenfold.systems.cross_modal_detector.sets.nuscenes_tables import CAMERAS, LIDAR, TABLES
from tenfold.systems.cross_modal_detector.sets.world_rendering import (
    Scene,
    camera_matrix,
    camera_pose,
    cloud_of,
    lidar_pose,
    photo_of,
)

VERSION = "v1.0-world"
WORLD_CLASSES = ("car", "pedestrian", "barrier")
_SIZES = np.array([[4.5, 1.9, 1.6], [0.7, 0.7, 1.75], [0.5, 2.2, 1.0]])
_CATEGORIES = ("vehicle.car", "human.pedestrian.adult", "movable_object.barrier")
_SPEEDS = (5.0, 1.5, 0.0)
_DELAYS = {name: -0.01 * (1 + n) for n, name in enumerate(CAMERAS)}
_BETWEEN_FRAMES, _BETWEEN_SWEEPS = 0.5, 0.1


@dataclass(frozen=True)
class WorldSettings:
    """How large a world is.

    Attributes:
        scenes: of every split, by its name.
        frames: key frames of a scene, half a second apart.
        image_size: height and width of the images.
        beams: of the LiDAR, from -25 to 3 degrees.
        columns: points of a turn of each beam.
        sweeps: earlier clouds of a frame, a tenth of a second apart.
        radius: objects stand within this distance, metres.
        objects: fewest and most objects of a scene.
        seed: of all that is drawn.
    """

    scenes: dict[str, int]
    frames: int = 2
    image_size: tuple[int, int] = (32, 96)
    beams: int = 24
    columns: int = 120
    sweeps: int = 1
    radius: float = 17.0
    objects: tuple[int, int] = (3, 8)
    seed: int = 0


def write_world(folder: str | Path, settings: WorldSettings) -> Path:
    """Render a world and write it as nuScenes is laid out, with ``splits.json``.

    Args:
        folder: its root; made if need be.
        settings: see ``WorldSettings``.

    Returns:
        The root.
    """
    root = make_folder(folder)
    for channel in (*CAMERAS, LIDAR):
        make_folder(root / "samples" / channel)
    make_folder(root / "sweeps" / LIDAR)
    make_folder(root / VERSION)
    tables = _fixed_tables(settings)
    splits: dict[str, list[str]] = {}
    number = 0
    for split, count in settings.scenes.items():
        splits[split] = []
        for _ in range(count):
            name = f"scene-{number:04d}"
            _write_scene(root, tables, name, _draw_scene(settings, number), settings)
            splits[split].append(name)
            number += 1
    for name in TABLES:
        write_atomically(root / VERSION / f"{name}.json", json.dumps(tables[name]))
    write_atomically(root / VERSION / "splits.json", json.dumps(splits, indent=1))
    return root


def _draw_scene(settings: WorldSettings, number: int) -> Scene:
    draw = np.random.default_rng([settings.seed, number])
    wanted = int(draw.integers(settings.objects[0], settings.objects[1] + 1))
    boxes, classes = np.zeros((0, 7)), []
    for _ in range(40 * wanted):
        if len(boxes) == wanted:
            break
        kind = int(draw.integers(len(WORLD_CLASSES)))
        size = _SIZES[kind] * draw.uniform(0.9, 1.1, 3)
        distance, angle = draw.uniform(4.0, settings.radius), draw.uniform(-math.pi, math.pi)
        box = np.array(
            [
                [
                    distance * math.cos(angle),
                    distance * math.sin(angle),
                    size[2] / 2,
                    *size,
                    draw.uniform(-math.pi, math.pi),
                ]
            ]
        )
        grown = box.copy()
        grown[:, 3:5] += 0.6
        if not overlap_from_above(grown, boxes).any():
            boxes = np.concatenate([boxes, box])
            classes.append(kind)
    kinds = np.array(classes, dtype=np.int64)
    speeds = draw.uniform(0, 1, len(kinds)) * np.array(_SPEEDS)[kinds] * (draw.random(len(kinds)) < 0.5)
    velocities = speeds[:, None] * np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], 1)
    heading = float(draw.uniform(-math.pi, math.pi))
    start = draw.uniform(-500, 500, 2)
    turned = boxes.copy()
    cos, sin = math.cos(heading), math.sin(heading)
    turn = np.array([[cos, -sin], [sin, cos]])
    turned[:, :2] = boxes[:, :2] @ turn.T + start
    turned[:, 6] += heading
    return Scene(
        boxes=turned,
        velocities=velocities @ turn.T,
        classes=kinds,
        start=start,
        heading=heading,
        speed=float(draw.uniform(0, 4)),
        ground=float(draw.uniform(80, 150)),
        light=float(draw.uniform(-math.pi, math.pi)),
        seed=int(draw.integers(2**31)),
    )


def _token(*parts: object) -> str:
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def _fixed_tables(settings: WorldSettings) -> dict[str, list[dict[str, Any]]]:
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for name in _CATEGORIES:
        tables["category"].append({"token": _token("category", name), "name": name, "description": ""})
    for name in ("vehicle.moving", "vehicle.parked", "pedestrian.moving", "pedestrian.standing"):
        tables["attribute"].append({"token": _token("attribute", name), "name": name, "description": ""})
    tables["visibility"].append({"token": "4", "level": "v80-100", "description": ""})
    tables["log"].append(
        {"token": _token("log"), "logfile": "", "vehicle": "none", "date_captured": "2026-01-01", "location": "world"}
    )
    tables["map"].append(
        {"token": _token("map"), "log_tokens": [_token("log")], "category": "semantic_prior", "filename": ""}
    )
    for channel in (*CAMERAS, LIDAR):
        pose = lidar_pose() if channel == LIDAR else camera_pose(channel)
        modality = "lidar" if channel == LIDAR else "camera"
        tables["sensor"].append({"token": _token("sensor", channel), "channel": channel, "modality": modality})
        tables["calibrated_sensor"].append(
            {
                "token": _token("calibrated", channel),
                "sensor_token": _token("sensor", channel),
                "translation": pose[:3, 3].tolist(),
                "rotation": quaternion_of(pose[:3, :3]).tolist(),
                "camera_intrinsic": [] if channel == LIDAR else camera_matrix(settings.image_size).tolist(),
            }
        )
    return tables


def _write_scene(
    root: Path, tables: dict[str, list[dict[str, Any]]], name: str, scene: Scene, settings: WorldSettings
) -> None:
    noise = torch.Generator().manual_seed(scene.seed)
    begin = 1_500_000_000 + 100 * int(name.rsplit("-", 1)[1])
    samples = [_token(name, number) for number in range(settings.frames)]
    tables["scene"].append(
        {
            "token": _token(name),
            "name": name,
            "log_token": _token("log"),
            "nbr_samples": len(samples),
            "first_sample_token": samples[0],
            "last_sample_token": samples[-1],
            "description": "",
        }
    )
    for index in range(len(scene.boxes)):
        own = [_token(name, index, number) for number in range(settings.frames)]
        tables["instance"].append(
            {
                "token": _token(name, "instance", index),
                "category_token": _token("category", _CATEGORIES[scene.classes[index]]),
                "nbr_annotations": len(own),
                "first_annotation_token": own[0],
                "last_annotation_token": own[-1],
            }
        )
    last_cloud = ""
    for number, token in enumerate(samples):
        time = number * _BETWEEN_FRAMES
        tables["sample"].append(
            {
                "token": token,
                "timestamp": round((begin + time) * 1e6),
                "scene_token": _token(name),
                "prev": samples[number - 1] if number else "",
                "next": samples[number + 1] if number + 1 < len(samples) else "",
            }
        )
        for channel in CAMERAS:
            photo = photo_of(scene, channel, time + _DELAYS[channel], settings.image_size, noise)
            file = f"samples/{channel}/{name}__{number}.jpg"
            _write(root / file, _jpeg(photo))
            _add_data(tables, scene, token, channel, file, begin, time + _DELAYS[channel], True, settings)
        for age in range(settings.sweeps, -1, -1):
            when = time - age * _BETWEEN_SWEEPS
            cloud = cloud_of(scene, when, settings.beams, settings.columns, noise)
            file = f"{'sweeps' if age else 'samples'}/{LIDAR}/{name}__{number}_{age}.pcd.bin"
            _write(root / file, cloud.astype(np.float32).tobytes())
            row = _add_data(tables, scene, token, LIDAR, file, begin, when, age == 0, settings)
            if last_cloud:
                row["prev"] = last_cloud
                next(r for r in reversed(tables["sample_data"]) if r["token"] == last_cloud)["next"] = row["token"]
            last_cloud = row["token"]
        _annotate(tables, scene, name, number, token, cloud, settings)


def _write(path: Path, content: bytes) -> None:
    """Write a sensor's file; the tables, without which nobody reads it, come last and whole."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _jpeg(photo: np.ndarray) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(photo).save(content, "JPEG", quality=95, subsampling=0)
    return content.getvalue()


def _add_data(
    tables: dict[str, list[dict[str, Any]]],
    scene: Scene,
    sample: str,
    channel: str,
    file: str,
    begin: float,
    time: float,
    key: bool,
    settings: WorldSettings,
) -> dict[str, Any]:
    ego = scene.ego(time)
    row = {
        "token": _token(file),
        "sample_token": sample,
        "ego_pose_token": _token(file),
        "calibrated_sensor_token": _token("calibrated", channel),
        "timestamp": round((begin + time) * 1e6),
        "fileformat": "pcd" if channel == LIDAR else "jpg",
        "is_key_frame": key,
        "height": 0 if channel == LIDAR else settings.image_size[0],
        "width": 0 if channel == LIDAR else settings.image_size[1],
        "filename": file,
        "prev": "",
        "next": "",
    }
    tables["sample_data"].append(row)
    tables["ego_pose"].append(
        {
            "token": row["token"],
            "timestamp": row["timestamp"],
            "rotation": quaternion_about_z(scene.heading),
            "translation": ego[:3, 3].tolist(),
        }
    )
    return row


def _annotate(
    tables: dict[str, list[dict[str, Any]]],
    scene: Scene,
    name: str,
    number: int,
    sample: str,
    cloud: np.ndarray,
    settings: WorldSettings,
) -> None:
    time = number * _BETWEEN_FRAMES
    boxes = scene.boxes_at(time)
    pose = scene.ego(time) @ lidar_pose()
    counts = points_in_boxes(cloud[:, :3] @ pose[:3, :3].T + pose[:3, 3], boxes).sum(0)
    for index, box in enumerate(boxes):
        kind = int(scene.classes[index])
        speed = float(np.linalg.norm(scene.velocities[index]))
        attribute = ("vehicle.moving" if speed > 0.2 else "vehicle.parked") if kind == 0 else ""
        attribute = ("pedestrian.moving" if speed > 0.2 else "pedestrian.standing") if kind == 1 else attribute
        tables["sample_annotation"].append(
            {
                "token": _token(name, index, number),
                "sample_token": sample,
                "instance_token": _token(name, "instance", index),
                "visibility_token": "4",
                "attribute_tokens": [_token("attribute", attribute)] if attribute else [],
                "translation": box[:3].tolist(),
                "size": [box[4], box[3], box[5]],
                "rotation": quaternion_about_z(float(box[6])),
                "prev": _token(name, index, number - 1) if number else "",
                "next": _token(name, index, number + 1) if number + 1 < settings.frames else "",
                "num_lidar_pts": int(counts[index]),
                "num_radar_pts": 0,
            }
        )
