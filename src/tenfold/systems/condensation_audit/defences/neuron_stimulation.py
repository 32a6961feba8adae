"""Artificial brain stimulation (ABS): is there a neuron that drives one class whatever the image shows?

1. Stimulate: set one neuron (a feature, or a channel of an activation map) to values from zero to several times its
   usual maximum, on a few seed images, and see by how much the logit of each class rises above all others.
2. Invert: for the neurons that elevate one class most, search a trigger with a small mask that wakes the neuron.
3. Judge: the trigger, cut to its strongest pixels, must turn at least 88 % of other seed images into the class.

Liu et al., CCS 2019; the search here is over mask and pattern in the pixel range, all candidates in one batch.
"""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.attacks.triggers import Trigger
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.defences.patch_scan import quick_copy
from tenfold.systems.condensation_audit.networks.factories import last_linear


@dataclass(frozen=True)
class Candidate:
    """A neuron that drives a class, and the trigger found for it.

    Attributes:
        layer: name of the activation, or ``features`` for the input of the classifier.
        neuron: feature or channel.
        target: class that it elevates.
        elevation: how far stimulation lifts the class's logit above all others, beyond what no stimulation does.
        success: share of other seed images that the trigger turns into the class.
        trigger: mask of at most the allowed pixels, pattern in the pixel range.
    """

    layer: str
    neuron: int
    target: int
    elevation: float
    success: float
    trigger: Trigger


@dataclass(frozen=True)
class NeuronStimulation:
    """What stimulation found.

    Attributes:
        candidates: best first.
        threshold: of the success.
        seconds: wall-clock time.
    """

    candidates: tuple[Candidate, ...]
    threshold: float
    seconds: float

    @property
    def score(self) -> float:
        """The largest success of a candidate; 0 where there is none."""
        return max((candidate.success for candidate in self.candidates), default=0.0)

    @property
    def flagged(self) -> list[int]:
        """Classes that a candidate drives."""
        return sorted({c.target for c in self.candidates if c.success >= self.threshold})


def stimulate_neurons(
    network: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    preprocessing: Preprocessing,
    *,
    seeds: int = 40,
    levels: int = 8,
    strength: float = 5.0,
    candidates: int = 10,
    largest_mask: int | None = None,
    steps: int = 200,
    learning_rate: float = 0.1,
    threshold: float = 0.88,
) -> NeuronStimulation:
    """Stimulate the neurons of a network, and invert triggers for the most suspect.

    Args:
        network: classifier of normalized images; not changed.
        pixels: ``(n, channels, height, width)`` uint8 clean images; one half to search with, the other to judge.
        labels: ``(n,)`` their classes.
        preprocessing: what the network expects.
        seeds: images of each half.
        levels: values that a neuron is set to.
        strength: largest value, as a multiple of the neuron's usual maximum.
        candidates: neurons whose triggers are searched.
        largest_mask: pixels of a trigger at most; where ``None``, 16 of 32 x 32 pixels and more, of smaller images in
            proportion, but at least 4.
        steps: of the search.
        learning_rate: of its Adam.
        threshold: success at which a class is flagged.

    Raises:
        UserError: fewer than four images, or they do not fit.
    """
    started = time.perf_counter()
    if len(pixels) < 4 or tuple(pixels.shape[1:]) != preprocessing.image_shape or len(pixels) != len(labels):
        raise UserError(
            f"stimulation needs at least 4 images {preprocessing.image_shape} with labels; got {tuple(pixels.shape)}"
        )
    if largest_mask is None:
        largest_mask = min(16, max(4, round(16 * preprocessing.image_shape[1] * preprocessing.image_shape[2] / 1024)))
    network = quick_copy(copy.deepcopy(network))
    device = next(network.parameters(), torch.zeros(())).device
    search, judge = (pixels[half : 2 * seeds : 2].to(device).float() / 255 for half in (0, 1))
    judge_labels = labels[1 : 2 * seeds : 2].to(device)
    images = preprocessing.normalize(search)
    points = _points(network, images)
    found = [entry for point in points for entry in _elevations(network, point, images, levels, strength)]
    found.sort(key=lambda entry: -entry[3])
    # The best neurons of each class first: one class must not take all places.
    per_class: dict[int, int] = {}
    chosen: list[tuple[_Point, int, int, float]] = []
    for entry in found:
        if per_class.get(entry[2], 0) < max(2, candidates // 3) and len(chosen) < candidates:
            chosen.append(entry)
            per_class[entry[2]] = per_class.get(entry[2], 0) + 1
    triggers = _invert(network, chosen, search, preprocessing, largest_mask, steps, learning_rate)
    answer = []
    for (point, neuron, target, elevation), trigger in zip(chosen, triggers, strict=True):
        others = judge_labels != target
        success = 0.0
        if bool(others.any()):
            with torch.no_grad():
                stamped = preprocessing.normalize(trigger.stamp_valid(judge[others]))
                success = float((network(stamped).argmax(1) == target).double().mean())
        answer.append(Candidate(point.name, neuron, target, elevation, success, trigger))
    answer.sort(key=lambda candidate: (-candidate.success, -candidate.elevation))
    return NeuronStimulation(tuple(answer), threshold, time.perf_counter() - started)


@dataclass(frozen=True)
class _Point:
    """A place where neurons can be read and set: a module, and whether its input or its output holds them."""

    name: str
    module: nn.Module
    channels: int
    before: bool

    @contextmanager
    def replaced(self, change: "_Change") -> Iterator[None]:
        """Within the block the activations pass through ``change``."""
        if self.before:
            handle = self.module.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]), *inputs[1:]))
        else:
            handle = self.module.register_forward_hook(lambda _, __, output: change(output))
        try:
            yield
        finally:
            handle.remove()


class _Change:
    """Sets one neuron to a value per image, where one is set; remembers what it saw."""

    def __init__(self) -> None:
        self.neurons: Tensor | None = None
        self.values: Tensor | None = None
        self.seen: Tensor = torch.zeros(0)

    def __call__(self, activations: Tensor) -> Tensor:
        self.seen = activations
        if self.neurons is None or self.values is None:
            return activations
        changed = activations.clone()
        rows = torch.arange(len(changed), device=changed.device)
        changed[rows, self.neurons] = self.values.view(-1, *[1] * (changed.ndim - 2))
        return changed


def _points(network: nn.Module, images: Tensor) -> list[_Point]:
    """The input of the classifier, and every ReLU that runs once."""
    layer = last_linear(network)
    points = [_Point("features", layer, layer.in_features, True)]
    for name, module in network.named_modules():
        if isinstance(module, nn.ReLU):
            change = _Change()
            runs: list[Any] = []
            point = _Point(name, module, 0, False)

            def counted(x: Tensor, change: _Change = change, runs: list[int] = runs) -> Tensor:
                runs.append(1)
                return change(x)

            with point.replaced(counted), torch.no_grad():  # type: ignore[arg-type]
                network(images[:2])
            if len(runs) == 1 and change.seen.ndim >= 2:
                points.append(_Point(name, module, change.seen.shape[1], False))
    return points


@torch.no_grad()
def _elevations(
    network: nn.Module, point: _Point, images: Tensor, levels: int, strength: float
) -> list[tuple[_Point, int, int, float]]:
    """For each neuron of a point the class that it elevates most, and by how much."""
    change = _Change()
    with point.replaced(change):
        base = network(images)
        seen = change.seen.flatten(2).amax(2) if change.seen.ndim > 2 else change.seen
        usual = seen.abs().amax(0)
        top = usual.clamp(min=float(usual.mean()) * 0.1 + 1e-6) * strength
        n = len(images)
        margin_before = _margins(base)
        found = []
        for neuron in range(point.channels):
            values = torch.linspace(0, 1, levels, device=images.device) * top[neuron]
            change.neurons = torch.full((levels * n,), neuron, device=images.device)
            change.values = values.repeat_interleave(n)
            logits = network(images.repeat(levels, 1, 1, 1))
            # The least image decides at each level: a backdoor's neuron drives them all.
            lift = (_margins(logits).view(levels, n, -1) - margin_before).quantile(0.1, dim=1).amax(0)
            target = int(lift.argmax())
            found.append((point, neuron, target, float(lift[target])))
    return found


def _margins(logits: Tensor) -> Tensor:
    """``(n, classes)`` each logit minus the largest of the others."""
    top = logits.topk(2, dim=1)
    is_top = functional.one_hot(top.indices[:, 0], logits.shape[1]).bool()
    return logits - torch.where(is_top, top.values[:, 1:], top.values[:, :1])


def _invert(
    network: nn.Module,
    chosen: list[tuple[_Point, int, int, float]],
    search: Tensor,
    preprocessing: Preprocessing,
    largest_mask: int,
    steps: int,
    learning_rate: float,
) -> list[Trigger]:
    """Triggers that wake the chosen neurons and turn the images; one network pass serves all candidates."""
    if not chosen:
        return []
    channels, height, width = preprocessing.image_shape
    count, n = len(chosen), len(search)
    device = search.device
    allowed = min(largest_mask, height * width)
    raw_mask = torch.full((count, 1, height, width), -1.0, device=device, requires_grad=True)
    raw_pattern = torch.zeros(count, channels, height, width, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([raw_mask, raw_pattern], lr=learning_rate)
    targets = torch.tensor([target for _, _, target, _ in chosen], device=device).repeat_interleave(n)
    points = {id(point.module): point for point, *_ in chosen}
    changes = {key: _Change() for key in points}
    for step in range(steps):
        mask, pattern = raw_mask.sigmoid(), raw_pattern.sigmoid()
        mixed = (1 - mask)[:, None] * search + (mask * pattern)[:, None]
        with _all_replaced([(points[key], changes[key]) for key in points]):
            logits = network(preprocessing.normalize(mixed.flatten(0, 1)))
        awake = torch.stack(
            [
                changes[id(point.module)].seen.unflatten(0, (count, n))[number, :, neuron].mean()
                for number, (point, neuron, _, _) in enumerate(chosen)
            ]
        )
        turned = functional.cross_entropy(logits, targets, reduction="none").view(count, n).mean(1)
        # The mask may grow freely up to the allowed size; beyond it costs more and more as the search goes on.
        beyond = (mask.flatten(1).sum(1) - allowed).clamp(min=0)
        loss = turned - 0.1 * awake.clamp(max=100) + (0.05 + step / steps) * beyond
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    triggers = []
    for mask, pattern in zip(raw_mask.detach()[:, 0].sigmoid(), raw_pattern.detach().sigmoid(), strict=True):
        strongest = mask.flatten().topk(allowed)
        hard = torch.zeros(height * width, dtype=torch.bool, device=device)
        hard[strongest.indices] = strongest.values > min(0.2, float(strongest.values[0]) * 0.999)
        triggers.append(Trigger(hard.view(height, width).cpu(), pattern.cpu()))
    return triggers


@contextmanager
def _all_replaced(pairs: list[tuple[_Point, _Change]]) -> Iterator[None]:
    if not pairs:
        yield
        return
    with pairs[0][0].replaced(pairs[0][1]), _all_replaced(pairs[1:]):
        yield
