"""The scene turned, scaled, moved and mirrored; the cameras follow (official code: ``GlobalRotScaleTransAll``)."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tenfold.systems.cross_modal_detector.geometry.boxes import wrap
from tenfold.systems.cross_modal_detector.sets.frames import Sample


@dataclass(frozen=True)
class SceneAugmentation:
    """How far a scene is changed.

    Attributes:
        rotation: largest turn to either side, radians.
        scale: smallest and largest factor.
        translation: standard deviation along each axis, metres.
        flip_y: probability that y is mirrored.
        flip_x: probability that x is mirrored.
    """

    rotation: float = 0.785
    scale: tuple[float, float] = (0.9, 1.1)
    translation: float = 0.5
    flip_y: float = 0.5
    flip_x: float = 0.5

    def __call__(self, sample: Sample, draw: np.random.Generator) -> Sample:
        """A changed copy of a sample."""
        angle = draw.uniform(-self.rotation, self.rotation)
        scale = draw.uniform(*self.scale)
        shift = draw.normal(0, 1, 3) * self.translation
        matrix = np.eye(4)
        matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        matrix[:3, :3] *= scale
        matrix[:3, 3] = shift
        if draw.random() < self.flip_y:
            matrix = np.diag([1.0, -1.0, 1.0, 1.0]) @ matrix
        if draw.random() < self.flip_x:
            matrix = np.diag([-1.0, 1.0, 1.0, 1.0]) @ matrix
        return move_scene(sample, matrix)


def move_scene(sample: Sample, matrix: NDArray[np.float64]) -> Sample:
    """A sample in other coordinates ``x' = A x``: points, boxes, and every camera's matrix times ``A``'s inverse.

    Args:
        sample: see ``Sample``.
        matrix: ``(4, 4)``: a turn about z, one factor for all axes, mirrored x or y, a translation.
    """
    turn = matrix[:3, :3]
    scale = abs(np.linalg.det(turn)) ** (1 / 3)
    boxes = sample.boxes.copy()
    if len(boxes):
        heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], 1) @ turn[:2, :2].T
        boxes[:, :3] = boxes[:, :3] @ turn.T + matrix[:3, 3]
        boxes[:, 3:6] *= scale
        boxes[:, 6] = wrap(np.arctan2(heading[:, 1], heading[:, 0]))
        boxes[:, 7:9] = boxes[:, 7:9] @ turn[:2, :2].T
    points = sample.points
    if points is not None:
        points = points.copy()
        points[:, :3] = points[:, :3] @ turn.T.astype(np.float32) + matrix[:3, 3].astype(np.float32)
    undone = np.linalg.inv(matrix)
    return replace(sample, points=points, boxes=boxes, lidar2cam=sample.lidar2cam @ undone)


def keep_range(sample: Sample, area: tuple[float, ...], *, boxes: bool = True) -> Sample:
    """A sample without points (and boxes, by their centre from above) beyond the range."""
    points, rows, labels = sample.points, sample.boxes, sample.labels
    low, high = np.array(area[:3]), np.array(area[3:])
    if points is not None:
        points = points[((points[:, :3] > low) & (points[:, :3] < high)).all(1)]
    if boxes and len(rows):
        inside = ((rows[:, :2] > low[:2]) & (rows[:, :2] < high[:2])).all(1)
        rows, labels = rows[inside], labels[inside]
        rows = rows.copy()
        rows[:, 6] = wrap(rows[:, 6])
    return replace(sample, points=points, boxes=rows, labels=labels)
