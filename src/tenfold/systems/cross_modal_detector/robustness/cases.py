"""Sensors that are there and sensors that are not: the cases that every run measures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.systems.cross_modal_detector.augmentation.masking import MissingPolicy, without
from tenfold.systems.cross_modal_detector.delivery.models import ServedDetector
from tenfold.systems.cross_modal_detector.method import Detections
from tenfold.systems.cross_modal_detector.scoring.nds import (
    BoxTable,
    DetectionScores,
    class_curves,
    match_by_rank,
    score_boxes,
)
from tenfold.systems.cross_modal_detector.scoring.protocol import ERRORS, DetectionProtocol
from tenfold.systems.cross_modal_detector.scoring.results import detections_table, truth_table
from tenfold.systems.cross_modal_detector.sets.frames import Frame, Sample

THRESHOLD = 2.0
"""Metres at which AP is compared between arms."""


@dataclass(frozen=True)
class SensorCase:
    """Which sensors a test has, and what is done about the others.

    Attributes:
        name: of the case; with its policy where sensors are missing.
        text: in words.
        policy: see ``without``.
        change: of a sample.
    """

    name: str
    text: str
    policy: MissingPolicy
    change: Callable[[Sample], Sample]


def sensor_cases(
    cameras: Sequence[str], *, image: bool = True, lidar: bool = True, each: bool = False
) -> list[SensorCase]:
    """All sensors; no LiDAR, no cameras, one camera lost, each with both policies.

    Args:
        cameras: names.
        image: whether the detector has cameras.
        lidar: whether it has LiDAR.
        each: lose each camera in turn, and not only the first.
    """
    cases = [SensorCase("both" if image and lidar else "all", "all sensors", "drop", lambda sample: sample)]

    def add(name: str, text: str, **lacking: Any) -> None:
        for policy in ("zero", "drop"):
            cases.append(
                SensorCase(
                    f"{name}, {policy}",
                    text,
                    policy,
                    partial(without, policy=policy, **lacking),
                )
            )

    if image and lidar:
        add("no LiDAR", "cameras alone", lidar=True)
        add("no cameras", "LiDAR alone", cameras=tuple(range(len(cameras))))
    if image and len(cameras) > 1:
        for number, camera in enumerate(cameras if each else cameras[:1]):
            add(f"no {camera}", f"without {camera}", cameras=(number,))
    return cases


def measure_case(
    served: ServedDetector,
    frames: Sequence[Frame],
    samples: Sequence[Sample],
    case: SensorCase,
    protocol: DetectionProtocol,
    *,
    edges: tuple[float, ...] = (),
) -> tuple[DetectionScores, list[Detections], BoxTable]:
    """Scores of a detector in one case, its detections, and those as rows.

    Args:
        served: the detector.
        frames: with the truth.
        samples: what the sensors gave for each frame.
        case: what happens to the sensors.
        protocol: of the scores.
        edges: distances in metres between which scores are told apart; none where empty.
    """
    found: list[Detections] = []
    for start in range(0, len(samples), 16):
        found += served([case.change(sample) for sample in samples[start : start + 16]], missing=case.policy)
    table = detections_table(frames, found, served.classes, protocol)
    return score_boxes(truth_table(frames, protocol), table, protocol, edges=edges), found, table


def numbers_of(scores: DetectionScores) -> dict[str, float | None]:
    """The numbers of a case, plain."""
    found: dict[str, float | None] = {
        "ap_2m": scores.ap_at(THRESHOLD),
        "mean_ap": scores.mean_ap,
        "nds": scores.nds,
    }
    for error in ERRORS:
        value = scores.mean_errors[error]
        found[error] = value if np.isfinite(value) else None
    for name in scores.ap:
        found[f"ap_2m {name}"] = scores.ap[name][THRESHOLD]
    return found


def bootstrapped_ap(
    truth: BoxTable, predicted: BoxTable, protocol: DetectionProtocol, samples: int, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Mean AP at 2 m of sets of samples drawn with replacement: ``(resamples,)``, paired by the seed.

    Boxes are matched once, since they are within their sample; a sample that is drawn twice counts twice.
    """
    draw = np.random.default_rng(seed)
    weights = np.stack([np.bincount(draw.integers(samples, size=samples), minlength=samples) for _ in range(resamples)])
    ranges = np.array([protocol.ranges[name] for name in protocol.classes])
    truth = truth.rows((truth.ego_distance < ranges[truth.label]) & (truth.points != 0))
    predicted = predicted.rows(predicted.ego_distance < ranges[predicted.label])
    first = round(100 * protocol.least_recall) + 1
    recalls = np.linspace(0, 1, 101)
    total = np.zeros(resamples)
    for number in range(len(protocol.classes)):
        own, given = truth.rows(truth.label == number), predicted.rows(predicted.label == number)
        if not len(own) or not len(given):
            continue
        given = given.rows(np.lexsort((np.arange(len(given)), given.score))[::-1])
        hit = match_by_rank(own, given, np.array([THRESHOLD]))[0] >= 0
        drawn = weights[:, given.sample]
        true, all_ = (drawn * hit).cumsum(1), drawn.cumsum(1)
        positives = weights[:, own.sample].sum(1)
        for row in range(resamples):
            if positives[row] and all_[row, -1] and true[row, -1]:
                kept = drawn[row] > 0
                recall = true[row, kept] / positives[row]
                precision = np.interp(recalls, recall, true[row, kept] / all_[row, kept], right=0)
                total[row] += np.clip(precision[first:] - protocol.least_precision, 0, None).mean() / (
                    1 - protocol.least_precision
                )
    return total / len(protocol.classes)


def precision_recall(
    truth: BoxTable, predicted: BoxTable, protocol: DetectionProtocol
) -> dict[str, NDArray[np.float64]]:
    """Precision at 2 m over 101 recalls, by class."""
    found = {}
    for number, name in enumerate(protocol.classes):
        curves = class_curves(
            truth.rows(truth.label == number), predicted.rows(predicted.label == number), protocol, name
        )
        found[name] = curves[protocol.error_threshold].precision
    return found
