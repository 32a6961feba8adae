"""What is scored how: nuScenes' ``detection_cvpr_2019`` and protocols for other classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
"""Of true positives: metres, 1 - IoU, radians, metres a second, 1 - accuracy."""


@dataclass(frozen=True)
class DetectionProtocol:
    """A protocol of scoring.

    Attributes:
        classes: that are scored; the mean is over all of them, also those that do not occur.
        ranges: by class, metres from the vehicle within which it is scored.
        thresholds: distances of centres, from above, below which a box is found, metres.
        error_threshold: the one at which errors are measured.
        least_recall: below which precision and errors do not count.
        least_precision: that is subtracted from precision.
        most: boxes of a sample.
        half_turn: classes whose front and back are not told apart.
        without: by class, errors that are not measured.
    """

    classes: tuple[str, ...]
    ranges: Mapping[str, float]
    thresholds: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    error_threshold: float = 2.0
    least_recall: float = 0.1
    least_precision: float = 0.1
    most: int = 500
    half_turn: tuple[str, ...] = ("barrier",)
    without: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "traffic_cone": ("attr_err", "vel_err", "orient_err"),
            "barrier": ("attr_err", "vel_err"),
        }
    )


_RANGES = {
    "car": 50.0, "truck": 50.0, "bus": 50.0, "trailer": 50.0, "construction_vehicle": 50.0, "pedestrian": 40.0,
    "motorcycle": 40.0, "bicycle": 40.0, "traffic_cone": 30.0, "barrier": 30.0,
}  # fmt: skip

NUSCENES = DetectionProtocol(
    ("car", "truck", "bus", "trailer", "construction_vehicle", "pedestrian", "motorcycle", "bicycle", "traffic_cone",
     "barrier"),
    _RANGES,
)  # fmt: skip
"""nuScenes' own, with its ten classes."""


def protocol_for(classes: Sequence[str], farthest: float | None = None) -> DetectionProtocol:
    """NuScenes' protocol for other classes: its ranges where it knows a class, ``farthest`` metres (50) elsewhere.

    Args:
        classes: that are scored.
        farthest: range of all classes, where given.
    """
    ranges = {name: farthest or _RANGES.get(name, 50.0) for name in classes}
    if tuple(classes) == NUSCENES.classes and ranges == dict(NUSCENES.ranges):
        return NUSCENES
    return DetectionProtocol(tuple(classes), ranges)
