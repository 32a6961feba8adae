"""Detections as rows to score, and as nuScenes' result files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.errors import UserError
from tenfold.files import printable, read_json, write_atomically
from tenfold.systems.cross_modal_detector.geometry.boxes import BOX_SIZE, points_in_boxes, transform_boxes
from tenfold.systems.cross_modal_detector.geometry.poses import quaternion_about_z, rotation_of, yaw_of
from tenfold.systems.cross_modal_detector.method import Detections
from tenfold.systems.cross_modal_detector.scoring.nds import BoxTable
from tenfold.systems.cross_modal_detector.scoring.protocol import DetectionProtocol
from tenfold.systems.cross_modal_detector.sets.frames import Frame

_PARKED = ("car", "truck", "trailer", "construction_vehicle")
_CYCLES = ("bicycle", "motorcycle")
_VEHICLES = (*_PARKED, "bus")
ATTRIBUTES = (
    "vehicle.moving", "vehicle.parked", "vehicle.stopped", "cycle.with_rider", "cycle.without_rider",
    "pedestrian.moving", "pedestrian.standing", "pedestrian.sitting_lying_down", "",
)  # fmt: skip


def attribute_of(name: str, speed: float) -> str:
    """NuScenes' attribute of a detection by rule: what moves faster than 0.2 m/s moves (mmdet3d's defaults else)."""
    moving = speed > 0.2
    if name in _VEHICLES:
        return "vehicle.moving" if moving else "vehicle.stopped" if name == "bus" else "vehicle.parked"
    if name in _CYCLES:
        return "cycle.with_rider" if moving else "cycle.without_rider"
    if name == "pedestrian":
        return "pedestrian.moving" if moving else "pedestrian.standing"
    return ""


def truth_table(frames: Sequence[Frame], protocol: DetectionProtocol) -> BoxTable:
    """True boxes of the protocol's classes in the global frame."""
    number = {name: index for index, name in enumerate(protocol.classes)}
    parts = []
    for index, frame in enumerate(frames):
        kept = np.array([name in number for name in frame.names], dtype=bool)
        names = [name for name, keep in zip(frame.names, kept, strict=True) if keep]
        attributes = frame.attributes or ("",) * len(frame.names)
        parts.append(
            _rows(
                index,
                frame,
                np.asarray(frame.boxes).reshape(-1, BOX_SIZE)[kept],
                np.array([number[name] for name in names], dtype=np.int64),
                [text for text, keep in zip(attributes, kept, strict=True) if keep],
                np.zeros(len(names)),
                frame.counts[kept],
            )
        )
    return drop_in_racks(_joined(parts), frames, protocol)


def drop_in_racks(table: BoxTable, frames: Sequence[Frame], protocol: DetectionProtocol) -> BoxTable:
    """Rows without two-wheelers whose centre lies in a bicycle rack; true ones and found ones are left out alike."""
    kept = np.ones(len(table), dtype=bool)
    cycles = [number for number, name in enumerate(protocol.classes) if name in _CYCLES]
    for index, frame in enumerate(frames):
        if len(frame.racks):
            own = np.flatnonzero((table.sample == index) & np.isin(table.label, cycles))
            racks = transform_boxes(frame.racks, frame.lidar2global)
            kept[own] = ~points_in_boxes(table.centre[own], racks).any(1)
    return table.rows(kept)


def detections_table(
    frames: Sequence[Frame], found: Sequence[Detections], classes: Sequence[str], protocol: DetectionProtocol
) -> BoxTable:
    """Detections of the protocol's classes in the global frame; at most ``protocol.most`` of a sample, the best."""
    number = {name: index for index, name in enumerate(protocol.classes)}
    to_protocol = np.array([number.get(name, -1) for name in classes])
    parts = []
    for index, (frame, own) in enumerate(zip(frames, found, strict=True)):
        labels = to_protocol[own.labels.cpu().numpy()]
        kept = np.flatnonzero(labels >= 0)[: protocol.most]
        boxes, scores = own.boxes.cpu().numpy().astype(np.float64)[kept], own.scores.cpu().numpy()[kept]
        speeds = np.hypot(boxes[:, 7], boxes[:, 8])
        texts = [attribute_of(protocol.classes[n], v) for n, v in zip(labels[kept], speeds, strict=True)]
        parts.append(_rows(index, frame, boxes, labels[kept], texts, scores.astype(np.float64), np.full(len(kept), -1)))
    return drop_in_racks(_joined(parts), frames, protocol)


def _rows(
    index: int,
    frame: Frame,
    boxes: NDArray[np.float64],
    labels: NDArray[np.int64],
    attributes: Sequence[str],
    scores: NDArray[np.float64],
    points: NDArray[np.int64],
) -> BoxTable:
    placed = transform_boxes(boxes, frame.lidar2global)
    return BoxTable(
        sample=np.full(len(placed), index),
        label=labels,
        centre=placed[:, :3],
        size=placed[:, 3:6],
        yaw=placed[:, 6],
        velocity=placed[:, 7:9],
        attribute=np.array(attributes, dtype=np.str_),
        ego_distance=np.hypot(*(placed[:, :2] - frame.ego2global[:2, 3]).T),
        score=scores,
        points=points,
    )


def _joined(parts: Sequence[BoxTable]) -> BoxTable:
    names = list(vars(parts[0])) if parts else []
    return BoxTable(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def write_results(
    path: str | Path,
    frames: Sequence[Frame],
    found: Sequence[Detections],
    classes: Sequence[str],
    protocol: DetectionProtocol,
    *,
    camera: bool,
    lidar: bool,
) -> None:
    """Write nuScenes' result file: every token of the frames, boxes in the global frame and within their class's range.

    Args:
        path: the file.
        frames: in their order.
        found: detections of each.
        classes: names of the detections' labels.
        protocol: whose ranges and classes count.
        camera: whether images were used.
        lidar: whether clouds were used.
    """
    table = detections_table(frames, found, classes, protocol)
    ranges = np.array([protocol.ranges[name] for name in protocol.classes])
    table = table.rows(table.ego_distance < ranges[table.label])
    results: dict[str, list[dict[str, Any]]] = {frame.token: [] for frame in frames}
    for row in range(len(table)):
        token = frames[int(table.sample[row])].token
        length, width, height = table.size[row].tolist()
        results[token].append(
            {
                "sample_token": token,
                "translation": table.centre[row].tolist(),
                "size": [width, length, height],
                "rotation": quaternion_about_z(float(table.yaw[row])),
                "velocity": table.velocity[row].tolist(),
                "detection_name": protocol.classes[int(table.label[row])],
                "detection_score": float(table.score[row]),
                "attribute_name": str(table.attribute[row]),
            }
        )
    meta = {"use_camera": camera, "use_lidar": lidar, "use_radar": False, "use_map": False, "use_external": False}
    write_atomically(path, json.dumps({"meta": meta, "results": results}))


def read_results(path: str | Path, frames: Sequence[Frame], protocol: DetectionProtocol) -> BoxTable:
    """Rows of a result file of anybody's.

    Raises:
        UserError: it is no result file, lacks a sample or holds one too many, or a box in it is wrong.
    """
    content = read_json(path, 2**32)
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        raise UserError(f"{printable(path)} is no result file: it has no mapping 'results'")
    index = {frame.token: n for n, frame in enumerate(frames)}
    lacking = [token for token in index if token not in results]
    if lacking:
        raise UserError(f"{printable(path)} lacks {len(lacking)} samples of the split, the first {lacking[0]}")
    strange = [token for token in results if token not in index]
    if strange:
        raise UserError(f"{printable(path)} holds {len(strange)} samples that are not of the split: {strange[0]}")
    number = {name: n for n, name in enumerate(protocol.classes)}
    columns: dict[str, list[Any]] = {name: [] for name in BoxTable.__dataclass_fields__}
    for token, rows in results.items():
        if len(rows) > protocol.most:
            raise UserError(f"{printable(path)}: sample {token} has {len(rows)} boxes; at most {protocol.most} count")
        frame = frames[index[token]]
        for row in rows:
            _read_row(row, f"{printable(path)}, sample {token}", number, columns)
            centre = np.array(row["translation"][:2])
            columns["sample"].append(index[token])
            columns["ego_distance"].append(float(np.hypot(*(centre - frame.ego2global[:2, 3]))))
            columns["points"].append(-1)
    shapes = {"centre": (-1, 3), "size": (-1, 3), "velocity": (-1, 2)}
    kinds: Mapping[str, Any] = {"sample": np.int64, "label": np.int64, "attribute": np.str_, "points": np.int64}
    table = BoxTable(
        **{
            name: np.array(values, dtype=kinds.get(name, np.float64)).reshape(shapes.get(name, (-1,)))
            for name, values in columns.items()
        }
    )
    return drop_in_racks(table, frames, protocol)


def _read_row(row: Any, where: str, number: Mapping[str, int], columns: dict[str, list[Any]]) -> None:
    try:
        name, attribute = row["detection_name"], row["attribute_name"]
        width, length, height = map(float, row["size"])
        numbers = [*map(float, row["translation"]), width, length, height, *map(float, row["velocity"])]
        score = float(row["detection_score"])
        yaw = yaw_of(rotation_of(row["rotation"], "rotation"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: a box is not as nuScenes' format says: {type(error).__name__} {error}") from error
    if name not in number:
        raise UserError(f"{where}: there is no class {printable(name)!r}; there are: {', '.join(number)}")
    if attribute not in ATTRIBUTES:
        raise UserError(f"{where}: there is no attribute {printable(attribute)!r}")
    if len(numbers) != 8 or not np.isfinite([*numbers, score]).all() or min(width, length, height) <= 0:
        raise UserError(f"{where}: a box of {name} holds numbers that are not finite, or a size that is not above 0")
    columns["label"].append(number[name])
    columns["centre"].append(numbers[:3])
    columns["size"].append([length, width, height])
    columns["yaw"].append(yaw)
    columns["velocity"].append(numbers[6:])
    columns["attribute"].append(attribute)
    columns["score"].append(score)
