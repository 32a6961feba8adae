"""Boxes as rows ``(x, y, z, length, width, height, yaw, vx, vy)``.

Metres, radians and metres a second in the LiDAR frame; ``z`` is the centre of gravity (mmdet3d stores the bottom);
``length`` lies along x where yaw is 0, and yaw turns counter-clockwise.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tenfold.errors import UserError
from tenfold.systems.cross_modal_detector.geometry.poses import yaw_of

BOX_SIZE = 9

_SIGNS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)], dtype=np.float64)
EDGES = ((0, 1), (0, 2), (0, 4), (1, 3), (1, 5), (2, 3), (2, 6), (3, 7), (4, 5), (4, 6), (5, 7), (6, 7))
"""Pairs of the corners of ``corners_of`` that an edge joins."""


def corners_of(boxes: ArrayLike) -> NDArray[np.float64]:
    """Corners ``(n, 8, 3)`` of boxes; the first four have the smaller x at yaw 0.

    Args:
        boxes: ``(n, 7 or more)``: centre, length, width, height (metres), yaw (radians).
    """
    rows = np.asarray(boxes, dtype=np.float64).reshape(-1, np.shape(boxes)[-1] if np.size(boxes) else BOX_SIZE)
    local = _SIGNS[None] * rows[:, None, 3:6]
    cos, sin = np.cos(rows[:, 6])[:, None], np.sin(rows[:, 6])[:, None]
    turned = np.stack([local[..., 0] * cos - local[..., 1] * sin, local[..., 0] * sin + local[..., 1] * cos], -1)
    return np.concatenate([turned, local[..., 2:]], -1) + rows[:, None, :3]


def points_in_boxes(points: ArrayLike, boxes: ArrayLike) -> NDArray[np.bool_]:
    """Which points lie in which boxes, ``(p, n)`` booleans.

    Args:
        points: ``(p, 3 or more)``, metres.
        boxes: ``(n, 7 or more)``, see ``corners_of``.
    """
    xyz = np.asarray(points, dtype=np.float64)[:, :3]
    rows = np.asarray(boxes, dtype=np.float64)
    if len(rows) == 0 or len(xyz) == 0:
        return np.zeros((len(xyz), len(rows)), dtype=bool)
    away = xyz[:, None] - rows[None, :, :3]
    cos, sin = np.cos(rows[:, 6]), np.sin(rows[:, 6])
    along = away[..., 0] * cos + away[..., 1] * sin
    across = -away[..., 0] * sin + away[..., 1] * cos
    half = rows[:, 3:6] / 2
    return (np.abs(along) <= half[:, 0]) & (np.abs(across) <= half[:, 1]) & (np.abs(away[..., 2]) <= half[:, 2])


def overlap_from_above(first: ArrayLike, second: ArrayLike) -> NDArray[np.bool_]:
    """Whether the footprints of boxes ``(n, 7)`` and ``(m, 7)`` overlap: ``(n, m)``, by separating axes."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(a) == 0 or len(b) == 0:
        return np.zeros((len(a), len(b)), dtype=bool)
    corners_a, corners_b = corners_of(a)[:, ::2, :2], corners_of(b)[:, ::2, :2]
    apart = np.zeros((len(a), len(b)), dtype=bool)
    for boxes, of_first in ((a, True), (b, False)):
        cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
        for axis in (np.stack([cos, sin], -1), np.stack([-sin, cos], -1)):
            if of_first:  # an axis for every first box
                on_a = np.einsum("nkc,nc->nk", corners_a, axis)[:, None]
                on_b = np.einsum("mkc,nc->nmk", corners_b, axis)
            else:
                on_a = np.einsum("nkc,mc->nmk", corners_a, axis)
                on_b = np.einsum("mkc,mc->mk", corners_b, axis)[None]
            apart |= (on_a.max(-1) <= on_b.min(-1)) | (on_b.max(-1) <= on_a.min(-1))
    return ~apart


def transform_boxes(boxes: ArrayLike, pose: ArrayLike) -> NDArray[np.float64]:
    """Boxes ``(n, 9)`` in another frame; the pose must turn about z, but for a tilt that is left out of the boxes."""
    rows = np.array(boxes, dtype=np.float64).reshape(-1, BOX_SIZE)
    matrix = np.asarray(pose, dtype=np.float64)
    rows[:, :3] = rows[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
    rows[:, 6] = wrap(rows[:, 6] + yaw_of(matrix))
    velocity = np.concatenate([rows[:, 7:9], np.zeros((len(rows), 1))], 1) @ matrix[:3, :3].T
    rows[:, 7:9] = velocity[:, :2]
    return rows


def wrap(angle: ArrayLike) -> NDArray[np.float64]:
    """Angles in [-pi, pi)."""
    return (np.asarray(angle, dtype=np.float64) + np.pi) % (2 * np.pi) - np.pi


def check_boxes(boxes: ArrayLike, name: str) -> NDArray[np.float64]:
    """Boxes ``(n, 9)`` as float64; velocities may be NaN (unknown).

    Raises:
        UserError: another shape, numbers that are not finite, or a size that is not above 0; names the first such box.
    """
    rows = np.asarray(boxes, dtype=np.float64)
    rows = rows.reshape(-1, BOX_SIZE) if rows.size == 0 else rows
    if rows.ndim != 2 or rows.shape[1] != BOX_SIZE:
        raise UserError(f"{name}: boxes must be rows of x, y, z, l, w, h, yaw, vx, vy; got shape {rows.shape}")
    broken = ~np.isfinite(rows[:, :7]).all(1)
    if broken.any():
        raise UserError(f"{name}: box {int(broken.argmax())} holds a number that is not finite")
    flat = (rows[:, 3:6] <= 0).any(1)
    if flat.any():
        row = int(flat.argmax())
        raise UserError(f"{name}: box {row} has the size {rows[row, 3:6].tolist()}; all must lie above 0")
    return rows
