"""LiDAR points into a camera's picture: sparse depth."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tenfold.errors import UserError
from tenfold.files import read_text, regular

POINT_SUFFIXES = frozenset((".bin", ".npy", ".npz"))


def project_points(
    points: ArrayLike,
    intrinsics: tuple[float, float, float, float],
    size: tuple[int, int],
    *,
    nearest: float = 0.5,
    occlusion: int = 2,
    tolerance: float = 1.1,
) -> NDArray[np.float32]:
    """Sparse depth of points in the camera's frame; the nearest point of a pixel counts.

    The LiDAR stands elsewhere than the camera and sees behind what the camera sees: a point farther than ``tolerance``
    times the nearest within ``occlusion`` pixels of its row is taken for hidden and left out (of its row, since the
    ground's depth rises quickly from row to row).

    Args:
        points: ``(n, 3)`` metres; x right, y down, z forward.
        intrinsics: fx, fy, cx, cy in pixels; pixel centres at whole numbers.
        size: height and width.
        nearest: points nearer than this are left out.
        occlusion: pixels to either side; 0 keeps all.
        tolerance: factor, above 1.

    Returns:
        ``(height, width)`` float32 metres, 0 where no point falls.

    Raises:
        UserError: points or intrinsics are not these.
    """
    from scipy.ndimage import minimum_filter

    xyz = np.asarray(points, dtype=np.float64)
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise UserError(f"points must be (n, 3); got {xyz.shape}")
    fx, fy, cx, cy = intrinsics
    if not (np.isfinite(intrinsics).all() and fx > 0 and fy > 0):
        raise UserError(f"intrinsics must be fx, fy, cx, cy with fx and fy above 0; got {intrinsics}")
    height, width = size
    xyz = xyz[np.isfinite(xyz).all(1) & (xyz[:, 2] > nearest)]
    u = np.rint(fx * xyz[:, 0] / xyz[:, 2] + cx).astype(np.int64)
    v = np.rint(fy * xyz[:, 1] / xyz[:, 2] + cy).astype(np.int64)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    depth = np.full(height * width, np.inf, dtype=np.float32)
    np.minimum.at(depth, v[inside] * width + u[inside], xyz[inside, 2].astype(np.float32))
    picture = depth.reshape(height, width)
    if occlusion:
        around = minimum_filter(picture, size=(1, 2 * occlusion + 1), mode="constant", cval=np.inf)
        picture = np.where(picture > tolerance * around, np.inf, picture)
    return np.where(np.isfinite(picture), picture, 0).astype(np.float32)


def to_sensor(points: ArrayLike, heading: ArrayLike, position: ArrayLike) -> NDArray[np.float64]:
    """World points ``(n, 3)`` in the frame of a sensor: ``R(heading)^T (X - position)``.

    Args:
        points: metres.
        heading: unit quaternion w, x, y, z, from sensor to world.
        position: of the sensor in the world.
    """
    w, x, y, z = np.asarray(heading, dtype=np.float64) / np.linalg.norm(heading)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    return (np.asarray(points, dtype=np.float64) - np.asarray(position, dtype=np.float64)) @ rotation


def read_points(path: str | Path) -> NDArray[np.float64]:
    """Points ``(n, 3)`` in metres of a scan.

    Args:
        path: ``.bin``: rows of x, y, z, reflectance as little-endian float32 (KITTI); ``.npy``: ``(n, 3)`` or more
            columns; ``.npz``: arrays ``x``, ``y``, ``z``, or ``points`` as in a ``.npy``.

    Raises:
        UserError: the file is missing, damaged, or of another form.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".bin":
            content = regular(path).read_bytes()
            if len(content) % 16:
                raise UserError(f"{path} is damaged or no scan: its {len(content):,} bytes are no rows of 4 float32")
            points: np.ndarray = np.frombuffer(content, "<f4").reshape(-1, 4)
        elif path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                points = arrays["points"] if "points" in arrays else np.stack([arrays[axis] for axis in "xyz"], 1)
        elif path.suffix.lower() == ".npy":
            points = np.load(path, allow_pickle=False)
        else:
            raise UserError(f"{path} is no scan; known are {', '.join(sorted(POINT_SUFFIXES))}")
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"cannot read {path}: there is no such file") from error
    except Exception as error:  # a damaged file can end the reader anywhere
        raise UserError(f"{path} is damaged or holds no points: {' '.join(str(error).split())[:100]}") from error
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise UserError(f"{path} holds {points.dtype} of shape {points.shape}, not points (n, 3)")
    return points[:, :3].astype(np.float64)


def read_extrinsics(path: str | Path) -> NDArray[np.float64]:
    """The ``(3, 4)`` matrix ``[R | t]`` that takes points of the LiDAR into the camera's axes, from 12 or 16 numbers.

    Raises:
        UserError: the file holds other numbers, or R is no rotation.
    """
    words = re.split(r"[\s,]+", read_text(Path(path)).strip())
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError as error:
        raise UserError(f"{path} must hold numbers only: R|t row by row, 12 or 16 of them") from error
    if len(numbers) not in (12, 16) or not np.isfinite(numbers).all():
        raise UserError(f"{path} holds {len(numbers)} numbers; R|t, row by row, are 12 or 16")
    matrix = numbers[:12].reshape(3, 4)
    rotation = matrix[:, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        raise UserError(f"{path}: the first three columns are no rotation")
    return matrix
