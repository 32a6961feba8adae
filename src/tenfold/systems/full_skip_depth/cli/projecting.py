"""``project``: LiDAR scans to the sparse depth maps that training takes."""

from pathlib import Path
from typing import Any

import numpy as np

from tenfold.errors import UserError
from tenfold.files import make_folder
from tenfold.systems.full_skip_depth.cli.predicting import camera_of
from tenfold.systems.full_skip_depth.sets.depth_files import write_depth_png
from tenfold.systems.full_skip_depth.sets.lidar import POINT_SUFFIXES, project_points, read_extrinsics, read_points


def project(
    scans: str,
    *,
    out: str,
    intrinsics: list[float],
    size: list[int],
    extrinsics: str | None = None,
    png_scale: float = 256,
    occlusion: int = 2,
) -> dict[str, Any]:
    """Project LiDAR scans into a camera: sparse depth as 16-bit PNG files named as the scans, a folder depth of pairs.

    Args:
        scans: folder of .bin (KITTI), .npy or .npz files; or one of them.
        out: folder to write, such as PAIRS/depth; the photos lie beside it in PAIRS/rgb under the same names.
        intrinsics: [fx, fy, cx, cy] in pixels of the photos, or [f] with the centre in the middle.
        size: [height, width] of the photos.
        extrinsics: text file with R|t from LiDAR to camera (x right, y down, z forward), row by row, 12 or 16 numbers;
            or a folder of such files named as the scans. Without it points are in the camera's axes already.
        png_scale: values per metre.
        occlusion: pixels within which points behind nearer ones are taken for hidden; 0 keeps all.
    """
    if len(size) != 2 or min(size) < 1 or occlusion < 0 or not (np.isfinite(png_scale) and png_scale > 0):
        raise UserError("size is [height, width], occlusion 0 or more, and png_scale lies above 0")
    camera = camera_of(intrinsics, size)
    assert camera is not None
    source = Path(scans)
    if not source.exists():
        raise UserError(f"there is no scan and no folder {scans}")
    files = (
        [path for path in sorted(source.iterdir()) if path.suffix.lower() in POINT_SUFFIXES]
        if source.is_dir()
        else [source]
    )
    if not files:
        raise UserError(f"{scans} holds no scans ({', '.join(sorted(POINT_SUFFIXES))})")
    if len({path.stem for path in files}) < len(files):
        raise UserError(f"{scans} holds two scans of one name")
    if extrinsics is not None and not Path(extrinsics).exists():
        raise UserError(f"there is no file and no folder {extrinsics}")
    shares, folder = [], make_folder(out)
    for path in files:
        points = read_points(path)
        if extrinsics is not None:
            given = Path(extrinsics)
            matrix = read_extrinsics(given / f"{path.stem}.txt" if given.is_dir() else given)
            points = points @ matrix[:, :3].T + matrix[:, 3]
        depth = project_points(points, camera, (size[0], size[1]), occlusion=occlusion)
        if not depth.any():
            raise UserError(f"{path}: no point falls into the picture; check --extrinsics (x right, y down, z forward)")
        write_depth_png(folder / f"{path.stem}.png", depth, png_scale)
        shares.append(float((depth > 0).mean()))
    return {
        "depth_maps": len(files),
        "folder": str(folder),
        "depth_scale": png_scale,
        "valid_share": float(np.mean(shares)),
    }
