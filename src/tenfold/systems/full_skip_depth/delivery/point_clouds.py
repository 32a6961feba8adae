"""Depth and a picture as a cloud of coloured points."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tenfold.errors import UserError
from tenfold.files import write_atomically
from tenfold.systems.full_skip_depth.sets.depth_files import Depth

Intrinsics = tuple[float, float, float, float]


def to_points(depth: Depth, intrinsics: Intrinsics) -> NDArray[np.float32]:
    """Points ``(n, 3)`` of the pixels with a depth; x right, y down, z forward, metres.

    Args:
        depth: ``(height, width)`` metres along the optical axis; 0: none.
        intrinsics: fx, fy, cx, cy in pixels; pixel centres at whole numbers.
    """
    fx, fy, cx, cy = intrinsics
    if not (np.isfinite(intrinsics).all() and fx > 0 and fy > 0):
        raise UserError(f"intrinsics are fx, fy, cx, cy in pixels, fx and fy above 0; got {list(intrinsics)}")
    v, u = np.nonzero(depth > 0)
    z = depth[v, u].astype(np.float64)
    return np.stack([(u - cx) / fx * z, (v - cy) / fy * z, z], 1).astype(np.float32)


def write_ply(path: str | Path, depth: Depth, image: NDArray[np.uint8], intrinsics: Intrinsics) -> int:
    """Write a binary PLY file of coloured points; returns their number.

    Args:
        path: the file.
        depth: see ``to_points``.
        image: ``(height, width, 3)`` colours.
        intrinsics: see ``to_points``.
    """
    points = to_points(depth, intrinsics)
    colours = image[depth > 0]
    rows = np.zeros(len(points), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    rows["xyz"], rows["rgb"] = points, colours
    properties = "".join(f"property float {axis}\n" for axis in "xyz")
    properties += "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(rows)}\n{properties}end_header\n"
    write_atomically(path, header.encode() + rows.tobytes())
    return len(rows)
