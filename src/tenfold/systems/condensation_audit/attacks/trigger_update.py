"""One update of Doorping's trigger: the neurons that it is to drive, and the steps on its pixels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.attacks.triggers import Trigger
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.networks.factories import last_linear

pass


Clamp = Literal["none", "valid", "uint8"]


@dataclass(frozen=True)
class KeyNeurons:
    """Neurons that the trigger is to drive.

    Attributes:
        reader: the linear layer whose input holds their activations: what follows their own layer's activation
            function, so that it does not matter whether that works in place.
        indices: ``(k,)`` which of its inputs.
    """

    reader: nn.Linear
    indices: Tensor


def find_key_neurons(network: nn.Module, topk: int = 1, layer: int = -2) -> KeyNeurons:
    """Neurons with the largest incoming weight mass [code].

    Args:
        network: any, with a linear layer.
        topk: how many.
        layer: which linear layer they belong to, counted from the end; -2 is the one before the classifier. A network
            without that layer (one linear layer after the convolutions) has its classifier's inputs as neurons, and
            their mass is that of the outgoing weights [inferred: the published selection crashes there].

    Raises:
        UserError: the network has no linear layer, or the layer's neurons do not feed the next linear layer.
    """
    if layer > -2:
        raise UserError(f"the layer of the key neurons is counted from the end, -2 or less; got {layer}")
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if len(linears) < 2:
        reader = last_linear(network)
        mass = reader.weight.detach().abs().sum(0)
    else:
        if len(linears) < -layer:
            raise UserError(f"the network has {len(linears)} linear layers; there is no layer {layer}")
        own, reader = linears[layer], linears[layer + 1]
        if own.out_features != reader.in_features:
            raise UserError(
                f"layer {layer} has {own.out_features} neurons but the next linear layer reads {reader.in_features}"
            )
        mass = own.weight.detach().abs().sum(1)
    return KeyNeurons(reader, mass.topk(min(topk, len(mass))).indices)


@contextmanager
def reading_keys(network: nn.Module, keys: KeyNeurons) -> Iterator[Callable[[Tensor], Tensor]]:
    """Within the block, a function from images to ``(n, k)`` activations of the key neurons, after ReLU or the like.

    One hook for all calls, gone afterwards: the published code adds one at every step.
    """
    kept: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept.append(inputs[0].flatten(1)[:, keys.indices])  # a copy: what follows may work in place

    def read(images: Tensor) -> Tensor:
        network(images)
        return kept.pop()

    handle = keys.reader.register_forward_pre_hook(keep)
    try:
        yield read
    finally:
        handle.remove()


def key_activations(network: nn.Module, keys: KeyNeurons, images: Tensor) -> Tensor:
    """``(n, k)`` activations of the key neurons, after their activation function."""
    with reading_keys(network, keys) as read:
        return read(images)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@dataclass(frozen=True)
class UpdateRecord:
    """One update of the trigger.

    Attributes:
        iteration: of the condensation.
        steps: optimizer steps; 0 where the stop rule fired at once.
        activation: mean activation of the key neurons before.
        loss: at the end.
        excess: of the trigger afterwards, see `Trigger.excess`.
    """

    iteration: int
    steps: int
    activation: float
    loss: float
    excess: float


def update_trigger(
    network: nn.Module,
    trigger: Trigger,
    preprocessing: Preprocessing,
    *,
    topk: int = 1,
    layer: int = -2,
    alpha: float = 10.0,
    clamp: Clamp = "none",
    steps: int = 1000,
    learning_rate: float = 0.08,
    tolerance: float = 0.5,
    official_sign: bool = False,
    after_step: Callable[[Tensor], None] | None = None,
) -> tuple[Trigger, UpdateRecord]:
    """One update of the trigger on one network, which is left as it was.

    Args:
        network: trained on the current synthetic images.
        trigger: current one; for blended and additive triggers all pixels of the mask are optimized.
        preprocessing: of the data; steps are taken in normalized units, as published.
        topk: number of key neurons.
        layer: see `find_key_neurons`.
        alpha: how many times the present activation is aimed at.
        clamp: ``none`` as published, or ``valid`` or ``uint8``: projected to the pixel range after each step.
        steps: at most.
        learning_rate: of Adam.
        tolerance: loss at which it stops.
        official_sign: aim at ``alpha a0`` also where ``a0`` is negative, which pushes it down; else ``alpha |a0|``.
        after_step: called with the pattern in pixel units after each step; for checks.
    """
    keys = find_key_neurons(network, topk, layer)
    device = keys.reader.weight.device
    additive = trigger.mode == "additive"
    mean, std = (torch.tensor(values, device=device).view(-1, 1) for values in (preprocessing.mean, preprocessing.std))
    middle, lowest = (torch.zeros_like(mean), -1.0) if additive else (mean, 0.0)
    start, free = trigger.pattern.to(device), trigger.mask.to(device)
    # The mask's pixels only, (channels, pixels), in normalized units.
    inner = ((start[:, free] - middle) / std).requires_grad_()
    bounds = (lowest - middle) / std, (1 - middle) / std
    optimizer = torch.optim.Adam([inner], lr=learning_rate, betas=(0.9, 0.99))
    # The trigger alone, on black, is what the network sees: a constant, but for the mask's pixels. On black all modes
    # are a multiple of the pattern.
    strength = 1.0 if trigger.mode == "patch" else trigger.alpha
    shift = (strength * middle - mean) / std
    black = (-mean / std).unsqueeze(2).expand(start.shape).unsqueeze(0)
    everywhere = free.expand_as(black)

    def pattern() -> Tensor:
        return start.masked_scatter(free.expand_as(start), inner.detach() * std + middle)

    def seen() -> Tensor:
        image = black.masked_scatter(everywhere, inner * strength + shift)
        return image if preprocessing.zca is None else preprocessing.zca.transform(image)

    with evaluating(network), reading_keys(network, keys) as read, torch.enable_grad():
        with torch.no_grad():
            before = read(seen())
            aim = alpha * (before if official_sign else before.abs())
        taken, loss = 0, torch.zeros(())
        while True:
            loss = (read(seen()) - aim).square().mean()
            if taken == steps or float(loss.detach()) < tolerance:
                break
            (inner.grad,) = torch.autograd.grad(loss, inner)
            optimizer.step()
            taken += 1
            if clamp != "none":
                inner.data.clamp_(bounds[0], bounds[1])
            if after_step is not None:
                after_step(pattern())
    # Without a step the trigger is the very same, to the last bit.
    found = trigger if taken == 0 else replace(trigger, pattern=pattern().to(trigger.pattern))
    if clamp != "none" and taken:
        found = replace(found, pattern=found.pattern.clamp(lowest, 1.0))  # rounding of the way back to pixels
    record = UpdateRecord(-1, taken, float(before.mean()), float(loss.detach()), found.excess)
    return found, record
