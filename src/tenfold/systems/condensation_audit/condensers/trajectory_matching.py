"""Trajectory matching (MTT): training on the synthetic images goes where training on the real ones went.

draw an expert and an epoch t below max_start;  theta_0 = the expert's weights at t
N times: theta <- theta - alpha * grad L(A(synthetic batch))          alpha is learned
L = |theta_N - expert at t + M|^2 / |expert at t - expert at t + M|^2
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

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
from tenfold.systems.condensation_audit.condensers.experts import (
    ExpertSettings,
    check_trajectory,
    train_experts,
    unflatten,
)
from tenfold.systems.condensation_audit.data.real_data import RealData
from tenfold.systems.condensation_audit.networks.factories import Factory, seeded_network
from tenfold.systems.condensation_audit.training.siamese_augmentation import (
    FULL_STRATEGY,
    Draw,
    apply_augmentation,
    draw_augmentation,
    operations_of,
)


@dataclass
class TrajectoryMatchingSettings:
    """Published settings of MTT [MTT code].

    Attributes:
        iterations: steps on the images.
        steps: N, training steps on synthetic images.
        expert_epochs: M, epochs of the expert that they stand for.
        max_start: first epochs lie below this.
        batch_size: synthetic images per training step; all where ``None``.
        image_rate: learning rate of the images.
        momentum: of their SGD and of the learned rate's.
        rate: where the learned learning rate starts.
        rate_rate: its own learning rate.
        start: ``real`` or ``noise``.
        strategy: augmentation in the training steps; none where empty.
        learn_labels: whether labels become probabilities that are learned, too.
        label_rate: learning rate of their logits.
        recompute: keep only the weights of each training step and compute it again: memory no longer grows with the
            activations of all steps.
        experts: networks trained on the real data.
        expert_length: epochs of each.
        expert_rate: learning rate of each.
        expert_batch: batch of each.
    """

    iterations: PositiveInt = 5000
    steps: PositiveInt = 20
    expert_epochs: PositiveInt = 3
    max_start: PositiveInt = 25
    batch_size: PositiveInt | None = None
    image_rate: PositiveFloat = 1000.0
    momentum: ProperShare = 0.5
    rate: PositiveFloat = 0.01
    rate_rate: PositiveFloat = 1e-5
    start: Literal["real", "noise"] = "real"
    strategy: str = FULL_STRATEGY
    learn_labels: bool = False
    label_rate: PositiveFloat = 1.0
    recompute: bool = False
    experts: PositiveInt = 100
    expert_length: PositiveInt = 50
    expert_rate: PositiveFloat = 0.01
    expert_batch: PositiveInt = 256


class TrajectoryMatching:
    """MTT at work: see `Condenser`.

    Args:
        data: the real images.
        images_per_class: of each class.
        factory: makes a network.
        settings: the method's.
        seed: of everything random.
        device: where to compute.
        on_network_trained: called with every expert, and with the student at the end of each unroll.
        trajectories: experts that are there already, ``(epochs + 1, p)`` each; trained here where ``None``.
        folder: where trained experts are kept.
    """

    def __init__(
        self,
        data: RealData,
        images_per_class: int,
        factory: Factory,
        settings: TrajectoryMatchingSettings,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        on_network_trained: OnNetworkTrained | None = None,
        trajectories: Sequence[Tensor] | None = None,
        folder: Any = None,
    ) -> None:
        operations_of(settings.strategy)
        if settings.max_start - 1 + settings.expert_epochs > settings.expert_length:
            raise UserError(
                f"max_start {settings.max_start} and expert_epochs {settings.expert_epochs} reach beyond the "
                f"{settings.expert_length} epochs of the experts"
            )
        self.data, self.settings, self.seed, self.device = data, settings, seed, device
        self.iterations = settings.iterations
        self.network = seeded_network(factory, seed, device).train()
        self.images, hard = start_images(data, images_per_class, settings.start, seed, device)
        needs_double_backward(self.network, self.images)
        self.labels = Labels(hard, len(data.classes), settings.learn_labels, device)
        self.rate = torch.tensor(settings.rate, device=device, requires_grad=True)
        size = sum(parameter.numel() for parameter in self.network.parameters())
        if trajectories is None:
            options = ExpertSettings(
                settings.experts, settings.expert_length, settings.expert_rate, settings.expert_batch, settings.strategy
            )
            trajectories = train_experts(data, factory, options, seed=seed, device=device, folder=folder)
        self.trajectories = [
            check_trajectory(found, settings.max_start + settings.expert_epochs, size, f"expert {number}")
            for number, found in enumerate(trajectories)
        ]
        image_group: list[dict[str, Any]] = [{"params": [self.images], "lr": settings.image_rate}]
        if self.labels.logits is not None:
            image_group.append({"params": [self.labels.logits], "lr": settings.label_rate})
        image_group.append({"params": [self.rate], "lr": settings.rate_rate})
        self.optimizer = torch.optim.SGD(image_group, momentum=settings.momentum)
        self.on_network_trained = on_network_trained

    def step(self, iteration: int) -> float:
        """One unroll, one step on images and learning rate."""
        settings = self.settings
        generator = torch.Generator().manual_seed(derived_seed(self.seed, 12, iteration))
        expert = self.trajectories[int(torch.randint(len(self.trajectories), (1,), generator=generator))]
        first = int(torch.randint(settings.max_start, (1,), generator=generator))
        begin, end = (expert[epoch].to(self.device) for epoch in (first, first + settings.expert_epochs))
        reached = self.unroll(begin, generator)
        loss = trajectory_loss(reached, begin, end)
        leaves = [leaf for group in self.optimizer.param_groups for leaf in group["params"]]
        self.optimizer.zero_grad()
        for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
            leaf.grad = gradient
        self.optimizer.step()
        if self.on_network_trained is not None:
            with torch.no_grad():
                for name, value in unflatten(reached.detach(), self.network).items():
                    self.network.get_parameter(name).copy_(value)
            self.on_network_trained(self.network, iteration, self.images.detach())
        return float(loss.detach())

    def unroll(self, begin: Tensor, generator: torch.Generator) -> Tensor:
        """Flat weights after N steps from ``begin`` ``(p,)``, differentiable in images, labels and rate."""
        settings = self.settings
        theta = begin.clone().requires_grad_()
        count = len(self.images)
        size = settings.batch_size or count
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(settings.steps):
            if len(order) == 0:
                order = torch.randperm(count, generator=generator) if size < count else torch.arange(count)
            rows, order = order[:size].to(self.device), order[size:]
            draw = draw_augmentation(settings.strategy, generator, len(rows))
            if settings.recompute:
                theta = checkpoint(self._train_step, theta, self.images, self.rate, rows, draw, use_reentrant=False)
            else:
                theta = self._train_step(theta, self.images, self.rate, rows, draw)
        return theta

    def _train_step(self, theta: Tensor, images: Tensor, rate: Tensor, rows: Tensor, draw: Draw) -> Tensor:
        part = apply_augmentation(images[rows], draw)
        weights = unflatten(theta, self.network)
        loss = functional.cross_entropy(functional_call(self.network, weights, (part,)), self.labels.targets()[rows])
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        return theta - rate * gradient

    def state(self) -> dict[str, Tensor]:
        """Images, rate, label logits, momentum."""
        kept = {"images": self.images, "rate": self.rate}
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
            self.rate.copy_(state["rate"])
            if self.labels.logits is not None:
                self.labels.logits.copy_(state["logits"])
        load_sgd_state(self.optimizer, "optimizer", state)

    def result(self) -> dict[str, Any]:
        """Images, labels, and the learned rate, which evaluation must use."""
        rate = float(self.rate.detach())
        return {
            "images": self.images.detach().cpu().clone(),
            "labels": self.labels.final(),
            "learning_rate": rate,
            "learning_rates": self.rate.detach().cpu().reshape(1).clone(),
        }


def trajectory_loss(reached: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """Squared distance to the expert's later weights, over the distance that the expert went; 1 where nothing moved."""
    return (reached - end).square().sum() / (begin - end).square().sum()
