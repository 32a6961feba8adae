"""A real drive with LiDAR (PandaSet in its reduced form): frames of one camera with sparse metric depth."""

from pathlib import Path

import numpy as np
import torch

from tenfold.errors import UserError
from tenfold.files import inside, read_json
from tenfold.systems.full_skip_depth.sets.frames import FrameArrays, read_photo
from tenfold.systems.full_skip_depth.sets.lidar import project_points, to_sensor

FARTHEST = 80.0


def drive_frames(
    root: str | Path, *, camera: str = "front_camera", size: tuple[int, int] | None = (54, 96)
) -> dict[str, FrameArrays]:
    """Frames of a drive by part, split by time with gaps between: ``train``, ``val``, ``test``.

    The points of a frame are put into the camera as it stood when it fired (19 to 100 ms before the LiDAR's time), so
    what moves by itself is off by that much.

    Args:
        root: folder with ``frames.json``, ``splits.json``, ``images`` and ``lidar``.
        camera: one of its cameras.
        size: ``(height, width)`` of the frames; their own where ``None``.

    Raises:
        UserError: the folder is not such a drive, or has no such camera.
    """
    root = Path(root)
    info, splits = read_json(root / "frames.json"), read_json(root / "splits.json")
    try:
        if camera not in info["cameras"]:
            raise UserError(f"{root} has no camera {camera!r}; it has: {', '.join(info['cameras'])}")
        width, height = info["image_size"]
        own = info["cameras"][camera]["intrinsics"]
        size = size or (height, width)
        sy, sx = size[0] / height, size[1] / width
        # Pixel centres lie at whole numbers: (c + 1/2) scales, not c.
        intrinsics = (
            own["fx"] * sx, own["fy"] * sy, (own["cx"] + 0.5) * sx - 0.5, (own["cy"] + 0.5) * sy - 0.5,
        )  # fmt: skip
        by_number = {frame["frame"]: frame for frame in info["frames"]}
        parts = {}
        for part in ("train", "val", "test"):
            images, depths = [], []
            for number in splits[part]:
                frame = by_number[number]
                view = frame["cameras"][camera]
                photo = read_photo(inside(root, view["file"]))
                resized = torch.nn.functional.interpolate(
                    photo[None].float(), size=size, mode="bilinear", antialias=True
                )[0]
                images.append(resized.round().clamp(0, 255).to(torch.uint8))
                points = _points(inside(root, frame["lidar"]["file"]))
                seen = to_sensor(points, view["pose"]["heading"], view["pose"]["position"])
                depths.append(torch.from_numpy(project_points(seen, intrinsics, size)))
            names = [f"{camera}/{number:02d}" for number in splits[part]]
            parts[part] = FrameArrays(torch.stack(images), torch.stack(depths), intrinsics[0], names)
        return parts
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{root} is not a drive in this form: {type(error).__name__} {error}") from error


def _points(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return np.stack([arrays[axis] for axis in "xyz"], 1)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged or holds no points: {error}") from error
