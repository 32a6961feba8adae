"""Selections of real images that every condensed set must be compared with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.seeds import derived_seed
from tenfold.systems.condensation_audit.data.real_data import RealData
from tenfold.systems.condensation_audit.networks.factories import Factory
from tenfold.systems.condensation_audit.sets.condensed_set import TrainingRecipe
from tenfold.systems.condensation_audit.training.ensembles import train_together

FEATURE_RECIPE = TrainingRecipe(epochs=5, learning_rate=0.02, batch_size=128, decay_at=(0.8,))
"""How the network whose features herding, k-centre and k-means use is trained on all real images."""


def herding(features: Tensor, count: int) -> Tensor:
    """Greedy: the next image brings the running mean nearest to the mean of all.

    Args:
        features: ``(n, d)`` of one class.
        count: how many; at most ``n``.

    Returns:
        ``(count,)`` indices in the order of selection.
    """
    mean = features.mean(0)
    total = torch.zeros_like(mean)
    free = torch.ones(len(features), dtype=torch.bool)
    chosen = []
    for number in range(1, count + 1):
        distance = ((total + features) / number - mean).square().sum(1)
        best = int(distance.masked_fill(~free, float("inf")).argmin())
        chosen.append(best)
        free[best] = False
        total = total + features[best]
    return torch.tensor(chosen)


def k_center(features: Tensor, count: int) -> Tensor:
    """Greedy k-centre: begin at the image nearest to the mean, then always take the one farthest from all chosen."""
    chosen = [int((features - features.mean(0)).square().sum(1).argmin())]
    nearest = (features - features[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (features - features[chosen[-1]]).square().sum(1))
    return torch.tensor(chosen)


def k_means_nearest(features: Tensor, count: int, seed: int) -> Tensor:
    """The image nearest to each of ``count`` k-means centres; an image is taken once."""
    from sklearn.cluster import KMeans

    centres = KMeans(count, n_init=3, random_state=seed % 2**32).fit(features.numpy()).cluster_centers_
    distance = torch.cdist(torch.from_numpy(centres).to(features), features)
    chosen: list[int] = []
    for row in distance:
        row = row.clone()
        row[chosen] = float("inf")
        chosen.append(int(row.argmin()))
    return torch.tensor(chosen)


_RULES: dict[str, Callable[..., Tensor]] = {
    "herding": herding,
    "k-center": k_center,
    "k-means": k_means_nearest,
}


def select(
    data: RealData,
    method: str,
    images_per_class: int,
    factory: Factory,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    features: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Any]:
    """Select (or average) images of every class.

    Args:
        data: the real images.
        method: one of ``names.SELECTIONS``; ``class-means`` averages instead of selecting: each image is the mean of
            one of as many disjoint parts of the class as images are wanted.
        images_per_class: of each class.
        factory: makes the network whose features are used.
        seed: of what is random.
        device: where the network is trained.
        features: ``(n, d)`` features of ``(n, ...)`` images; of a network trained as `FEATURE_RECIPE` says where
            ``None``.

    Returns:
        ``images`` and ``labels`` in the order of the classes.

    Raises:
        UserError: a class has fewer images than wanted.
    """
    for name, rows in zip(data.classes, data.rows, strict=True):
        if not 1 <= images_per_class <= len(rows):
            raise UserError(f"class {name!r} has {len(rows)} images; {images_per_class} cannot be selected")
    if method not in ("random", "class-means") and features is None:
        features = trained_features(data, factory, seed=seed, device=device)
    generator = torch.Generator().manual_seed(derived_seed(seed, 31))
    chosen = []
    for rows in data.rows:
        own = data.images[rows]
        if method == "random":
            chosen.append(own[torch.randperm(len(rows), generator=generator)[:images_per_class]])
        elif method == "class-means":
            parts = own[torch.randperm(len(rows), generator=generator)].tensor_split(images_per_class)
            chosen.append(torch.stack([part.mean(0) for part in parts]))
        else:
            assert features is not None
            described = features(own).double().cpu()
            extra = (derived_seed(seed, 32),) if method == "k-means" else ()
            chosen.append(own[_RULES[method](described, images_per_class, *extra)])
    labels = torch.arange(len(data.classes)).repeat_interleave(images_per_class)
    return {"images": torch.cat(chosen).clone(), "labels": labels}


def trained_features(
    data: RealData, factory: Factory, *, seed: int, device: torch.device | str = "cpu"
) -> Callable[[Tensor], Tensor]:
    """Features of a network trained on all real images."""
    ensemble = train_together(factory, data.images, data.labels, FEATURE_RECIPE, seeds=[seed], device=device)
    return lambda images: ensemble.features(images.to(device))[0].cpu()
