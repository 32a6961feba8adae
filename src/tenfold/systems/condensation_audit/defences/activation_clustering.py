"""Activation clustering: the features of a class fall into two clusters where a part of it is poisoned.

Per class: last hidden features, PCA to ten dimensions, 2-means; a class is suspect where the smaller cluster is small
or the clusters are far apart. Chen et al., SafeAI 2019. A handful of images has no clusters: below twenty a class is
not judged.
"""

import time
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tenfold.errors import UserError

FEWEST = 20
"""Images that a class must have to be judged."""


@dataclass(frozen=True)
class ClassClusters:
    """The two clusters of a class.

    Attributes:
        label: of the class.
        images: of the class.
        smaller_share: share of the smaller cluster; ``None`` where there are not enough images.
        silhouette: of the clustering, -1 to 1; ``None`` likewise.
        smaller: indices, into all images, of the smaller cluster.
        flagged: whether the class is suspect.
        note: why it was not judged.
    """

    label: int
    images: int
    smaller_share: float | None
    silhouette: float | None
    smaller: tuple[int, ...]
    flagged: bool
    note: str = ""


@dataclass(frozen=True)
class ActivationClustering:
    """What activation clustering found.

    Attributes:
        classes: one entry per class.
        share_threshold: smaller clusters below it are suspect.
        silhouette_threshold: silhouettes above it are suspect.
        seconds: wall-clock time.
    """

    classes: tuple[ClassClusters, ...]
    share_threshold: float
    silhouette_threshold: float
    seconds: float

    @property
    def score(self) -> float:
        """The largest silhouette; NaN where no class had enough images."""
        found = [entry.silhouette for entry in self.classes if entry.silhouette is not None]
        return max(found, default=float("nan"))

    @property
    def flagged(self) -> list[int]:
        """Suspect classes."""
        return [entry.label for entry in self.classes if entry.flagged]


def activation_clustering(
    features: Tensor,
    labels: Tensor,
    *,
    dimensions: int = 10,
    share_threshold: float = 0.35,
    silhouette_threshold: float = 0.1,
    fewest: int = FEWEST,
    seed: int = 0,
) -> ActivationClustering:
    """Cluster the features of each class.

    Args:
        features: ``(n, d)`` last hidden features of the training images.
        labels: ``(n,)`` their (possibly poisoned) classes.
        dimensions: of the PCA.
        share_threshold: a smaller cluster below this share is suspect, if the silhouette is not negative.
        silhouette_threshold: a silhouette above it is suspect.
        fewest: images that a class must have.
        seed: of k-means.

    Raises:
        UserError: features and labels do not fit, or features are not finite.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score

    started = time.perf_counter()
    _check(features, labels)
    values, owners = features.detach().double().cpu().numpy(), labels.cpu().numpy()
    found = []
    for label in np.unique(owners):
        rows = np.flatnonzero(owners == label)
        if len(rows) < max(fewest, 4):
            note = f"not enough samples: {len(rows)}, needs {max(fewest, 4)}"
            found.append(ClassClusters(int(label), len(rows), None, None, (), False, note))
            continue
        part = values[rows]
        reduced = PCA(min(dimensions, *part.shape), random_state=seed).fit_transform(part)
        clusters = KMeans(2, n_init=10, random_state=seed).fit_predict(reduced)
        sizes = np.bincount(clusters, minlength=2)
        small = int(sizes.argmin())
        share = float(sizes[small] / len(rows))
        silhouette = float(silhouette_score(reduced, clusters)) if sizes.min() > 0 else 0.0
        found.append(
            ClassClusters(
                int(label),
                len(rows),
                share,
                silhouette,
                tuple(rows[clusters == small].tolist()),
                share < share_threshold or silhouette > silhouette_threshold,
            )
        )
    return ActivationClustering(tuple(found), share_threshold, silhouette_threshold, time.perf_counter() - started)


def _check(features: Tensor, labels: Tensor) -> None:
    if features.ndim != 2 or len(features) != len(labels) or len(labels) == 0:
        raise UserError(f"features (n, d) and labels (n,) must fit; got {tuple(features.shape)}, {tuple(labels.shape)}")
    if not bool(features.isfinite().all()):
        raise UserError("the features hold NaN or infinite values")
