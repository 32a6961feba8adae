"""The scale-invariant logarithmic loss of the whole batch, and what else training minimizes.

Depth networks are trained with it since BTS (arXiv 1907.10326, equation 4); the original form is Eigen et al.'s
(NeurIPS 2014, equation 4):

    g = log prediction - log truth on the valid pixels of the whole batch
    L = alpha sqrt(mean(g^2) - lambda mean(g)^2 + eps)

lambda = 1 forgives any global scale, lambda = 0 none.
"""

import torch
from torch import Tensor, nn

from tenfold.systems.full_skip_depth.networks.depth_network import DepthPrediction


class SiLogLoss(nn.Module):
    """Scale-invariant logarithmic loss over the valid pixels of the batch.

    Args:
        variance_focus: lambda; 0.85 in BTS and AdaBins, 0.5 in Depth Anything V2.
        scale: alpha; 10 as published.
        minimum: pixels are valid above this depth; 1e-3 (AdaBins), 0.1 (BTS on NYU) or 1 (BTS on KITTI).
        maximum: pixels are valid below this depth.
        epsilon: under the root; 0 as published gives NaN gradients at an exact fit.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        variance_focus: float = 0.85,
        *,
        scale: float = 10.0,
        minimum: float = 1e-3,
        maximum: float = float("inf"),
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__()
        if not 0 <= variance_focus <= 1 or scale <= 0 or not 0 <= minimum < maximum or epsilon < 0:
            raise ValueError("variance_focus lies in [0, 1], scale above 0, and 0 <= minimum < maximum")
        self.variance_focus, self.scale = variance_focus, scale
        self.minimum, self.maximum, self.epsilon = minimum, maximum, epsilon

    def forward(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """Scalar loss of ``prediction`` and ``truth``, both ``(batch, height, width)`` or alike.

        Pixels whose truth is not finite or not within the limits do not count; without any the loss is 0, with zero
        gradients.
        """
        valid = self.valid(truth)
        pixels = valid.sum()
        # Sums over masked maps: picking the valid pixels out would make a GPU wait, and costs a CPU more.
        g = prediction.clamp(min=1e-6).log() - truth.where(valid, 1.0).log()
        g = g.where(valid, 0.0)
        count = pixels.clamp(min=1)
        inner = g.square().sum() / count - self.variance_focus * (g.sum() / count).square()
        # Rounding may take an exact fit below zero.
        return self.scale * (inner.clamp(min=0) + self.epsilon).sqrt() * (pixels > 0)

    def valid(self, truth: Tensor) -> Tensor:
        """Which pixels count."""
        return (truth > self.minimum) & (truth < self.maximum) & truth.isfinite()


def bins_chamfer(centres: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Two-sided Chamfer distance of bin centres and valid depths (AdaBins, equation 5), mean over images.

    Args:
        centres: ``(batch, bins)``, ascending.
        truth: ``(batch, height, width)``.
        valid: ``(batch, height, width)`` bool.

    Returns:
        Scalar: squared distances from depths to the nearest centre and from centres to the nearest depth, each a mean.
    """
    total = centres.new_zeros(())
    for image, row in enumerate(centres):  # images have different numbers of valid pixels
        depths = truth[image][valid[image]]
        if len(depths):
            total = total + _nearest(depths, row) + _nearest(row, depths.sort().values)
    return total / len(centres)


def _nearest(points: Tensor, line: Tensor) -> Tensor:
    """Mean squared distance from points to the nearest of ascending values."""
    with torch.no_grad():
        found = torch.searchsorted(line.detach().contiguous(), points.detach().contiguous())
        right = found.clamp(min=1).clamp(max=len(line) - 1)
        left = (right - 1).clamp(min=0)
        chosen = torch.where((points - line[left]).abs() <= (points - line[right]).abs(), left, right)
    return (points - line[chosen]).square().mean()


class DepthObjective(nn.Module):
    """The loss of a batch of a depth network, in the form that ``tenfold.fit`` takes.

    Args:
        loss: of depth against truth.
        auxiliary: weights of coarser levels' depths, the finer first.
        bins: weight of ``bins_chamfer``; 0.1 as published.
    """

    def __init__(self, loss: SiLogLoss, *, auxiliary: tuple[float, ...] = (), bins: float = 0.1) -> None:
        super().__init__()
        self.loss, self.auxiliary, self.bins = loss, auxiliary, bins

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """``batch``: images ``(batch, 3, h, w)`` in [0, 1], depths ``(batch, h, w)``, focal lengths ``(batch,)``."""
        images, truth, focal = batch
        answer: DepthPrediction = model.predict(images, focal)  # type: ignore[operator]
        silog = self.loss(answer.depth[:, 0], truth)
        total, logged = silog, {"silog": silog}
        for weight, depth in zip(self.auxiliary, answer.auxiliary, strict=False):
            total = total + weight * self.loss(depth[:, 0], truth)
        if answer.centres is not None and self.bins:
            chamfer = bins_chamfer(answer.centres, truth, self.loss.valid(truth))
            total, logged = total + self.bins * chamfer, logged | {"chamfer": chamfer}
        return total, logged
