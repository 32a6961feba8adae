"""LiDAR points into a camera's picture: sparse depth."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tenfold.errors import UserError


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
