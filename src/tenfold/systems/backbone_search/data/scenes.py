"""Drawn scenes: the embedded data. Shapes on cluttered ground, with boxes, the same for one seed on every machine."""

import numpy as np

from tenfold.errors import UserError
from tenfold.systems.backbone_search.data.detection_set import Boxes, DetectionSet

SCENE_CLASSES = ("disc", "square", "triangle")


def make_scenes(count: int, seed: int, height: int = 96, width: int = 128, most: int = 6) -> DetectionSet:
    """Scenes of one to ``most`` shapes of three classes, which may overlap, be small, dim or cut by the edge.

    Args:
        count: number of scenes.
        seed: scenes of another seed are others; scene ``i`` of a seed does not depend on ``count``.
        height: in pixels.
        width: in pixels.
        most: shapes in a scene, at most.
    """
    if count < 1 or most < 1 or min(height, width) < 32:
        raise UserError(f"scenes need a count and shapes of at least 1 and sides of at least 32; got {count}, {most}")
    images, boxes = [], []
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for number in range(count):
        random = np.random.default_rng([seed, number])
        image = _ground(random, y, x)
        corners, labels = [], []
        for _ in range(int(random.integers(1, most + 1))):
            kind = int(random.integers(3))
            radius = float(random.uniform(0.07, 0.2)) * min(height, width)
            cx, cy = random.uniform(0, width), random.uniform(0, height)
            inside, reach = _shape(kind, x - cx, y - cy, radius)
            box = [max(cx - reach[0], 0), max(cy - reach[1], 0), min(cx + reach[0], width), min(cy + reach[2], height)]
            seen = (box[2] - box[0], box[3] - box[1])
            if seen[0] * seen[1] < 1.2 * reach[0] * reach[1] or min(seen) < 6:
                continue  # too little of it is in the picture
            colour = random.uniform(0, 255, 3)
            colour += (colour - image[inside].mean(0)) * 0.5  # some contrast with what is under it
            image[inside] = 0.8 * np.clip(colour, 0, 255) + 0.2 * image[inside]
            corners.append([float(value) for value in box])
            labels.append(kind)
        image += random.normal(0, 6, image.shape)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
        areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in corners]
        boxes.append(Boxes.of(corners, labels, [False] * len(labels), areas))
    return DetectionSet(
        f"scenes of seed {seed}", images, [(height, width)] * count, boxes, SCENE_CLASSES, (1, 2, 3),
        list(range(1, count + 1)),
    )  # fmt: skip


def _ground(random: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A slope of two colours with soft stripes."""
    start, end = random.uniform(40, 215, (2, 3))
    angle, pitch = random.uniform(0, 2 * np.pi), random.uniform(10, 40)
    along = np.cos(angle) * x + np.sin(angle) * y
    share = (along - along.min()) / np.ptp(along)
    image = start + (end - start) * share[..., None]
    return image + random.uniform(0, 20) * np.sin(2 * np.pi * along / pitch)[..., None]


def _shape(kind: int, x: np.ndarray, y: np.ndarray, radius: float) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Which pixels a shape covers, and how far it reaches sideways, up and down."""
    if kind == 0:
        return x**2 + y**2 <= radius**2, (radius, radius, radius)
    if kind == 1:
        side = 0.9 * radius
        return (abs(x) <= side) & (abs(y) <= side), (side, side, side)
    inside = (y <= radius * 0.7) & (y >= 2 * abs(x) - radius)
    return inside, (0.85 * radius, radius, 0.7 * radius)
