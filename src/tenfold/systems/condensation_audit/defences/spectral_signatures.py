"""Spectral signatures: poisoned images of a class stand out along the first singular direction of its features.

Per class: centred features R, first right singular vector v, score ``((r - mean) v)^2``; the top ``1.5 eps`` are to be
dropped. Tran et al., NeurIPS 2018.
"""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from tenfold.errors import UserError


@dataclass(frozen=True)
class SpectralSignatures:
    """What spectral signatures found.

    Attributes:
        scores: ``(n,)`` outlier score of each image within its class.
        flagged: ``(n,)`` bool, the images to drop.
        ratios: for each class the share of its variance along the first direction.
        eps: assumed share of poisoned images of a class.
        notes: classes that were not judged, and why.
        seconds: wall-clock time.
    """

    scores: Tensor
    flagged: Tensor
    ratios: dict[int, float]
    eps: float
    notes: tuple[str, ...]
    seconds: float

    @property
    def score(self) -> float:
        """The largest share of variance along one direction; NaN where no class was judged."""
        return max(self.ratios.values(), default=float("nan"))


def spectral_signatures(features: Tensor, labels: Tensor, *, eps: float = 0.1, fewest: int = 20) -> SpectralSignatures:
    """Score the images of each class.

    Args:
        features: ``(n, d)`` last hidden features of the training images.
        labels: ``(n,)`` their classes.
        eps: upper bound of the share of poisoned images of a class; ``ceil(1.5 eps n)`` are flagged in each.
        fewest: images that a class must have to be judged.

    Raises:
        UserError: features and labels do not fit, or ``eps`` is not in (0, 2/3).
    """
    started = time.perf_counter()
    if features.ndim != 2 or len(features) != len(labels) or len(labels) == 0:
        raise UserError(f"features (n, d) and labels (n,) must fit; got {tuple(features.shape)}, {tuple(labels.shape)}")
    if not 0 < eps < 2 / 3:
        raise UserError(f"the share of poisoned images must lie in (0, 2/3); got {eps}")
    scores = torch.zeros(len(labels), dtype=torch.float64)
    flagged = torch.zeros(len(labels), dtype=torch.bool)
    ratios: dict[int, float] = {}
    notes = []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten().cpu()
        if len(rows) < max(fewest, 2):
            notes.append(f"class {label}: not enough samples: {len(rows)}, needs {max(fewest, 2)}")
            continue
        part = features.detach().cpu()[rows].double()
        centred = part - part.mean(0)
        _, singular, right = torch.linalg.svd(centred, full_matrices=False)
        scores[rows] = (centred @ right[0]).square()
        ratios[label] = float(singular[0].square() / singular.square().sum().clamp(min=1e-300))
        dropped = min(len(rows) - 1, math.ceil(1.5 * eps * len(rows) - 1e-9))
        flagged[rows[scores[rows].topk(dropped).indices]] = True
    return SpectralSignatures(scores, flagged, ratios, eps, tuple(notes), time.perf_counter() - started)
