"""mAP and NDS, computed for all samples at once; equal to the devkit's (Caesar et al., nuScenes, CVPR 2020, section 3).

Boxes are matched greedily by score within their sample, by the distance of centres from above. So the n-th best boxes
of all samples can be matched together: the loop is over ranks, not over boxes.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tenfold.systems.cross_modal_detector.scoring.protocol import ERRORS, DetectionProtocol

_POINTS = 101  # recalls 0, 0.01, ..., 1


@dataclass
class BoxTable:
    """Boxes of many samples in one frame (nuScenes: the global one).

    Attributes:
        sample: ``(n,)`` number of the sample of each.
        label: ``(n,)`` number of the class in the protocol.
        centre: ``(n, 3)`` metres.
        size: ``(n, 3)`` metres.
        yaw: ``(n,)`` radians.
        velocity: ``(n, 2)`` metres a second; NaN where not known.
        attribute: ``(n,)`` texts, "" for none.
        ego_distance: ``(n,)`` metres from the vehicle, from above.
        score: ``(n,)``; of truth, ignored.
        points: ``(n,)`` points in the box; -1 where not counted.
    """

    sample: NDArray[np.int64]
    label: NDArray[np.int64]
    centre: NDArray[np.float64]
    size: NDArray[np.float64]
    yaw: NDArray[np.float64]
    velocity: NDArray[np.float64]
    attribute: NDArray[np.str_]
    ego_distance: NDArray[np.float64]
    score: NDArray[np.float64]
    points: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sample)

    def rows(self, chosen: NDArray) -> "BoxTable":
        """The rows chosen by a mask or by numbers."""
        return replace(self, **{name: value[chosen] for name, value in vars(self).items()})


@dataclass
class Curve:
    """Of one class and threshold, over recalls 0 to 1 in hundredths.

    Attributes:
        precision: ``(101,)``, 0 beyond the highest recall.
        confidence: ``(101,)`` score at which the recall is reached, 0 beyond.
        errors: running means by name, each ``(101,)``.
    """

    precision: NDArray[np.float64]
    confidence: NDArray[np.float64]
    errors: dict[str, NDArray[np.float64]]


@dataclass
class DetectionScores:
    """Scores of a set.

    Attributes:
        mean_ap: over classes and thresholds.
        nds: nuScenes' detection score.
        ap: by class and threshold.
        errors: by class, each error; NaN where it is not measured.
        mean_errors: over classes.
        curves: by class and threshold.
        distances: by range ``"a-b"`` in metres, AP at the error threshold by class, and ``mean``.
    """

    mean_ap: float
    nds: float
    ap: dict[str, dict[float, float]]
    errors: dict[str, dict[str, float]]
    mean_errors: dict[str, float]
    curves: dict[str, dict[float, Curve]] = field(default_factory=dict)
    distances: dict[str, dict[str, float]] = field(default_factory=dict)

    def class_ap(self, name: str) -> float:
        """AP of a class, the mean over thresholds."""
        return float(np.mean(list(self.ap[name].values())))

    def ap_at(self, threshold: float) -> float:
        """Mean AP over classes at one threshold."""
        return float(np.mean([part[threshold] for part in self.ap.values()]))


def score_boxes(
    truth: BoxTable, predicted: BoxTable, protocol: DetectionProtocol, *, edges: tuple[float, ...] = ()
) -> DetectionScores:
    """Score predictions.

    Args:
        truth: true boxes; bicycles within racks must have been left out (see ``drop_in_racks``).
        predicted: predictions, in the order in which ties of scores are broken: later rows first.
        protocol: see ``DetectionProtocol``.
        edges: of ranges of distance, for ``distances``.
    """
    ranges = np.array([protocol.ranges[name] for name in protocol.classes])
    truth = truth.rows((truth.ego_distance < ranges[truth.label]) & (truth.points != 0))
    predicted = predicted.rows(predicted.ego_distance < ranges[predicted.label])
    ap: dict[str, dict[float, float]] = {}
    errors: dict[str, dict[str, float]] = {}
    curves: dict[str, dict[float, Curve]] = {}
    for number, name in enumerate(protocol.classes):
        own, given = truth.rows(truth.label == number), predicted.rows(predicted.label == number)
        curves[name] = class_curves(own, given, protocol, name)
        ap[name] = {at: average_precision(curve, protocol) for at, curve in curves[name].items()}
        missing = protocol.without.get(name, ())
        errors[name] = {
            error: float("nan")
            if error in missing
            else mean_error(curves[name][protocol.error_threshold], error, protocol)
            for error in ERRORS
        }
    mean_ap = float(np.mean([np.mean(list(part.values())) for part in ap.values()]))
    mean_errors = {}
    for error in ERRORS:
        values = np.array([errors[name][error] for name in protocol.classes])
        mean_errors[error] = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
    good = [max(0.0, 1.0 - value) for value in mean_errors.values() if np.isfinite(value)]
    scores = DetectionScores(
        mean_ap, float((5 * mean_ap + sum(good)) / (5 + len(ERRORS))), ap, errors, mean_errors, curves
    )
    scores.distances = by_distance(truth, predicted, protocol, edges)
    return scores


def by_distance(
    truth: BoxTable, predicted: BoxTable, protocol: DetectionProtocol, edges: tuple[float, ...]
) -> dict[str, dict[str, float]]:
    """AP at the error threshold of boxes between edges of distance from the vehicle, truth and predictions alike."""
    only = replace(protocol, thresholds=(protocol.error_threshold,))
    found = {}
    for low, high in pairwise(edges):
        row = {}
        for number, name in enumerate(protocol.classes):
            parts = [
                table.rows((table.label == number) & (table.ego_distance >= low) & (table.ego_distance < high))
                for table in (truth, predicted)
            ]
            if len(parts[0]):
                curve = class_curves(parts[0], parts[1], only, name)[protocol.error_threshold]
                row[name] = average_precision(curve, protocol)
        if row:
            found[f"{low:g}-{high:g}"] = row | {"mean": float(np.mean(list(row.values())))}
    return found


def class_curves(truth: BoxTable, predicted: BoxTable, protocol: DetectionProtocol, name: str) -> dict[float, Curve]:
    """Curves of one class at every threshold.

    Args:
        truth: true boxes of the class.
        predicted: predictions of the class.
        protocol: see ``DetectionProtocol``.
        name: of the class.
    """
    if len(truth) == 0:
        return {at: _empty() for at in protocol.thresholds}
    # Ties of scores are broken by the later row first, as the devkit's reversed sort does.
    order = np.lexsort((np.arange(len(predicted)), predicted.score))[::-1]
    predicted = predicted.rows(order)
    matches = match_by_rank(truth, predicted, np.array(protocol.thresholds))
    return {at: _curve(truth, predicted, matches[n], protocol, name) for n, at in enumerate(protocol.thresholds)}


def match_by_rank(truth: BoxTable, predicted: BoxTable, thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows of truth that predictions (best first) find, -1 for none: ``(thresholds, predictions)``."""
    matches = np.full((len(thresholds), len(predicted)), -1, dtype=np.int64)
    if len(predicted) == 0:
        return matches
    samples, own = np.unique(truth.sample, return_inverse=True)
    counts = np.bincount(own, minlength=len(samples))
    order = np.argsort(own, kind="stable")
    column = np.arange(len(truth)) - np.repeat(np.cumsum(counts) - counts, counts)
    row_of = np.full((len(samples), counts.max()), -1, dtype=np.int64)
    row_of[own[order], column] = order
    place = np.full((*row_of.shape, 2), np.inf)
    place[own[order], column] = truth.centre[order, :2]
    sample = np.searchsorted(samples, predicted.sample).clip(max=len(samples) - 1)
    known = samples[sample] == predicted.sample  # the others lie in samples without truth, and find nothing
    rows = np.flatnonzero(known)
    within = sample[rows]
    by_sample = np.argsort(within, kind="stable")
    sorted_samples = within[by_sample]
    starts = np.searchsorted(sorted_samples, sorted_samples)
    rank = np.empty(len(rows), dtype=np.int64)
    rank[by_sample] = np.arange(len(rows)) - starts
    by_rank = np.argsort(rank, kind="stable")
    ends = np.searchsorted(rank[by_rank], np.arange(rank.max(initial=-1) + 2))
    taken = np.zeros((len(thresholds), *row_of.shape), dtype=bool)
    level = np.arange(len(thresholds))[:, None]
    for start, end in pairwise(ends):
        now = rows[by_rank[start:end]]
        at = sample[now]
        away = predicted.centre[now, None, :2] - place[at]
        distance = np.sqrt((away * away).sum(-1))
        free = np.where(taken[:, at], np.inf, distance[None])
        nearest = free.argmin(-1)
        found = np.take_along_axis(free, nearest[..., None], -1)[..., 0] < thresholds[:, None]
        taken[level, at[None], nearest] |= found
        matches[:, now] = np.where(found, row_of[at[None], nearest], -1)
    return matches


def _curve(
    truth: BoxTable, predicted: BoxTable, matches: NDArray[np.int64], protocol: DetectionProtocol, name: str
) -> Curve:
    found = matches >= 0
    if not found.any():
        return _empty()
    true, all_ = np.cumsum(found).astype(float), np.arange(1, len(found) + 1, dtype=float)
    recalls = np.linspace(0, 1, _POINTS)
    recall = true / len(truth)
    precision = np.interp(recalls, recall, true / all_, right=0)
    confidence = np.interp(recalls, recall, predicted.score, right=0)
    first, second = truth.rows(matches[found]), predicted.rows(found)
    period = np.pi if name in protocol.half_turn else 2 * np.pi
    measured = {
        "trans_err": np.sqrt(((second.centre - first.centre)[:, :2] ** 2).sum(1)),
        "vel_err": np.sqrt(((second.velocity - first.velocity) ** 2).sum(1)),
        "scale_err": 1 - _aligned_overlap(first.size, second.size),
        "orient_err": np.abs(_turn(first.yaw, second.yaw, period)),
        "attr_err": np.where(first.attribute == "", np.nan, 1.0 - (first.attribute == second.attribute)),
    }
    given = second.score[::-1]
    errors = {
        error: np.interp(confidence[::-1], given, _running_mean(value)[::-1])[::-1] for error, value in measured.items()
    }
    return Curve(precision, confidence, errors)


def _empty() -> Curve:
    return Curve(np.zeros(_POINTS), np.zeros(_POINTS), {error: np.ones(_POINTS) for error in ERRORS})


def _aligned_overlap(first: NDArray, second: NDArray) -> NDArray[np.float64]:
    both = np.minimum(first, second).prod(1)
    return both / (first.prod(1) + second.prod(1) - both)


def _turn(first: NDArray, second: NDArray, period: float) -> NDArray[np.float64]:
    away = (first - second + period / 2) % period - period / 2
    return np.where(away > np.pi, away - 2 * np.pi, away)


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running mean that skips NaN; 1 throughout where all are NaN, 0 before the first that is not."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    counts = np.cumsum(known)
    return np.divide(np.nancumsum(values), counts, out=np.zeros(len(values)), where=counts != 0)


def average_precision(curve: Curve, protocol: DetectionProtocol) -> float:
    """Area under the precision that is above the least one, beyond the least recall, over what it can be at most."""
    first = round(100 * protocol.least_recall) + 1
    above = np.clip(curve.precision[first:] - protocol.least_precision, 0, None)
    return float(above.mean()) / (1 - protocol.least_precision)


def mean_error(curve: Curve, error: str, protocol: DetectionProtocol) -> float:
    """Mean of an error's running mean from the least recall to the highest reached; 1 where it is not reached."""
    first = round(100 * protocol.least_recall) + 1
    reached = np.flatnonzero(curve.confidence)
    last = int(reached[-1]) if len(reached) else 0
    return 1.0 if last < first else float(curve.errors[error][first : last + 1].mean())
