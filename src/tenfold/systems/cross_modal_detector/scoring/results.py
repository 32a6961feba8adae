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
from tenfold.systems.cross_modal_detector.geometry.poses import quaternion_about_z
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
    """True boxes of the protocol's classes in the global frame.

    Args:
        frames: with their boxes.
        protocol: whose classes count.
    """
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

    Args:
        path: of the file.
        frames: that it must answer, each once.
        protocol: whose classes and limits hold.

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
    for token, rows in results.items():
        if not isinstance(rows, list) or len(rows) > protocol.most:
            raise UserError(f"{printable(path)}: sample {token} has no list of at most {protocol.most} boxes")
    rows = [row for own in results.values() for row in own]
    sample = np.repeat([index[token] for token in results], [len(own) for own in results.values()]).astype(np.int64)
    try:
        columns = {
            name: np.array([row[name] for row in rows], dtype=np.float64).reshape(-1, width)
            for name, width in {"translation": 3, "size": 3, "rotation": 4, "velocity": 2, "detection_score": 1}.items()
        }
        names = [str(row["detection_name"]) for row in rows]
        attributes = [str(row["attribute_name"]) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{printable(path)}: a box is not as nuScenes' format says: {type(error).__name__} {error}"
        ) from error
    number = {name: n for n, name in enumerate(protocol.classes)}
    _refuse_rows(path, frames, sample, names, attributes, number, columns)
    ego = np.array([frame.ego2global[:2, 3] for frame in frames])
    width, length, height = columns["size"].T
    centre = columns["translation"]
    table = BoxTable(
        sample=sample,
        label=np.array([number[name] for name in names], dtype=np.int64),
        centre=centre,
        size=np.stack([length, width, height], 1),
        yaw=yaws_of(columns["rotation"]),
        velocity=columns["velocity"],
        attribute=np.array(attributes, dtype=np.str_),
        ego_distance=np.hypot(*(centre[:, :2] - ego[sample]).T),
        score=columns["detection_score"][:, 0],
        points=np.full(len(rows), -1),
    )
    return drop_in_racks(table, frames, protocol)


def yaws_of(quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angles about z ``(n,)`` of the x axes of quaternions ``(n, 4)`` w, x, y, z."""
    w, x, y, z = quaternions.T / np.linalg.norm(quaternions, axis=1)
    return np.arctan2(2 * (x * y + z * w), 1 - 2 * (y * y + z * z))


def _refuse_rows(
    path: str | Path,
    frames: Sequence[Frame],
    sample: NDArray[np.int64],
    names: Sequence[str],
    attributes: Sequence[str],
    number: Mapping[str, int],
    columns: Mapping[str, NDArray[np.float64]],
) -> None:
    """Raise for the first box that is wrong."""
    finite = np.all([np.isfinite(values).all(1) for values in columns.values()], axis=0)
    reasons = {
        "of a class that is not there": np.array([name not in number for name in names], dtype=bool),
        "with an attribute that is not there": np.array([text not in ATTRIBUTES for text in attributes], dtype=bool),
        "with a number that is not finite": ~finite,
        "with a size that is not above 0": (columns["size"] <= 0).any(1),
        "with a quaternion of zeros": np.linalg.norm(columns["rotation"], axis=1) < 1e-9,
    }
    for reason, wrong in reasons.items():
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(
                f"{printable(path)}, sample {frames[int(sample[row])].token}: a box {reason} "
                f"({printable(names[row])}, {printable(attributes[row])!r})"
            )
