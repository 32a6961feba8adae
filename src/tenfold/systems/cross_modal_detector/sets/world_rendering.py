"""Rays cast at boxes on a plane: what the cameras and the LiDAR of the rendered world see."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tenfold.systems.cross_modal_detector.geometry.poses import inverse_pose

_COLOURS = torch.tensor([[200.0, 60.0, 50.0], [50.0, 80.0, 210.0], [225.0, 190.0, 40.0]])
_YAWS = {
    "CAM_FRONT": 0.0, "CAM_FRONT_LEFT": 60.0, "CAM_BACK_LEFT": 120.0, "CAM_BACK": 180.0, "CAM_BACK_RIGHT": -120.0,
    "CAM_FRONT_RIGHT": -60.0,
}  # fmt: skip
_CAMERA_HEIGHT, _LIDAR_HEIGHT = 1.6, 1.8


@dataclass
class Scene:
    """Boxes ``(n, 7)`` and velocities ``(n, 2)`` in the global frame at time 0; the vehicle's way."""

    boxes: np.ndarray
    velocities: np.ndarray
    classes: np.ndarray
    start: np.ndarray
    heading: float
    speed: float
    ground: float
    light: float
    seed: int

    def ego(self, time: float) -> np.ndarray:
        """Pose ``(4, 4)`` of the vehicle."""
        pose = np.eye(4)
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        pose[:2, :2] = [[cos, -sin], [sin, cos]]
        pose[:2, 3] = self.start + self.speed * time * np.array([cos, sin])
        return pose

    def boxes_at(self, time: float) -> np.ndarray:
        """Boxes ``(n, 7)`` in the global frame."""
        moved = self.boxes.copy()
        moved[:, :2] += self.velocities * time
        return moved


def cast_rays(origin: Tensor, directions: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What rays hit first: boxes, or the plane z = 0.

    Args:
        origin: ``(3,)``.
        directions: ``(rays, 3)``.
        boxes: ``(n, 7)``.

    Returns:
        Distances in lengths of the directions ``(rays,)``, infinite where nothing is hit; numbers of boxes, -1 for the
        ground and -2 for nothing; the axis of the box that the hit face is normal to, with its sign: 1, 2, 3 or their
        negatives.
    """
    down = directions[:, 2]
    ground = torch.where(down < -1e-6, -origin[2] / down.clamp(max=-1e-6), torch.inf)
    what = torch.where(ground.isfinite(), -1, -2)
    face = torch.full_like(what, 3)
    if len(boxes) == 0:
        return ground, what, face
    cos, sin = boxes[:, 6].cos(), boxes[:, 6].sin()
    away = origin - boxes[:, :3]
    start = torch.stack((away[:, 0] * cos + away[:, 1] * sin, -away[:, 0] * sin + away[:, 1] * cos, away[:, 2]), -1)
    along = torch.stack(
        (
            directions[:, :1] * cos + directions[:, 1:2] * sin,
            -directions[:, :1] * sin + directions[:, 1:2] * cos,
            directions[:, 2:].expand(-1, len(boxes)),
        ),
        -1,
    )
    along = torch.where(along.abs() < 1e-9, 1e-9, along)
    half = boxes[:, 3:6] / 2
    one, other = (-half - start) / along, (half - start) / along
    enter, axis = torch.minimum(one, other).max(-1)
    leave = torch.maximum(one, other).amin(-1)
    enter = torch.where((enter < leave) & (enter > 0.05), enter, torch.inf)
    nearest, box = enter.min(-1)
    hit = nearest < ground
    hit_axis = axis.gather(1, box[:, None])[:, 0]
    sign = -along[torch.arange(len(box)), box, hit_axis].sign().long()
    return (
        torch.where(hit, nearest, ground),
        torch.where(hit, box, what),
        torch.where(hit, (hit_axis + 1) * sign, face),
    )


def camera_matrix(size: tuple[int, int]) -> np.ndarray:
    """Intrinsics ``(3, 3)`` of the world's cameras: 60 degrees wide, the horizon at four tenths of the height."""
    height, width = size
    focal = width / 2 / math.tan(math.radians(30))
    return np.array([[focal, 0, width / 2], [0, focal, 0.4 * height], [0, 0, 1]])


def camera_pose(name: str) -> np.ndarray:
    """From the camera (x right, y down, z forward) to the vehicle (x forward, y left, z up)."""
    yaw = math.radians(_YAWS[name])
    forward = np.array([math.cos(yaw), math.sin(yaw), 0])
    left = np.array([-math.sin(yaw), math.cos(yaw), 0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([-left, [0, 0, -1], forward], 1)
    pose[:3, 3] = 0.4 * forward + [0, 0, _CAMERA_HEIGHT]
    return pose


def lidar_pose() -> np.ndarray:
    """NuScenes' LiDAR: x to the right of the vehicle, y ahead."""
    pose = np.eye(4)
    pose[:3, :3] = [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]
    pose[2, 3] = _LIDAR_HEIGHT
    return pose


def _local(boxes: np.ndarray, pose: np.ndarray) -> Tensor:
    """Boxes ``(n, 7)`` of the global frame in that of a vehicle on the plane."""
    inverse = inverse_pose(pose)
    own = boxes.copy()
    own[:, :3] = own[:, :3] @ inverse[:3, :3].T + inverse[:3, 3]
    own[:, 6] -= math.atan2(pose[1, 0], pose[0, 0])
    return torch.from_numpy(own).float()


def photo_of(scene: Scene, name: str, time: float, size: tuple[int, int], noise: torch.Generator) -> np.ndarray:
    """Image ``(height, width, 3)`` uint8 of one camera."""
    height, width = size
    matrix = camera_matrix(size)
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    in_camera = torch.stack(
        ((u - matrix[0, 2]) / matrix[0, 0], (v - matrix[1, 2]) / matrix[1, 1], torch.ones_like(u, dtype=torch.float32)),
        -1,
    ).float()
    pose = torch.from_numpy(camera_pose(name)).float()
    directions = in_camera.reshape(-1, 3) @ pose[:3, :3].T
    boxes = _local(scene.boxes_at(time), scene.ego(time))
    away = boxes[:, :2] - pose[:2, 3]
    reach = boxes[:, 3:5].norm(dim=1) / 2
    # Boxes of which no part lies within 30 degrees of the axis are not in the picture.
    kept = (away @ pose[:2, 2] > -reach) & (
        (away @ pose[:2, 0]).abs() - reach * 1.2 < (away @ pose[:2, 2]) * 0.578 + reach
    )
    far, what, face = cast_rays(pose[:3, 3], directions, boxes[kept])
    kinds = torch.from_numpy(scene.classes)[kept]
    light = torch.tensor([0.55, 0.8, 1.0])[(face.abs() - 1).clamp(min=0)] + 0.12 * face.sign() * math.cos(scene.light)
    painted = _COLOURS[kinds[what.clamp(min=0)] if len(kinds) else what.clamp(min=0) * 0] * light[:, None]
    place = pose[:3, 3] + far[:, None].clamp(max=200) * directions
    checks = ((place[:, 0] / 3).floor() + (place[:, 1] / 3).floor()) % 2
    ground = (scene.ground + 12 * checks)[:, None].expand(-1, 3)
    sky = torch.tensor([150.0, 180.0, 215.0]).expand(len(far), 3)
    colour = torch.where((what >= 0)[:, None], painted, torch.where((what == -1)[:, None], ground, sky))
    colour = colour + 6 * torch.randn(colour.shape, generator=noise)
    return colour.round().clamp(0, 255).to(torch.uint8).view(height, width, 3).numpy()


def cloud_of(scene: Scene, time: float, beams: int, columns: int, noise: torch.Generator) -> np.ndarray:
    """Points ``(n, 5)`` in the LiDAR frame: x, y, z, intensity, ring."""
    elevation = torch.deg2rad(torch.linspace(-25, 3, beams))
    azimuth = torch.arange(columns) * (2 * math.pi / columns)
    e, a = torch.meshgrid(elevation, azimuth, indexing="ij")
    directions = torch.stack((e.cos() * a.cos(), e.cos() * a.sin(), e.sin()), -1).reshape(-1, 3)
    ring = torch.arange(beams)[:, None].expand(-1, columns).reshape(-1)
    pose = torch.from_numpy(lidar_pose()).float()
    far, what, _ = cast_rays(pose[:3, 3], directions, _local(scene.boxes_at(time), scene.ego(time)))
    seen = far < 40
    far = far[seen] + 0.02 * torch.randn(int(seen.sum()), generator=noise)
    inverse = torch.from_numpy(inverse_pose(lidar_pose())).float()
    place = (pose[:3, 3] + far[:, None] * directions[seen]) @ inverse[:3, :3].T + inverse[:3, 3]
    intensity = torch.where(what[seen] >= 0, 60.0, 20.0) + 5 * torch.randn(len(far), generator=noise)
    return torch.cat((place, intensity.clamp(0, 255)[:, None], ring[seen][:, None].float()), 1).numpy()
