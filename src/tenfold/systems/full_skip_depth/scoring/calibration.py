"""Metric scale from a few distances measured by hand: scale, or scale and shift, with an interval."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from tenfold.errors import UserError

CalibrationKind = Literal["scale", "scale-shift"]


@dataclass(frozen=True)
class Calibration:
    """``depth = scale * predicted + shift``, as measured distances say.

    Attributes:
        scale: factor.
        shift: in metres; 0 for a scale alone.
        interval: 95 % interval of the scale; ``None`` from one distance (two, with a shift).
        residuals: in per cent of each distance, after calibration.
        distances: number of distances.
        leave_one_out: mean absolute error in per cent on each distance, calibrated without it; ``None`` where too few.
    """

    scale: float
    shift: float
    interval: tuple[float, float] | None
    residuals: tuple[float, ...]
    distances: int
    leave_one_out: float | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def calibrate(predicted: ArrayLike, measured: ArrayLike, kind: CalibrationKind = "scale") -> Calibration:
    """Find scale (and shift) that bring predictions to measured distances.

    A scale alone is the geometric mean of ``measured / predicted``: relative errors count alike near and far. Scale and
    shift are those of least squares of relative errors.

    Args:
        predicted: ``(n,)`` metres, above 0.
        measured: ``(n,)`` metres, above 0; n >= 1, or >= 2 with a shift.
        kind: ``scale`` or ``scale-shift``.

    Raises:
        UserError: there are too few, or values that are not above 0, or the scale that follows is not above 0.
    """
    from scipy import stats

    p, d = np.asarray(predicted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    least = 1 if kind == "scale" else 2
    if p.shape != d.shape or p.ndim != 1 or len(p) < least:
        raise UserError(
            f"a calibration by {kind} needs at least {least} measured distances; got {len(np.atleast_1d(d))}"
        )
    if not (np.isfinite(p) & np.isfinite(d) & (p > 0) & (d > 0)).all():
        raise UserError("measured and predicted distances must be finite and above 0 metres")
    scale, shift = _solve(p, d, kind)
    if scale <= 0:
        raise UserError(f"the distances give a scale of {scale:.3g}: predictions fall where distances rise; check them")
    interval = None
    freedom = len(p) - least
    if freedom:
        t = float(stats.t.ppf(0.975, freedom))
        if kind == "scale":
            half = t * float(np.log(d / p).std(ddof=1)) / math.sqrt(len(p))
            interval = (scale * math.exp(-half), scale * math.exp(half))
        else:
            design = np.stack([p / d, 1 / d], 1)
            error = 1 - design @ np.array([scale, shift])
            covariance = np.linalg.inv(design.T @ design) * float(error @ error) / freedom
            half = t * math.sqrt(covariance[0, 0])
            interval = (scale - half, scale + half)
    left_out = None
    if len(p) > least:
        errors = []
        for n in range(len(p)):  # as many as there are tape measurements
            a, b = _solve(np.delete(p, n), np.delete(d, n), kind)
            errors.append(abs(a * p[n] + b - d[n]) / d[n])
        left_out = 100 * float(np.mean(errors))
    residuals = tuple((100 * (scale * p + shift - d) / d).tolist())
    return Calibration(scale, shift, interval, residuals, len(p), left_out)


def _solve(p: np.ndarray, d: np.ndarray, kind: CalibrationKind) -> tuple[float, float]:
    if kind == "scale":
        return float(np.exp(np.log(d / p).mean())), 0.0
    if np.ptp(p) < 1e-9 * p.max():
        raise UserError("a shift cannot be told from a scale where all predicted distances are equal")
    scale, shift = np.linalg.lstsq(np.stack([p / d, 1 / d], 1), np.ones(len(p)), rcond=None)[0]
    return float(scale), float(shift)
