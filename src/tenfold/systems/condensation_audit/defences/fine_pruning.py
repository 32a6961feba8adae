"""Fine-pruning and fine-tuning: repair a suspect network with a little clean data.

Neurons that clean images leave asleep may be those that a trigger wakes: they are pruned, least active first, as long
as the clean accuracy allows; then the network is fine-tuned. Liu, Dolan-Gavitt, Garg, RAID 2018.
"""

import copy
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.errors import UserError


@dataclass(frozen=True)
class Repair:
    """A repaired network.

    Attributes:
        network: repaired copy, in evaluation mode.
        pruned: units that were pruned.
        units: units that could have been.
        accuracy_before: on the images that decided.
        accuracy_after: on the same.
        seconds: wall-clock time.
    """

    network: nn.Module
    pruned: int
    units: int
    accuracy_before: float
    accuracy_after: float
    seconds: float


def fine_tune(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int = 1,
    learning_rate: float = 0.01,
    batch_size: int = 32,
    seed: int = 0,
) -> nn.Module:
    """A copy of the network after SGD (momentum .9) on clean images, in evaluation mode.

    Args:
        network: not changed.
        images: ``(n, channels, height, width)`` normalized clean images.
        labels: ``(n,)`` their classes.
        epochs: passes over them.
        learning_rate: of SGD.
        batch_size: images of a step.
        seed: of the order.

    Raises:
        UserError: there are no images.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise UserError(f"fine-tuning needs images with one label each; got {len(images)} and {len(labels)}")
    tuned = copy.deepcopy(network).train()
    for parameter in tuned.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(tuned.parameters(), lr=learning_rate, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for part in torch.randperm(len(images), generator=generator).split(batch_size):
            rows = part.to(images.device)
            loss = functional.cross_entropy(tuned(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return tuned.eval()


def fine_prune(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    tolerance: float = 0.04,
    epochs: int = 1,
    learning_rate: float = 0.01,
    seed: int = 0,
) -> Repair:
    """Prune what clean images leave asleep, then fine-tune.

    The units are the channels of the last convolution as the first linear layer reads them (its inputs themselves,
    where there is no convolution): the weights that read a pruned unit become zero, and stay zero while fine-tuning.

    Args:
        network: not changed.
        images: ``(n, channels, height, width)`` normalized clean images.
        labels: ``(n,)`` their classes.
        tolerance: loss of clean accuracy at which pruning stops.
        epochs: of fine-tuning; none with 0.
        learning_rate: of fine-tuning.
        seed: of its order.

    Raises:
        UserError: there are no images, or the network has no linear layer.
    """
    started = time.perf_counter()
    if len(images) == 0 or len(images) != len(labels):
        raise UserError(f"fine-pruning needs images with one label each; got {len(images)} and {len(labels)}")
    pruned = copy.deepcopy(network).eval()
    layer, group = _reader(pruned)
    kept: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach().flatten(1)))
    try:
        with torch.no_grad():
            before = _accuracy(pruned, images, labels)
    finally:
        handle.remove()
    activity = torch.cat(kept).abs().mean(0).view(-1, group).mean(1)
    units = len(activity)
    alive = torch.ones(units, dtype=torch.bool, device=layer.weight.device)
    original = layer.weight.detach().clone()
    count = 0
    with torch.no_grad():
        for unit in activity.argsort()[: units - 1].tolist():
            alive[unit] = False
            layer.weight.copy_(original * alive.repeat_interleave(group))
            if _accuracy(pruned, images, labels) < before - tolerance:
                alive[unit] = True
                layer.weight.copy_(original * alive.repeat_interleave(group))
                break
            count += 1
    if epochs:
        pruned = fine_tune(pruned, images, labels, epochs=epochs, learning_rate=learning_rate, seed=seed)
        with torch.no_grad():
            _reader(pruned)[0].weight.mul_(alive.repeat_interleave(group))
    with torch.no_grad():
        after = _accuracy(pruned, images, labels)
    return Repair(pruned, count, units, before, after, time.perf_counter() - started)


def _reader(network: nn.Module) -> tuple[nn.Linear, int]:
    """The linear layer that reads the units, and how many of its inputs belong to one unit."""
    modules = list(network.modules())
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    if not linears:
        raise UserError("fine-pruning needs a network with a linear layer")
    convolutions = [number for number, module in enumerate(modules) if isinstance(module, nn.Conv2d)]
    if convolutions:
        after = [module for module in modules[convolutions[-1] :] if isinstance(module, nn.Linear)]
        channels = modules[convolutions[-1]].out_channels
        if after and isinstance(channels, int) and after[0].in_features % channels == 0:
            return after[0], after[0].in_features // channels
    return linears[-1], 1


@torch.no_grad()
def _accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    predictions = torch.cat([network(part).argmax(1) for part in images.split(1024)])
    return float((predictions == labels).double().mean())
