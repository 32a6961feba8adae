"""What every condenser has in common: the synthetic images, their labels, where they start."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.errors import UserError
from tenfold.seeds import derived_seed
from tenfold.systems.condensation_audit.data.real_data import RealData

OnNetworkTrained = Callable[[nn.Module, int, Tensor], None]
"""Called with a trained network, the iteration and the synthetic images: where an attack updates its trigger."""

HARD_LOGIT = 6.0
"""Where learned labels start: the logit of the own class; all others are 0."""


class Condenser(Protocol):
    """One method at work.

    Attributes:
        iterations: how many steps it takes.
    """

    iterations: int

    def step(self, iteration: int) -> float:
        """Improve the synthetic images once; gives the loss. What it draws depends on seed and iteration only."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        ...

    def result(self) -> dict[str, Any]:
        """``images`` and ``labels``, and other fields of the condensed set."""
        ...


class Labels:
    """Labels of the synthetic images: fixed classes, or logits that are learned.

    Args:
        hard: ``(n,)`` int64.
        classes: number of classes.
        learned: whether the method learns probabilities.
        device: where they live.
    """

    def __init__(self, hard: Tensor, classes: int, learned: bool, device: torch.device | str) -> None:
        self.hard = hard.to(device)
        self.logits: Tensor | None = None
        if learned:
            start = functional.one_hot(self.hard, classes).float() * HARD_LOGIT
            self.logits = start.requires_grad_()

    def targets(self) -> Tensor:
        """What the cross-entropy takes: ``(n,)`` int64, or ``(n, classes)`` probabilities with their graph."""
        return self.hard if self.logits is None else self.logits.softmax(1)

    def final(self) -> Tensor:
        """The set's labels, detached."""
        return self.targets().detach().cpu()


def start_images(
    data: RealData, images_per_class: int, start: str, seed: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Synthetic images and their classes before the first step, in the order 0..0, 1..1, ...

    Args:
        data: the real images.
        images_per_class: at least 1.
        start: ``real`` (different images of the class) or ``noise``.
        seed: of the draw.
        device: where they live.

    Raises:
        UserError: a class has fewer images than wanted, or there is no such start.
    """
    if images_per_class < 1:
        raise UserError(f"images_per_class must be at least 1; got {images_per_class}")
    generator = torch.Generator().manual_seed(derived_seed(seed, 11))
    classes = len(data.classes)
    labels = torch.arange(classes).repeat_interleave(images_per_class)
    if start == "noise":
        images = torch.randn(len(labels), *data.images.shape[1:], generator=generator)
    elif start == "real":
        short = [name for name, rows in zip(data.classes, data.rows, strict=True) if len(rows) < images_per_class]
        if short:
            raise UserError(f"class {short[0]!r} has fewer than {images_per_class} images; use start='noise'")
        images = torch.cat([data.draw(label, images_per_class, generator) for label in range(classes)])
    else:
        raise UserError(f"there is no start {start!r}; there are: real, noise")
    return images.detach().clone().to(device).requires_grad_(), labels


def sgd_state(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """The tensors of an optimizer's state, by name."""
    kept = {}
    for position, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                kept[f"{prefix}.{position}.{name}"] = value.detach().clone()
    return kept


def load_sgd_state(optimizer: torch.optim.Optimizer, prefix: str, state: dict[str, Tensor]) -> None:
    """Put back what `sgd_state` kept."""
    whole = optimizer.state_dict()
    for key, value in state.items():
        if key.startswith(f"{prefix}."):
            _, position, name = key.split(".", 2)
            whole["state"].setdefault(int(position), {})[name] = value.clone()
    optimizer.load_state_dict(whole)


def needs_double_backward(network: nn.Module, images: Tensor) -> None:
    """Make sure that a network's gradient can be differentiated again; the network's own gradients are cleared.

    Raises:
        UserError: an operation in it cannot; the message names it.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    probe = images[:2].detach().to(parameters[0].dtype, copy=True).requires_grad_()
    try:
        gradients = torch.autograd.grad(network(probe).square().sum(), parameters, create_graph=True, allow_unused=True)
        total = sum((gradient.square().sum() for gradient in gradients if gradient is not None), probe.sum() * 0)
        # Backward to everything: an operation that can be differentiated once is not on the way to the images alone,
        # where its part of the gradient would be missing without a word.
        total.backward()
    except RuntimeError as error:
        raise UserError(
            f"this method differentiates a gradient, which the network does not allow: {str(error).splitlines()[0]}"
        ) from error
    network.zero_grad()
