"""Two numbers that bring the level of an estimate right."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LinearCalibration:
    """Two numbers that bring the level of an estimate right: ``scale * estimate + offset``, not below 0.

    Attributes:
        scale: factor of the estimate.
        offset: what is added.
    """

    scale: float
    offset: float

    @classmethod
    def fit(cls, labels: Tensor, estimates: Tensor) -> "LinearCalibration":
        """Least squares on held-out labels; an estimate that never changes gets the labels' mean."""
        x, y = estimates.double(), labels.double()
        centred = x - x.mean()
        total = float(centred.square().sum())
        scale = float((centred * y).sum()) / total if total > 0 else 0.0
        return cls(scale, float(y.mean()) - scale * float(x.mean()))

    def __call__(self, estimates: Tensor) -> Tensor:
        """The calibrated estimates."""
        return (self.scale * estimates.double() + self.offset).clamp(min=0)
