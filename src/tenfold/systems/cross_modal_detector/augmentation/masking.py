"""Sensors that are missing: in training at random (masked-modal training, section 3.5), in tests as asked.

``zero`` feeds a missing sensor's branch with zeros, as the paper does; ``drop`` leaves its tokens out of the memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tenfold.errors import UserError
from tenfold.systems.cross_modal_detector.sets.frames import Sample

MissingPolicy = Literal["zero", "drop"]
ZERO_POINTS = 10
"""Points at the origin that stand for a cloud that is not there; all fall into one voxel, whose mean is theirs."""


@dataclass(frozen=True)
class ModalMasking:
    """How often training hides sensors.

    Attributes:
        images: probability that all images are hidden (paper: 1/4).
        points: probability that all points are hidden (paper: 1/4).
        camera: probability that one camera is hidden where nothing else is (not in the paper).
        drop: share of the hidden sensors that are left out rather than zeroed (not in the paper).
    """

    images: float = 0.25
    points: float = 0.25
    camera: float = 0.0
    drop: float = 0.0

    def __call__(self, sample: Sample, draw: np.random.Generator) -> Sample:
        """A copy with sensors hidden, before any other change: points are zeroed before the scene is moved."""
        kind, policy, camera = draw.random(), draw.random(), int(draw.integers(max(len(sample.images), 1)))
        how: MissingPolicy = "drop" if policy < self.drop else "zero"
        if kind > 1 - self.images:
            return without(sample, cameras=range(len(sample.images)), policy=how) if _left(sample, "points") else sample
        if kind > 1 - self.images - self.points:
            return without(sample, lidar=True, policy=how) if _left(sample, "images") else sample
        if kind < self.camera and len(sample.images) > 1:
            return without(sample, cameras=[camera], policy=how)
        return sample


def _left(sample: Sample, sensor: str) -> bool:
    """Whether something is left when the other sensor is hidden."""
    if sensor == "points":
        return sample.points is not None
    return any(image is not None for image in sample.images)


def without(
    sample: Sample, *, lidar: bool = False, cameras: Sequence[int] = (), policy: MissingPolicy = "drop"
) -> Sample:
    """A copy of a sample that lacks sensors.

    Args:
        sample: see ``Sample``.
        lidar: whether it lacks the cloud.
        cameras: numbers of the cameras that it lacks.
        policy: ``zero``: the images are black before normalization, the points stand at the origin; ``drop``: they are
            not there.

    Raises:
        UserError: nothing would be left.
    """
    points, images = sample.points, list(sample.images)
    for camera in cameras:
        image = images[camera]
        images[camera] = None if policy == "drop" or image is None else np.zeros_like(image)
    if lidar and points is not None:
        points = None if policy == "drop" else points * 0
    if points is None and all(image is None for image in images):
        raise UserError(f"frame {sample.token}: without these sensors nothing is left; keep one")
    return replace(sample, points=points, images=images)


def fill_missing(sample: Sample, policy: MissingPolicy, size: tuple[int, int]) -> Sample:
    """A copy whose missing sensors are as the policy wants them: black images of ``size`` and points at the origin.

    Under ``drop`` nothing is changed.
    """
    if policy == "drop":
        return sample
    black = np.zeros((*size, 3), dtype=np.float32)
    points = np.zeros((ZERO_POINTS, 5), dtype=np.float32) if sample.points is None else sample.points
    return replace(sample, points=points, images=[black if image is None else image for image in sample.images])
