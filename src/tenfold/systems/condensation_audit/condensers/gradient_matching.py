"""Gradient matching: DC, and DSA where the batches are augmented.

    each iteration: a fresh network
        O times: L = sum over classes D( gradient on synthetic of the class, gradient on real of the class )
                 one SGD step on the synthetic images, for all classes together
                 I epochs of training the network on the synthetic images (not after the last)

Only the gradients of weights count (1-D tensors contribute nothing), so only they are computed. Per-class gradients
come from one ``vmap`` of ``grad`` where that is faster.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from tenfold.errors import UserError
from tenfold.seeds import derived_seed
from tenfold.settings import PositiveFloat, PositiveInt, ProperShare
from tenfold.systems.condensation_audit.condensers.condenser import (
    Labels,
    OnNetworkTrained,
    load_sgd_state,
    needs_double_backward,
    sgd_state,
    start_images,
)
from tenfold.systems.condensation_audit.data.real_data import RealData
from tenfold.systems.condensation_audit.networks.factories import Factory, seeded_network
from tenfold.systems.condensation_audit.training.siamese_augmentation import (
    apply_augmentation,
    draw_augmentation,
    operations_of,
)

_OUTER_INNER = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
_VMAP_VALUES_ON_CPU = 2048
_NORM_EPS = 1e-6
_STATISTICS_BATCH = 16


@dataclass
class GradientMatchingSettings:
    """Published settings of DC [DC code]; DSA differs in ``image_rate`` .1, ``start`` real and ``strategy``.

    Attributes:
        iterations: networks that are started.
        outer: image steps per network; of the published table where ``None``.
        inner: epochs of network training between two of them; likewise.
        image_rate: learning rate of the images.
        momentum: of their SGD.
        network_rate: learning rate of the networks.
        network_batch: batch of the network training.
        real_batch: real images per class and step.
        start: ``real`` or ``noise``.
        strategy: siamese augmentation; empty for DC.
        distance: ``rows`` (the paper's, by output units), ``mse`` or ``cos``.
        learn_labels: whether labels become probabilities that are learned, too.
        label_rate: learning rate of their logits.
    """

    iterations: PositiveInt = 1000
    outer: PositiveInt | None = None
    inner: PositiveInt | None = None
    image_rate: PositiveFloat = 0.1
    momentum: ProperShare = 0.5
    network_rate: PositiveFloat = 0.01
    network_batch: PositiveInt = 256
    real_batch: PositiveInt = 256
    start: Literal["real", "noise"] = "noise"
    strategy: str = ""
    distance: Literal["rows", "mse", "cos"] = "rows"
    learn_labels: bool = False
    label_rate: PositiveFloat = 0.1


def outer_and_inner(images_per_class: int) -> tuple[int, int]:
    """Image steps per network, and epochs between them: the published table, between its rows ``500 / outer``."""
    if images_per_class in _OUTER_INNER:
        return _OUTER_INNER[images_per_class]
    outer = min(images_per_class, 50)
    return outer, round(500 / outer)


def gradient_distance(synthetic: Mapping[str, Tensor], real: Mapping[str, Tensor], kind: str = "rows") -> Tensor:
    """Distance of gradients, summed over classes.

    Args:
        synthetic: by name ``(classes, *weight)`` gradients, with their graph.
        real: the same, constant.
        kind: ``rows``: over output units one minus the cosine; ``mse``: sum of squares; ``cos``: one minus the cosine
            of everything flattened, per class.

    Tensors of one dimension (biases, norms' scales) contribute nothing in ``rows``.
    """
    pairs = [(synthetic[name], real[name]) for name in synthetic if kind != "rows" or synthetic[name].ndim > 2]
    if kind == "rows":
        return sum(  # type: ignore[return-value]
            _cosine_distance(ours.flatten(2), theirs.flatten(2)).sum() for ours, theirs in pairs
        )
    if kind not in ("mse", "cos"):
        raise UserError(f"there is no distance {kind!r}; there are: rows, mse, cos")
    ours = torch.cat([pair[0].flatten(1) for pair in pairs], 1)
    theirs = torch.cat([pair[1].flatten(1) for pair in pairs], 1)
    return (ours - theirs).square().sum() if kind == "mse" else _cosine_distance(ours, theirs).sum()


def _cosine_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(ours, dim=-1) * torch.linalg.vector_norm(theirs, dim=-1)
    return 1 - (ours * theirs).sum(-1) / (norms + _NORM_EPS)


def class_gradients(
    network: nn.Module, batches: list[tuple[Tensor, Tensor]], *, graph: bool, vmapped: bool, weights_only: bool = True
) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy of each class's batch: by name ``(classes, *weight)``.

    Args:
        network: its buffers are not changed.
        batches: one ``(images, targets)`` per class; of equal sizes, where vmapped.
        graph: whether the gradients can be differentiated.
        vmapped: all in one call, or one after the other; equal up to rounding.
        weights_only: leave out tensors of one dimension.
    """
    chosen = {
        name: value
        for name, value in network.named_parameters()
        if value.requires_grad and (value.ndim > 1 or not weights_only)
    }
    if not vmapped:
        found = [
            torch.autograd.grad(
                functional.cross_entropy(network(images), targets), list(chosen.values()), create_graph=graph
            )
            for images, targets in batches
        ]
        return {name: torch.stack(rows) for name, rows in zip(chosen, zip(*found, strict=True), strict=True)}
    fixed = {
        name: value.detach()
        for name, value in (*network.named_parameters(), *network.named_buffers())
        if name not in chosen
    }

    def loss(weights: dict[str, Tensor], images: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(network, {**fixed, **weights}, (images,)), targets)

    images = torch.stack([batch[0] for batch in batches])
    targets = torch.stack([batch[1] for batch in batches])
    weights = {name: value.detach() for name, value in chosen.items()}
    with torch.set_grad_enabled(graph):
        return torch.vmap(torch.func.grad(loss), (None, 0, 0), randomness="different")(weights, images, targets)


class GradientMatching:
    """DC or DSA at work: see `Condenser`."""

    def __init__(
        self,
        data: RealData,
        images_per_class: int,
        factory: Factory,
        settings: GradientMatchingSettings,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        on_network_trained: OnNetworkTrained | None = None,
    ) -> None:
        operations_of(settings.strategy)
        self.data, self.factory, self.settings, self.seed, self.device = data, factory, settings, seed, device
        self.iterations = settings.iterations
        outer, inner = outer_and_inner(images_per_class)
        self.outer = outer if settings.outer is None else settings.outer
        self.inner = inner if settings.inner is None else settings.inner
        self.per_class = images_per_class
        self.images, hard = start_images(data, images_per_class, settings.start, seed, device)
        self.labels = Labels(hard, len(data.classes), settings.learn_labels, device)
        groups: list[dict[str, Any]] = [{"params": [self.images], "lr": settings.image_rate}]
        if self.labels.logits is not None:
            groups.append({"params": [self.labels.logits], "lr": settings.label_rate})
        self.optimizer = torch.optim.SGD(groups, momentum=settings.momentum)
        self.on_network_trained = on_network_trained
        network = seeded_network(factory, seed, device)
        needs_double_backward(network, self.images)
        self.vmap_works = _vmap_works(network, self.images.detach())

    def step(self, iteration: int) -> float:
        """A fresh network, and as many image steps as the settings say; gives their mean loss."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, 12, iteration))
        network = seeded_network(self.factory, derived_seed(self.seed, 13, iteration), self.device).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=self.settings.network_rate)
        total = 0.0
        for outer in range(self.outer):
            set_statistics(network, self._statistics(generator))
            loss = self.matching_loss(network, generator)
            self.optimizer.zero_grad()
            loss.backward(inputs=[self.images, *([self.labels.logits] if self.labels.logits is not None else [])])
            self.optimizer.step()
            total += float(loss.detach())
            if outer + 1 == self.outer:
                break  # no network training after the last image step
            network.train()
            self._train(network, optimizer, generator)
            if self.on_network_trained is not None:
                self.on_network_trained(network, iteration, self.images.detach())
        return total / self.outer

    def matching_loss(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        """The distance of the gradients, summed over classes, for one draw of real batches and augmentations."""
        settings, classes = self.settings, len(self.data.classes)
        rows = [self.data.draw_rows(label, settings.real_batch, generator) for label in range(classes)]
        draws = [draw_augmentation(settings.strategy, generator) for _ in range(classes)]
        targets = self.labels.targets().split(self.per_class)
        real = [
            (
                apply_augmentation(self.data.images[part].to(self.device), draw),
                torch.full((len(part),), label, device=self.device),
            )
            for label, (part, draw) in enumerate(zip(rows, draws, strict=True))
        ]
        synthetic = [
            (apply_augmentation(images, draw), own)
            for images, draw, own in zip(self.images.split(self.per_class), draws, targets, strict=True)
        ]
        whole = settings.distance != "rows"
        theirs = class_gradients(network, real, graph=False, vmapped=self._vmapped(real), weights_only=not whole)
        ours = class_gradients(network, synthetic, graph=True, vmapped=self._vmapped(synthetic), weights_only=not whole)
        return gradient_distance(ours, theirs, settings.distance)

    def _vmapped(self, batches: list[tuple[Tensor, Tensor]]) -> bool:
        """On GPUs where the batches are equal; on CPUs where they are so small that calls cost more than arithmetic."""
        if not self.vmap_works or len({len(images) for images, _ in batches}) > 1:
            return False
        return torch.device(self.device).type == "cuda" or batches[0][0][:, 0].numel() <= _VMAP_VALUES_ON_CPU

    def _statistics(self, generator: torch.Generator) -> Tensor:
        rows = [self.data.draw_rows(label, _STATISTICS_BATCH, generator) for label in range(len(self.data.classes))]
        return self.data.images[torch.cat(rows)].to(self.device)

    def _train(self, network: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
        images, targets = self.images.detach(), self.labels.targets().detach()
        for chosen in self._batches(len(images), generator):
            part = images[chosen]
            draw = draw_augmentation(self.settings.strategy, generator, len(part))
            loss = functional.cross_entropy(network(apply_augmentation(part, draw)), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _batches(self, count: int, generator: torch.Generator) -> Iterator[Any]:
        for _ in range(self.inner):
            if count <= self.settings.network_batch:
                yield slice(None)
            else:
                yield from torch.randperm(count, generator=generator).split(self.settings.network_batch)

    def state(self) -> dict[str, Tensor]:
        """Images, label logits and momentum."""
        kept = {"images": self.images.detach().cpu().clone(), **sgd_state(self.optimizer, "optimizer")}
        if self.labels.logits is not None:
            kept["logits"] = self.labels.logits.detach().cpu().clone()
        return kept

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        with torch.no_grad():
            self.images.copy_(state["images"])
            if self.labels.logits is not None:
                self.labels.logits.copy_(state["logits"])
        load_sgd_state(self.optimizer, "optimizer", state)

    def result(self) -> dict[str, Any]:
        """Images and labels."""
        return {"images": self.images.detach().cpu().clone(), "labels": self.labels.final()}


def _vmap_works(network: nn.Module, images: Tensor) -> bool:
    """Whether the network's operations may stand under ``vmap``: a user's own autograd functions may not."""
    batches = [(images[:1], torch.zeros(1, dtype=torch.int64, device=images.device))] * 2
    try:
        class_gradients(network, batches, graph=False, vmapped=True)
    except RuntimeError:
        return False
    return True


def set_statistics(network: nn.Module, images: Tensor) -> None:
    """Give batch norms the statistics of real images, then freeze them [DC code]; other networks are left alone."""
    layers = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return
    network.train()
    with torch.no_grad():
        network(images)
    for layer in layers:
        layer.eval()
