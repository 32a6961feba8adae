"""Distribution matching (DM): features of real and synthetic images have the same class means, in random networks.

    each iteration: one fresh random network, frozen, with features psi
        L = sum over classes | mean psi(A(real of the class)) - mean psi(A(synthetic of the class)) |^2
        SGD step on the synthetic images

``A`` is a siamese augmentation. No network is trained, so it is the fastest method and the default on CPUs.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tenfold.seeds import derived_seed
from tenfold.settings import PositiveFloat, PositiveInt, ProperShare
from tenfold.systems.condensation_audit.condensers.condenser import (
    Labels,
    OnNetworkTrained,
    load_sgd_state,
    sgd_state,
    start_images,
)
from tenfold.systems.condensation_audit.data.real_data import RealData
from tenfold.systems.condensation_audit.networks.factories import Factory, penultimate, seeded_network
from tenfold.systems.condensation_audit.training.siamese_augmentation import (
    FULL_STRATEGY,
    apply_augmentation,
    draw_augmentation,
    operations_of,
)

_PIXELS_AT_ONCE = 24_576


@dataclass
class DistributionMatchingSettings:
    """Published settings of DM [DC code, main_DM.py].

    Attributes:
        iterations: steps, each with a new random network.
        image_rate: learning rate of the images (10 for 100 and more images per class).
        momentum: of their SGD.
        real_batch: real images per class and step.
        start: ``real`` or ``noise``.
        strategy: siamese augmentation; none where empty.
        auxiliary_every: iterations between two calls of an attack, which needs a trained network: DM has none, so one
            is trained on the synthetic images.
    """

    iterations: PositiveInt = 20_000
    image_rate: PositiveFloat = 1.0
    momentum: ProperShare = 0.5
    real_batch: PositiveInt = 256
    start: Literal["real", "noise"] = "real"
    strategy: str = FULL_STRATEGY
    auxiliary_every: PositiveInt = 20


class DistributionMatching:
    """DM at work: see `Condenser`."""

    def __init__(
        self,
        data: RealData,
        images_per_class: int,
        factory: Factory,
        settings: DistributionMatchingSettings,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        on_network_trained: OnNetworkTrained | None = None,
        auxiliary: Any = None,
    ) -> None:
        operations_of(settings.strategy)
        self.data, self.factory, self.settings, self.seed, self.device = data, factory, settings, seed, device
        self.iterations = settings.iterations
        self.images, hard = start_images(data, images_per_class, settings.start, seed, device)
        self.labels = Labels(hard, len(data.classes), False, device)
        self.per_class = images_per_class
        self.optimizer = torch.optim.SGD([self.images], lr=settings.image_rate, momentum=settings.momentum)
        self.on_network_trained, self.auxiliary = on_network_trained, auxiliary

    def step(self, iteration: int) -> float:
        """One random network, one step on the images."""
        settings = self.settings
        generator = torch.Generator().manual_seed(derived_seed(self.seed, 12, iteration))
        network = seeded_network(self.factory, derived_seed(self.seed, 13, iteration), self.device).train()
        network.requires_grad_(False)
        classes = len(self.data.classes)
        rows = [self.data.draw_rows(label, settings.real_batch, generator) for label in range(classes)]
        draws = [draw_augmentation(settings.strategy, generator) for _ in range(classes)]
        real = self.data.images[torch.cat(rows)].to(self.device)
        counts, own = [len(part) for part in rows], [self.per_class] * classes
        loss = mean_difference(
            class_means(network, _augmented(real, draws, counts), counts),
            class_means(network, _augmented(self.images, draws, own), own),
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.on_network_trained is not None and (iteration + 1) % settings.auxiliary_every == 0:
            self.on_network_trained(self.auxiliary(self.images.detach(), iteration), iteration, self.images.detach())
        return float(loss.detach())

    def state(self) -> dict[str, Tensor]:
        """Images and momentum."""
        return {"images": self.images.detach().cpu().clone(), **sgd_state(self.optimizer, "optimizer")}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        with torch.no_grad():
            self.images.copy_(state["images"])
        load_sgd_state(self.optimizer, "optimizer", state)

    def result(self) -> dict[str, Any]:
        """Images and labels."""
        return {"images": self.images.detach().cpu().clone(), "labels": self.labels.final()}


def _augmented(images: Tensor, draws: list[Any], counts: list[int]) -> Tensor:
    """Each class's images through the class's draw."""
    if not any(draw.operation for draw in draws):
        return images
    return torch.cat([apply_augmentation(part, draw) for part, draw in zip(images.split(counts), draws, strict=True)])


def class_means(network: Any, images: Tensor, counts: list[int]) -> Tensor:
    """``(classes, d)`` mean features of the images of each class, all in one pass.

    Args:
        network: in training mode: a batch norm's statistics are those of all classes together.
        images: ``(n, ...)``, ordered by class.
        counts: images per class.
    """
    features = _features(network, images)
    owner = torch.repeat_interleave(torch.tensor(counts)).to(features.device)
    sums = torch.zeros(len(counts), features.shape[1], dtype=features.dtype, device=features.device)
    return sums.index_add(0, owner, features) / torch.tensor(counts, device=features.device).unsqueeze(1)


def _features(network: Any, images: Tensor) -> Tensor:
    """In parts that stay in a CPU's caches, unless a batch norm must see all images together."""
    whole = images.device.type != "cpu" or any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()
    )
    if whole:
        return penultimate(network, images)
    part = max(_PIXELS_AT_ONCE // (images.shape[2] * images.shape[3]), 1)
    return torch.cat([penultimate(network, some) for some in images.split(part)])


def mean_difference(real: Tensor, synthetic: Tensor) -> Tensor:
    """Sum over classes of the squared distance of ``(classes, d)`` means."""
    return (real.detach() - synthetic).square().sum()
