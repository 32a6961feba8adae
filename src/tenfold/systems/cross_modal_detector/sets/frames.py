"""Frames: what a sample is before it is read, and after; the same for every source."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tenfold.errors import UserError
from tenfold.files import read_bytes
from tenfold.systems.cross_modal_detector.geometry.boxes import BOX_SIZE, check_boxes
from tenfold.systems.cross_modal_detector.geometry.poses import (
    check_intrinsics,
    check_pose,
    lidar_to_image,
    stack_poses,
)

NUSCENES_CLASSES = (
    "car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle", "pedestrian",
    "traffic_cone",
)  # fmt: skip
"""In the order of the official weights."""

Missing = Literal["refuse", "missing"]
"""What a file that is not there means: an error, or a sensor that is not there."""


@dataclass(frozen=True)
class CameraView:
    """One camera of a frame.

    Attributes:
        name: of the camera.
        image: file, or ``(height, width, 3)`` uint8 red, green, blue; ``None`` where the camera is not there.
        intrinsics: ``(3, 3)`` pixels.
        lidar2cam: ``(4, 4)`` from the LiDAR at its time to the camera (x right, y down, z forward) at its own.
        timestamp: seconds.
    """

    name: str
    image: Path | NDArray[np.uint8] | None
    intrinsics: NDArray[np.float64]
    lidar2cam: NDArray[np.float64]
    timestamp: float = 0.0


@dataclass(frozen=True)
class Sweep:
    """An earlier cloud.

    Attributes:
        points: file, or ``(n, 4 or more)``.
        to_key: ``(4, 4)`` into the LiDAR frame of the key frame.
        age: seconds before the key frame.
    """

    points: Path | NDArray[np.float32]
    to_key: NDArray[np.float64]
    age: float


@dataclass(frozen=True)
class Frame:
    """A sample that is not read yet.

    Attributes:
        token: unique name.
        scene: of which it is part.
        timestamp: seconds.
        points: file (``.bin`` of five float32 a point, ``.npy``), or ``(n, 4 or more)`` x, y, z in metres, intensity
            in [0, 255]; ``None`` without LiDAR.
        sweeps: earlier clouds, the latest first.
        cameras: the views, in one order in all frames.
        lidar2ego: ``(4, 4)``.
        ego2global: ``(4, 4)`` at the LiDAR's time.
        boxes: ``(n, 9)`` in the LiDAR frame; velocities are NaN where not known.
        names: class of each box.
        num_points: ``(n,)`` LiDAR (and radar) points in each; -1 where not counted.
        attributes: nuScenes' attribute of each, "" where there is none.
        racks: ``(m, 9)`` bicycle racks, within which two-wheelers are not scored.
    """

    token: str
    timestamp: float
    points: Path | NDArray[np.float32] | None
    cameras: tuple[CameraView, ...]
    boxes: NDArray[np.float64]
    names: tuple[str, ...]
    scene: str = ""
    sweeps: tuple[Sweep, ...] = ()
    lidar2ego: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    ego2global: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    num_points: NDArray[np.int64] | None = None
    attributes: tuple[str, ...] = ()
    racks: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, BOX_SIZE)))

    @property
    def lidar2global(self) -> NDArray[np.float64]:
        """``(4, 4)``."""
        return self.ego2global @ self.lidar2ego

    @property
    def counts(self) -> NDArray[np.int64]:
        """``(n,)`` points in each box, -1 where not counted."""
        return np.full(len(self.names), -1) if self.num_points is None else np.asarray(self.num_points)


@dataclass
class Sample:
    """A frame that was read; augmentations change it.

    Attributes:
        token: of the frame.
        points: ``(n, 5)`` float32: x, y, z, intensity, seconds before the key frame; ``None`` where there is no cloud.
        images: per camera ``(height, width, 3)`` uint8 or float32, or ``None``.
        intrinsics: ``(views, 3, 3)``.
        lidar2cam: ``(views, 4, 4)``.
        boxes: ``(n, 9)``.
        labels: ``(n,)`` numbers of classes.
    """

    token: str
    points: NDArray[np.float32] | None
    images: list[NDArray | None]
    intrinsics: NDArray[np.float64]
    lidar2cam: NDArray[np.float64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]

    @property
    def lidar2img(self) -> NDArray[np.float64]:
        """``(views, 4, 4)``."""
        if not len(self.intrinsics):
            return np.zeros((0, 4, 4))
        return np.stack([lidar_to_image(k, t) for k, t in zip(self.intrinsics, self.lidar2cam, strict=True)])


def check_frame(frame: Frame) -> Frame:
    """The frame, where its calibration and boxes can be.

    Args:
        frame: of any origin.

    Raises:
        UserError: names the frame and what is wrong.
    """
    where = f"frame {frame.token}"
    for view in frame.cameras:
        check_intrinsics(view.intrinsics, f"{where}: intrinsics of {view.name}")
        check_pose(view.lidar2cam, f"{where}: lidar2cam of {view.name}")
    check_pose(frame.lidar2ego, f"{where}: lidar2ego")
    check_pose(frame.ego2global, f"{where}: ego2global")
    for number, sweep in enumerate(frame.sweeps):
        check_pose(sweep.to_key, f"{where}: to_key of sweep {number}")
    boxes = check_boxes(frame.boxes, where)
    if len(boxes) != len(frame.names):
        raise UserError(f"{where}: {len(boxes)} boxes, but {len(frame.names)} names")
    if frame.points is None and not any(view.image is not None for view in frame.cameras):
        raise UserError(f"{where} has neither points nor an image")
    return frame


def read_points(source: Path | NDArray, name: str = "points", *, aged: bool = False) -> NDArray[np.float32]:
    """Points ``(n, 5)``: x, y, z, intensity, 0; the fifth number of nuScenes' files is the ring, and is left out.

    Args:
        source: file of five float32 a point, ``.npy`` file, or array.
        name: of it, for messages.
        aged: the fifth number is seconds before the key frame, and is kept (mmdet3d's files of single objects).

    Raises:
        UserError: the file is missing or cut short, or holds numbers that are not finite.
    """
    if isinstance(source, np.ndarray):
        raw = source
    elif source.suffix == ".npy":
        try:
            raw = np.load(io.BytesIO(read_bytes(source, 2**30)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise UserError(f"{source} is damaged or no array of points: {error}") from error
    else:
        content = read_bytes(source, 2**30)
        if len(content) % 20:
            raise UserError(f"{source} is cut short: its {len(content):,} bytes are no multiple of 20 (five float32)")
        raw = np.frombuffer(content, dtype=np.float32).reshape(-1, 5)
        name = str(source)
    if raw.ndim != 2 or raw.shape[1] < 3:
        raise UserError(f"{name}: points must be rows of x, y, z, intensity; got shape {raw.shape}")
    points = np.zeros((len(raw), 5), dtype=np.float32)
    width = min(5 if aged else 4, raw.shape[1])
    points[:, :width] = raw[:, :width]
    broken = ~np.isfinite(points).all(1)
    if broken.any():
        raise UserError(
            f"{name}: {int(broken.sum())} of {len(points):,} points hold numbers that are not finite, the first is "
            f"number {int(broken.argmax())}; take them out of the file"
        )
    return points


def read_image(source: Path | NDArray, name: str = "image") -> NDArray[np.uint8]:
    """Image ``(height, width, 3)`` uint8 red, green, blue.

    Raises:
        UserError: the file is missing or damaged, or the array is no such image.
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8:
            raise UserError(f"{name} must be (height, width, 3) uint8; got {source.shape} {source.dtype}")
        return source
    from PIL import Image

    content = read_bytes(source, 2**28)
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # a damaged file can end the decoder anywhere
        raise UserError(f"{source} is damaged or no image") from error


def read_frame(
    frame: Frame,
    classes: Sequence[str],
    *,
    sweeps: int = 0,
    missing: Missing = "refuse",
    keep_empty: bool = True,
    images: bool = True,
    lidar: bool = True,
) -> Sample:
    """Read a frame's clouds and images, and its boxes of the classes asked for.

    Args:
        frame: see ``Frame``.
        classes: names in the order of the labels; boxes of others are left out.
        sweeps: most earlier clouds to add.
        missing: a file that is not there is refused, or is a sensor that is not there.
        keep_empty: keep boxes that are known to hold no point (training leaves them out).
        images: read the images.
        lidar: read the clouds.

    Raises:
        UserError: a file is missing (where refused) or damaged.
    """
    points = None
    if lidar and frame.points is not None and _there(frame.points, missing):
        clouds = [read_points(frame.points, f"frame {frame.token}: points")]
        for sweep in frame.sweeps[:sweeps]:
            if not _there(sweep.points, missing):
                continue
            cloud = read_points(sweep.points, f"frame {frame.token}: sweep")
            cloud[:, :3] = cloud[:, :3] @ sweep.to_key[:3, :3].T.astype(np.float32) + sweep.to_key[:3, 3].astype(
                np.float32
            )
            cloud[:, 4] = sweep.age
            clouds.append(cloud)
        points = np.concatenate(clouds)
    views: list[NDArray | None] = []
    for view in frame.cameras:
        there = images and view.image is not None and _there(view.image, missing)
        views.append(read_image(view.image, f"frame {frame.token}: {view.name}") if there else None)  # type: ignore[arg-type]
    number = {name: index for index, name in enumerate(classes)}
    kept = np.array([name in number for name in frame.names], dtype=bool)
    if not keep_empty:
        kept &= frame.counts != 0
    boxes = np.asarray(frame.boxes, dtype=np.float64).reshape(-1, BOX_SIZE)[kept].copy()
    boxes[:, 7:] = np.nan_to_num(boxes[:, 7:])
    labels = np.array([number[name] for name, keep in zip(frame.names, kept, strict=True) if keep], dtype=np.int64)
    return Sample(
        token=frame.token,
        points=points,
        images=views,
        intrinsics=np.array([view.intrinsics for view in frame.cameras], dtype=np.float64).reshape(-1, 3, 3),
        lidar2cam=stack_poses([view.lidar2cam for view in frame.cameras]),
        boxes=boxes,
        labels=labels,
    )


def _there(source: Path | NDArray, missing: Missing) -> bool:
    """Whether a sensor's data are there; a file that is missing is refused later, when it is read."""
    return isinstance(source, np.ndarray) or missing == "refuse" or source.is_file()
