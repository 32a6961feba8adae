"""Objects of other frames pasted into clouds and images (official code: ``UnifiedObjectSample``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold.errors import UserError
from tenfold.files import inside, printable
from tenfold.systems.cross_modal_detector.geometry.boxes import (
    BOX_SIZE,
    corners_of,
    overlap_from_above,
    points_in_boxes,
)
from tenfold.systems.cross_modal_detector.sets.frames import Sample, read_image, read_points

GROUPS: Mapping[str, int] = {
    "car": 2, "truck": 3, "construction_vehicle": 7, "bus": 4, "trailer": 6, "barrier": 2, "motorcycle": 6,
    "bicycle": 6, "pedestrian": 2, "traffic_cone": 2,
}  # fmt: skip
"""To how many objects of a class a scene is filled up."""


@dataclass(frozen=True)
class StoredObject:
    """An object that can be pasted.

    Attributes:
        box: ``(9,)`` where it stood, in its LiDAR frame.
        label: number of its class.
        points: ``(n, 5)`` relative to the box's centre, or their file.
        crop: ``(height, width, 3)`` uint8 of one image, its file, or ``None``.
        lift: metres that are added to the points' z: mmdet3d's are relative to the bottom of the box.
    """

    box: NDArray[np.float64]
    label: int
    points: NDArray[np.float32] | Path
    crop: NDArray[np.uint8] | Path | None
    lift: float = 0.0


def outline(
    boxes: NDArray, lidar2img: NDArray, size: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray, NDArray[np.bool_]]:
    """Outlines of boxes in an image: ``(n, 4)`` left, top, right, bottom; mean depths; which are wholly before it.

    Outlines are cut to the image of ``size`` (height, width).
    """
    corners = corners_of(boxes)
    seen = corners @ lidar2img[:3, :3].T + lidar2img[:3, 3]
    depth = seen[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = np.nan_to_num(seen[..., :2] / depth[..., None])
    limits = np.array([size[1] - 1, size[0] - 1])
    low = np.clip(pixels.min(1), -1e6, 1e6).astype(np.int64).clip(0, limits)
    high = np.clip(pixels.max(1), -1e6, 1e6).astype(np.int64).clip(0, limits)
    return np.concatenate([low, high], 1), depth.mean(1), (depth > 0).all(1)


def build_database(samples: Sequence[Sample], classes: int, *, least_points: int = 5) -> list[list[StoredObject]]:
    """Objects of training samples, by class.

    Args:
        samples: of training.
        classes: number of classes.
        least_points: objects with fewer are left out.

    The crop is of the view in which the object's outline is largest. (The official code means that, but keeps the last
    view that sees it.)
    """
    found: list[list[StoredObject]] = [[] for _ in range(classes)]
    for sample in samples:
        if sample.points is None or not len(sample.boxes):
            continue
        within = points_in_boxes(sample.points, sample.boxes)
        views = [
            (image, *outline(sample.boxes, matrix, image.shape[:2]))
            for image, matrix in zip(sample.images, sample.lidar2img, strict=True)
            if image is not None
        ]
        for row, box in enumerate(sample.boxes):
            points = sample.points[within[:, row]].copy()
            if len(points) < least_points:
                continue
            points[:, :3] -= box[:3].astype(np.float32)
            crop, largest = None, 10 * 10
            for image, boxes, _, front in views:
                left, top, right, bottom = boxes[row]
                if front[row] and (right - left) * (bottom - top) > largest:
                    crop, largest = image[top:bottom, left:right].copy(), (right - left) * (bottom - top)
            found[int(sample.labels[row])].append(StoredObject(box.copy(), int(sample.labels[row]), points, crop))
    return found


def read_database(
    path: str | Path, root: str | Path, classes: Sequence[str], *, least_points: int = 5
) -> list[list[StoredObject]]:
    """Objects of mmdet3d's ``*_dbinfos_train.pkl``, read without executing what is in it; files are read when pasted.

    Args:
        path: the pickle.
        root: folder of the data, below which the objects' files lie.
        classes: names in the order of the labels.
        least_points: objects with fewer are left out.

    Raises:
        UserError: it is no such file.
    """
    from tenfold.systems.cross_modal_detector.sets.info_files import read_restricted_pickle

    content = read_restricted_pickle(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{printable(path)} is no database of objects: a mapping from classes to objects is expected")
    found: list[list[StoredObject]] = [[] for _ in classes]
    try:
        for label, name in enumerate(classes):
            for row in content.get(name, ()):
                if int(row["num_points_in_gt"]) >= least_points and int(row.get("difficulty", 0)) != -1:
                    found[label].append(_stored(row, label, Path(root)))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{printable(path)} is not as mmdet3d writes it: {type(error).__name__} {error}") from error
    return found


def _stored(row: Mapping[str, Any], label: int, root: Path) -> StoredObject:
    box = np.zeros(BOX_SIZE)
    given = np.asarray(row["box3d_lidar"], dtype=np.float64)
    box[: len(given)] = given
    box = np.nan_to_num(box)
    half = float(box[5]) / 2
    box[2] += half  # stored at the bottom
    crop = row.get("image_path") or None
    picture = None if crop is None else inside(root, str(crop))
    return StoredObject(box, label, inside(root, str(row["path"])), picture, lift=-half)


@dataclass(frozen=True)
class ObjectSampling:
    """Fills a sample up with stored objects, in its points and its images.

    Attributes:
        database: by class, see ``build_database``.
        classes: names.
        groups: to how many objects of each class.
        blend: share of the pasted crop in the image; the image keeps the rest.
    """

    database: list[list[StoredObject]]
    classes: Sequence[str]
    groups: Mapping[str, int] | None = None
    blend: float = 0.5

    def __call__(self, sample: Sample, draw: np.random.Generator) -> Sample:
        """A copy with objects pasted; what would overlap another from above is left out."""
        chosen: list[StoredObject] = []
        boxes = sample.boxes
        for label, name in enumerate(self.classes):
            wanted = (self.groups or GROUPS).get(name, 2) - int((sample.labels == label).sum())
            if wanted <= 0 or not self.database[label]:
                continue
            for number in draw.permutation(len(self.database[label]))[:wanted]:
                stored = self.database[label][int(number)]
                if not overlap_from_above(stored.box[None], boxes).any():
                    chosen.append(stored)
                    boxes = np.concatenate([boxes, stored.box[None]])
        return self.paste(sample, chosen) if chosen else sample

    def paste(self, sample: Sample, objects: Sequence[StoredObject]) -> Sample:
        """A copy with these objects."""
        boxes = np.stack([stored.box for stored in objects])
        points = sample.points
        if points is not None:
            kept = points[~points_in_boxes(points, boxes).any(1)]
            clouds = []
            for stored in objects:
                own = stored.points if isinstance(stored.points, np.ndarray) else read_points(stored.points, aged=True)
                moved = own.copy()
                moved[:, :3] += stored.box[:3].astype(np.float32)
                moved[:, 2] += stored.lift
                clouds.append(moved)
            points = np.concatenate([kept, *clouds])
        together = np.concatenate([sample.boxes, boxes])
        images = [
            None if image is None else self._paste_image(image, matrix, together, len(sample.boxes), objects)
            for image, matrix in zip(sample.images, sample.lidar2img, strict=True)
        ]
        labels = np.concatenate([sample.labels, np.array([stored.label for stored in objects], dtype=np.int64)])
        return replace(sample, points=points, boxes=together, labels=labels, images=images)

    def _paste_image(
        self, image: NDArray, matrix: NDArray, boxes: NDArray, own: int, objects: Sequence[StoredObject]
    ) -> NDArray[np.uint8]:
        """Blend crops in, the farthest first; an object that was there is blended over what was pasted behind it."""
        places, depths, front = outline(boxes, matrix, image.shape[:2])
        seen = front & (places[:, 2] - places[:, 0] > 1) & (places[:, 3] - places[:, 1] > 1)
        original, pasted = image, image.astype(np.float32)
        for row in sorted(np.flatnonzero(seen).tolist(), key=lambda n: -depths[n]):
            left, top, right, bottom = places[row]
            if row < own:
                crop = original[top:bottom, left:right].astype(np.float32)
            else:
                stored = objects[row - own].crop
                if stored is None:
                    continue
                pixels = stored if isinstance(stored, np.ndarray) else read_image(stored)
                crop = _resized(pixels, (bottom - top, right - left))
            area = pasted[top:bottom, left:right]
            pasted[top:bottom, left:right] = area * (1 - self.blend) + crop * self.blend
        return pasted.round().astype(np.uint8)


def _resized(pixels: NDArray, size: tuple[int, int]) -> NDArray[np.float32]:
    image = torch.from_numpy(np.array(pixels)).float().permute(2, 0, 1)[None]
    found = torch.nn.functional.interpolate(
        image, size=(int(size[0]), int(size[1])), mode="bilinear", align_corners=False
    )
    return found[0].permute(1, 2, 0).numpy()
