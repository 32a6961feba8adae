"""Dataset distillation (DD): the images that bring a network furthest in a few given gradient steps.

    theta_{t+1} = theta_t - eta_t * grad L(theta_t; S_t)     for t = 0 .. steps * epochs - 1, S_t cycled
    outer loss: L of the last theta on a real batch;  Adam on the images and the rates  eta_t = softplus(r_t)

The order of the steps and their rates are part of the result: a set that is shuffled is another set.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tenfold.errors import UserError
from tenfold.seeds import derived_seed
from tenfold.settings import Count, PositiveFloat, PositiveInt, ProperShare
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


@dataclass
class DatasetDistillationSettings:
    """Published settings of DD [DD code].

    Attributes:
        iterations: outer steps, each with one real batch.
        steps: different synthetic batches.
        epochs: how often they are cycled through.
        batch_size: real images in the outer loss.
        image_rate: of Adam, for images and rates.
        beta1: of Adam.
        halve_every: outer steps after which Adam's rate is halved; never where 0.
        rate: where the inner rates start.
        start: ``noise`` or ``real``.
        initialisation: ``unknown``: fresh weights in every outer step; ``known``: one fixed set of weights, which
            belongs to the result.
        learn_labels: whether labels become probabilities that are learned, too.
        recompute: keep only the weights of each inner step and compute it again.
    """

    iterations: PositiveInt = 400 * 59
    steps: PositiveInt = 10
    epochs: PositiveInt = 3
    batch_size: PositiveInt = 1024
    image_rate: PositiveFloat = 0.01
    beta1: ProperShare = 0.5
    halve_every: Count = 40 * 59
    rate: PositiveFloat = 0.02
    start: Literal["real", "noise"] = "noise"
    initialisation: Literal["known", "unknown"] = "unknown"
    learn_labels: bool = False
    recompute: bool = False


class DatasetDistillation:
    """DD at work: see `Condenser`."""

    def __init__(
        self,
        data: RealData,
        images_per_class: int,
        factory: Factory,
        settings: DatasetDistillationSettings,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        on_network_trained: OnNetworkTrained | None = None,
        batch_of: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        if settings.initialisation not in ("known", "unknown"):
            raise UserError(f"initialisation must be known or unknown; got {settings.initialisation!r}")
        if min(settings.steps, settings.epochs) < 1:
            raise UserError("dd needs at least one step and one epoch")
        self.data, self.factory, self.settings, self.seed, self.device = data, factory, settings, seed, device
        self.iterations = settings.iterations
        starts = [
            start_images(data, images_per_class, settings.start, derived_seed(seed, 51, step), device)
            for step in range(settings.steps)
        ]
        self.images = torch.cat([images.detach() for images, _ in starts]).requires_grad_()
        self.labels = Labels(torch.cat([hard for _, hard in starts]), len(data.classes), settings.learn_labels, device)
        raw = math.log(math.expm1(settings.rate))
        self.raw_rates = torch.full((settings.steps * settings.epochs,), raw, device=device, requires_grad=True)
        leaves = [self.images, self.raw_rates, *([self.labels.logits] if self.labels.logits is not None else [])]
        self.optimizer = torch.optim.Adam(leaves, lr=settings.image_rate, betas=(settings.beta1, 0.999))
        self.on_network_trained = on_network_trained
        self.batch_of = batch_of or self._batch
        needs_double_backward(seeded_network(factory, seed, device), self.images)

    @property
    def rates(self) -> Tensor:
        """``(steps * epochs,)`` inner learning rates."""
        return functional.softplus(self.raw_rates)

    def _network_seed(self, iteration: int) -> int:
        return derived_seed(self.seed, 13, 0 if self.settings.initialisation == "known" else iteration)

    def step(self, iteration: int) -> float:
        """One unroll and one step of Adam."""
        settings = self.settings
        generator = torch.Generator().manual_seed(derived_seed(self.seed, 12, iteration))
        if settings.halve_every:
            for group in self.optimizer.param_groups:
                group["lr"] = settings.image_rate * 0.5 ** (iteration // settings.halve_every)
        network = seeded_network(self.factory, self._network_seed(iteration), self.device).train()
        weights = self.unroll(network)
        if self.on_network_trained is not None:
            self._attack(network, weights, iteration)
        rows = torch.randperm(len(self.data), generator=generator)[: settings.batch_size]
        loss = self.outer_loss(network, weights, rows)
        leaves = [leaf for group in self.optimizer.param_groups for leaf in group["params"]]
        self.optimizer.zero_grad()
        for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
            leaf.grad = gradient
        self.optimizer.step()
        return float(loss.detach())

    def outer_loss(self, network: Any, weights: dict[str, Tensor], rows: Tensor) -> Tensor:
        """Cross-entropy of the unrolled weights on real images."""
        images, labels = self.batch_of(rows)
        logits = functional_call(network, weights, (images.to(self.device),))
        return functional.cross_entropy(logits, labels.to(self.device))

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.data.images[rows], self.data.labels[rows]

    def unroll(self, network: Any) -> dict[str, Tensor]:
        """Weights after all inner steps, differentiable in images and rates; the network itself is left alone."""
        weights = {name: parameter.detach().clone().requires_grad_() for name, parameter in network.named_parameters()}
        parts = self.images.split(len(self.images) // self.settings.steps)
        targets = self.labels.targets().split(len(parts[0]))

        def inner(step: int, rate: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
            own = dict(zip(weights, values, strict=True))
            loss = functional.cross_entropy(functional_call(network, own, (parts[step],)), targets[step])
            gradients = torch.autograd.grad(loss, list(values), create_graph=True)
            return tuple(value - rate * gradient for value, gradient in zip(values, gradients, strict=True))

        values = tuple(weights.values())
        for number, rate in enumerate(self.rates):
            step = number % self.settings.steps
            if self.settings.recompute:
                values = checkpoint(inner, step, rate, *values, use_reentrant=False)
            else:
                values = inner(step, rate, *values)
        return dict(zip(weights, values, strict=True))

    def _attack(self, network: Any, weights: dict[str, Tensor], iteration: int) -> None:
        """Show an attack the network at its unrolled weights, then give the network its own back."""
        own = {name: value.detach().clone() for name, value in network.named_parameters()}
        network.load_state_dict({name: value.detach() for name, value in weights.items()}, strict=False)
        assert self.on_network_trained is not None
        self.on_network_trained(network, iteration, self.images.detach())
        network.load_state_dict(own, strict=False)

    def state(self) -> dict[str, Tensor]:
        """Images, rates, label logits, Adam's moments."""
        kept = {"images": self.images, "raw_rates": self.raw_rates}
        if self.labels.logits is not None:
            kept["logits"] = self.labels.logits
        return {
            **{name: value.detach().cpu().clone() for name, value in kept.items()},
            **sgd_state(self.optimizer, "optimizer"),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        with torch.no_grad():
            self.images.copy_(state["images"])
            self.raw_rates.copy_(state["raw_rates"])
            if self.labels.logits is not None:
                self.labels.logits.copy_(state["logits"])
        load_sgd_state(self.optimizer, "optimizer", state)

    def result(self) -> dict[str, Any]:
        """Images, labels, the step of each image, the rates, and the weights that a known start belongs to."""
        initial = None
        if self.settings.initialisation == "known":
            network = seeded_network(self.factory, self._network_seed(0))
            initial = {name: value.detach().clone() for name, value in network.state_dict().items()}
        return {
            "images": self.images.detach().cpu().clone(),
            "labels": self.labels.final(),
            "learning_rates": self.rates.detach().cpu().clone(),
            "steps": torch.arange(self.settings.steps).repeat_interleave(len(self.images) // self.settings.steps),
            "initial": initial,
        }
