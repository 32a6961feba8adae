"""Corruptions of samples in three severities, written from the descriptions of MultiCorrupt (Beemelmanns et al., 2024).

Spatial and temporal misalignment, missing cameras, motion blur, fewer beams, fewer points, brightness, darkness, fog,
snow: ten, as there. The strengths are our own, since the scenes' scales are (a reconstruction).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold.systems.cross_modal_detector.augmentation.masking import without
from tenfold.systems.cross_modal_detector.sets.frames import Sample

Change = Callable[[Sample, int, np.random.Generator, Sample], Sample]
"""Takes a sample, a severity 1 to 3, a generator, and the sample of the frame before (the same where there is none)."""


@dataclass(frozen=True)
class Corruption:
    """A way in which sensors go wrong.

    Attributes:
        name: of it.
        text: what severities 1 to 3 are.
        change: see ``Change``.
    """

    name: str
    text: str
    change: Change

    def __call__(self, sample: Sample, severity: int, seed: int, before: Sample | None = None) -> Sample:
        """A corrupted copy; the same seed and sample give the same."""
        number = int.from_bytes(sample.token.encode()[:8].ljust(8, b"\0"), "little")
        draw = np.random.default_rng([seed, severity, number % 2**32, len(sample.token)])
        return self.change(sample, severity, draw, before or sample)


def _each_image(sample: Sample, change: Callable[[NDArray[np.float32]], NDArray]) -> Sample:
    images = [
        None if image is None else np.clip(change(image.astype(np.float32)), 0, 255).round().astype(np.uint8)
        for image in sample.images
    ]
    return replace(sample, images=images)


def _spatial(sample: Sample, severity: int, draw: np.random.Generator, before: Sample) -> Sample:
    """Every camera's extrinsics turn and move by an amount of their own: the truth does not, the calibration did."""
    moved = []
    for pose in sample.lidar2cam:
        turn = np.deg2rad((0.5, 1.5, 3.0)[severity - 1]) * draw.normal(size=3)
        shift = (0.02, 0.06, 0.12)[severity - 1] * draw.normal(size=3)
        x, y, z = turn
        small = np.eye(4)
        small[:3, :3] = _rotation(np.array([x, y, z]))
        small[:3, 3] = shift
        moved.append(small @ pose)
    return replace(sample, lidar2cam=np.array(moved).reshape(-1, 4, 4))


def _rotation(vector: NDArray) -> NDArray[np.float64]:
    """Rotation about a vector by its length (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _temporal(sample: Sample, severity: int, draw: np.random.Generator, before: Sample) -> Sample:
    """Images of some cameras are those of the frame before: the stream stands still."""
    chosen = draw.random(len(sample.images)) < (1 / 3, 2 / 3, 1.0)[severity - 1]
    images = [
        old if frozen and old is not None else image
        for image, old, frozen in zip(sample.images, before.images, chosen, strict=True)
    ]
    return replace(sample, images=images)


def _missing(sample: Sample, severity: int, draw: np.random.Generator, before: Sample) -> Sample:
    count = min(len(sample.images), round(len(sample.images) * (1 / 6, 1 / 2, 5 / 6)[severity - 1]) or 1)
    lost = draw.permutation(len(sample.images))[:count].tolist()
    if sample.points is None and len(lost) == len(sample.images):
        lost = lost[1:]
    return without(sample, cameras=lost, policy="drop")


def _blur(sample: Sample, severity: int, draw: np.random.Generator, before: Sample) -> Sample:
    def change(image: NDArray[np.float32]) -> NDArray:
        length = max(3, round(image.shape[1] * (0.02, 0.05, 0.1)[severity - 1])) | 1
        pixels = torch.from_numpy(image).permute(2, 0, 1)[:, None]
        padded = torch.nn.functional.pad(pixels, (length // 2, length // 2, 0, 0), mode="replicate")
        kernel = torch.full((1, 1, 1, length), 1 / length)
        return torch.nn.functional.conv2d(padded, kernel)[:, 0].permute(1, 2, 0).numpy()

    return _each_image(sample, change)


def _beams(sample: Sample, severity: int, draw: np.random.Generator, before: Sample) -> Sample:
    """Bands of elevation stand for beams: every second, two of three, or three of four are lost."""
    if sample.points is None:
        return sample
    ranges = np.hypot(sample.points[:, 0], sample.points[:, 1])
    band = np.floor(np.rad2deg(np.arctan2(sample.points[:, 2], ranges)) / 1.25).astype(np.int64)
    return replace(sample, points=sample.points[band % (2, 3, 4)[severity - 1] == 0])


def _fewer(sample: Sample, severity: int, draw: np.random.Generator, before: Sample) -> Sample:
    if sample.points is None:
        return sample
    kept = draw.random(len(sample.points)) >= (0.5, 0.75, 0.9)[severity - 1]
    return replace(sample, points=sample.points[kept])


def _bright(sample: Sample, severity: int, draw: np.random.Generator, before: Sample) -> Sample:
    gain, shift = ((1.3, 20), (1.6, 50), (2.0, 90))[severity - 1]
    return _each_image(sample, lambda image: image * gain + shift)


def _dark(sample: Sample, severity: int, draw: np.random.Generator, before: Sample) -> Sample:
    gain = (0.5, 0.25, 0.1)[severity - 1]
    return _each_image(sample, lambda image: image * gain + draw.normal(size=image.shape) * 4)


def _fog(sample: Sample, severity: int, draw: np.random.Generator, before: Sample) -> Sample:
    """Far points are lost, some return early; images fade to grey."""
    thickness = (0.03, 0.06, 0.12)[severity - 1]
    sample = _each_image(sample, lambda image: image * np.exp(-12 * thickness) + 190 * (1 - np.exp(-12 * thickness)))
    if sample.points is None:
        return sample
    points = sample.points.copy()
    far = np.linalg.norm(points[:, :3], axis=1)
    lost = draw.random(len(points)) > np.exp(-thickness * far)
    early = lost & (draw.random(len(points)) < 0.3)
    points[early, :3] *= draw.uniform(0.1, 0.6, int(early.sum()))[:, None].astype(np.float32)
    return replace(sample, points=points[~lost | early])


def _snow(sample: Sample, severity: int, draw: np.random.Generator, before: Sample) -> Sample:
    """Flakes: white spots in images, stray points near the vehicle, some points lost."""
    share = (0.02, 0.05, 0.1)[severity - 1]

    def change(image: NDArray[np.float32]) -> NDArray:
        flakes = draw.random(image.shape[:2]) < share
        return np.where(flakes[..., None], 240, image * (1 - share) + 128 * share)

    sample = _each_image(sample, change)
    if sample.points is None:
        return sample
    kept = sample.points[draw.random(len(sample.points)) >= 2 * share]
    count = int(share * len(sample.points))
    angle, ranges = draw.uniform(-np.pi, np.pi, count), draw.exponential(4.0, count)
    stray = np.zeros((count, 5), dtype=np.float32)
    stray[:, 0], stray[:, 1] = ranges * np.cos(angle), ranges * np.sin(angle)
    stray[:, 2], stray[:, 3] = draw.uniform(-1.5, 2, count), draw.uniform(0, 20, count)
    return replace(sample, points=np.concatenate([kept, stray]))


CORRUPTIONS = (
    Corruption("spatial misalignment", "cameras turned by 0.5, 1.5, 3 degrees (sd) and moved by 2, 6, 12 cm", _spatial),
    Corruption("temporal misalignment", "a third, two thirds, all of the images are of the frame before", _temporal),
    Corruption("missing cameras", "a sixth, half, five sixths of the cameras are lost", _missing),
    Corruption("motion blur", "over 2, 5, 10 % of the image's width", _blur),
    Corruption("fewer beams", "every second, third, fourth band of elevation is left", _beams),
    Corruption("fewer points", "50, 75, 90 % of the points are lost", _fewer),
    Corruption("brightness", "images lighter, to saturation", _bright),
    Corruption("darkness", "images at 50, 25, 10 % with noise", _dark),
    Corruption("fog", "far points lost or early, images grey", _fog),
    Corruption("snow", "stray points and white spots, 2, 5, 10 %", _snow),
)
"""MultiCorrupt's ten."""
