"""Rigid poses, quaternions and pinhole cameras; every matrix says from where to where."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tenfold.errors import UserError

Matrix = NDArray[np.float64]


def rotation_of(quaternion: ArrayLike, name: str = "rotation") -> Matrix:
    """Rotation matrix ``(3, 3)`` of a quaternion ``(w, x, y, z)``, which is normalized first.

    Raises:
        UserError: it is not four finite numbers, or all are zero.
    """
    q = np.asarray(quaternion, dtype=np.float64)
    if q.shape != (4,) or not np.isfinite(q).all() or np.linalg.norm(q) < 1e-9:
        raise UserError(f"{name} must be a quaternion w, x, y, z, not zero; got {np.asarray(quaternion).tolist()}")
    w, x, y, z = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_of(rotation: ArrayLike) -> NDArray[np.float64]:
    """Quaternion ``(w, x, y, z)``, ``w >= 0``, of a rotation matrix ``(3, 3)``."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(np.asarray(rotation, dtype=np.float64)).as_quat(canonical=True)
    return np.array([w, x, y, z])


def quaternion_about_z(yaw: float) -> list[float]:
    """Quaternion ``(w, x, y, z)`` of a turn about z, in radians."""
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def pose_of(rotation: ArrayLike, translation: ArrayLike) -> Matrix:
    """Pose ``(4, 4)`` of a rotation (matrix or quaternion) and a translation in metres.

    Args:
        rotation: ``(3, 3)``, or a quaternion ``(w, x, y, z)``.
        translation: ``(3,)``, metres.

    Raises:
        UserError: they are not these.
    """
    turn = np.asarray(rotation, dtype=np.float64)
    pose = np.eye(4)
    pose[:3, :3] = rotation_of(turn) if turn.shape == (4,) else turn
    shift = np.asarray(translation, dtype=np.float64)
    if shift.shape != (3,) or not np.isfinite(shift).all():
        raise UserError(f"translation must be x, y, z in metres; got {np.asarray(translation).tolist()}")
    pose[:3, 3] = shift
    return pose


def inverse_pose(pose: ArrayLike) -> Matrix:
    """Inverse ``(4, 4)`` of a rigid pose."""
    matrix = np.asarray(pose, dtype=np.float64)
    inverse = np.eye(4)
    inverse[:3, :3] = matrix[:3, :3].T
    inverse[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    return inverse


def yaw_of(rotation: ArrayLike) -> float:
    """Angle of the x axis about z, in radians, of a rotation ``(3, 3)`` or a pose ``(4, 4)``."""
    matrix = np.asarray(rotation, dtype=np.float64)
    return float(np.arctan2(matrix[1, 0], matrix[0, 0]))


def transform(points: ArrayLike, pose: ArrayLike) -> NDArray[np.float64]:
    """Points ``(..., 3)`` in another frame: ``R x + t``."""
    matrix = np.asarray(pose, dtype=np.float64)
    return np.asarray(points, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def lidar_to_image(intrinsics: ArrayLike, lidar2cam: ArrayLike) -> Matrix:
    """``(4, 4)`` from LiDAR coordinates to ``(u d, v d, d, 1)`` of a pinhole camera.

    Args:
        intrinsics: ``(3, 3)``, pixels.
        lidar2cam: ``(4, 4)``, metres.
    """
    matrix = np.eye(4)
    matrix[:3, :3] = np.asarray(intrinsics, dtype=np.float64)
    return matrix @ np.asarray(lidar2cam, dtype=np.float64)


def project(points: ArrayLike, lidar2img: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixels ``(..., 2)`` and depths ``(...,)`` in metres; pixels of points at or behind the camera are NaN.

    Args:
        points: ``(..., 3)``, metres, in LiDAR coordinates.
        lidar2img: ``(4, 4)``, see ``lidar_to_image``.
    """
    xyz = np.asarray(points, dtype=np.float64)
    seen = xyz @ np.asarray(lidar2img)[:3, :3].T + np.asarray(lidar2img)[:3, 3]
    depth = seen[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = np.where(depth[..., None] > 1e-6, seen[..., :2] / depth[..., None], np.nan)
    return pixels, depth


def check_pose(pose: ArrayLike, name: str) -> Matrix:
    """The pose, where it is rigid.

    Raises:
        UserError: it is not ``(4, 4)`` and finite, or its rotation is none. The message says which mistake it looks
            like: singular, mirrored, scaled, or not orthogonal.
    """
    matrix = np.asarray(pose, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise UserError(f"{name} must be a finite 4 x 4 matrix; got shape {matrix.shape}")
    if not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise UserError(f"{name} must end with the row 0 0 0 1; got {matrix[3].tolist()} (is it transposed?)")
    turn = matrix[:3, :3]
    determinant = float(np.linalg.det(turn))
    if abs(determinant) < 1e-6:
        raise UserError(f"{name} is singular: no rotation of a sensor is")
    gram = turn @ turn.T
    if not np.allclose(gram, np.eye(3), atol=1e-3):
        scale = np.sqrt(np.trace(gram) / 3)
        kind = f"scaled by {scale:.3g}" if np.allclose(gram / scale**2, np.eye(3), atol=1e-3) else "not orthogonal"
        raise UserError(f"{name} holds no rotation: its 3 x 3 part is {kind}")
    if determinant < 0:
        raise UserError(f"{name} holds no rotation but a mirror image (determinant -1): an axis has the wrong sign")
    return matrix


def check_intrinsics(intrinsics: ArrayLike, name: str) -> Matrix:
    """The intrinsics ``(3, 3)``, where they are a camera's.

    Raises:
        UserError: they are not finite, focal lengths are not above 0, or the last row is not 0 0 1.
    """
    matrix = np.asarray(intrinsics, dtype=np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise UserError(f"{name} must be a finite 3 x 3 matrix; got shape {matrix.shape}")
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0 or not np.allclose(matrix[2], (0, 0, 1)):
        raise UserError(
            f"{name} is no pinhole camera: focal lengths must lie above 0 and the last row be 0 0 1; "
            f"got {matrix[0, 0]:g}, {matrix[1, 1]:g} and {matrix[2].tolist()}"
        )
    return matrix


def stack_poses(poses: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """``(n, 4, 4)``, also of none."""
    return np.stack([np.asarray(pose, dtype=np.float64) for pose in poses]) if poses else np.zeros((0, 4, 4))
