"""Time of a condensation step against a straightforward form of the published loops, same settings, one process.

    python benchmarks/condensation_steps.py

The straightforward form is written here after the published programs' structure: classes one after the other, real
images drawn by permuting the class's whole index list, all parameters' gradients computed, distances row tensor by row
tensor, a DataLoader per inner epoch, a hook per trigger step. Both forms start from the same network and batches where
equality is checked; times are medians of several steps, the forms taking turns.
"""

import json
import platform
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tenfold.systems.condensation_audit.attacks.trigger_update import update_trigger
from tenfold.systems.condensation_audit.attacks.triggers import random_patch
from tenfold.systems.condensation_audit.condensers.distribution_matching import (
    DistributionMatching,
    DistributionMatchingSettings,
    class_means,
    mean_difference,
)
from tenfold.systems.condensation_audit.condensers.gradient_matching import (
    GradientMatching,
    GradientMatchingSettings,
    class_gradients,
    gradient_distance,
)
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.data.real_data import RealData
from tenfold.systems.condensation_audit.networks.factories import factory_of, seeded_network
from tenfold.systems.condensation_audit.networks.halving_pool import HalvingPool
from tenfold.systems.condensation_audit.sets.condensed_set import TrainingRecipe
from tenfold.systems.condensation_audit.training.ensembles import train_together

OUT = Path(__file__).parent / "results" / "condensation-steps.json"
CLASSES = 10
# (what, side, width, depth, real images per class, images per class)
SETTINGS = [
    ("digits", 8, 16, 2, 64, 10),
    ("digits, 1 per class", 8, 16, 2, 64, 1),
    ("14 x 14", 14, 16, 2, 64, 10),
    ("14 x 14, 1 per class", 14, 16, 2, 64, 1),
    ("28 x 28", 28, 32, 3, 64, 10),
]
ROUNDS = 7


def random_data(side: int, per_class: int = 600) -> RealData:
    """Noise, as many images as a tenth of Fashion-MNIST: times do not see content."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (CLASSES * per_class, 1, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.arange(CLASSES).repeat(per_class)
    return RealData(pixels, labels, tuple(map(str, range(CLASSES))), Preprocessing((0.5,), (0.29,), (1, side, side)))


def published_form(factory):
    """The same network with torch's own pooling and activations that leave their input alone, as published."""

    def make() -> nn.Module:
        network = factory()
        for module in list(network.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, HalvingPool):
                    setattr(module, name, nn.AvgPool2d(2))
                elif isinstance(child, nn.ReLU):
                    setattr(module, name, nn.ReLU())
        return network

    return make


class Straightforward:
    """The published loops, without their evaluation and logging."""

    def __init__(self, data: RealData, factory, per_class: int, real: int) -> None:
        self.data, self.factory, self.per_class, self.real = data, factory, per_class, real
        self.generator = np.random.default_rng(0)
        self.indices = [[] for _ in range(CLASSES)]
        for row, label in enumerate(data.labels.tolist()):
            self.indices[label].append(row)
        self.images = torch.randn(CLASSES * per_class, *data.images.shape[1:], requires_grad=True)
        self.labels = torch.arange(CLASSES).repeat_interleave(per_class)
        self.optimizer = torch.optim.SGD([self.images], lr=0.1, momentum=0.5)

    def draw(self, label: int) -> torch.Tensor:
        """Real images of a class."""
        return self.data.images[self.generator.permutation(self.indices[label])[: self.real]]

    def own(self, label: int) -> torch.Tensor:
        """Synthetic images of a class."""
        return self.images[label * self.per_class : (label + 1) * self.per_class]

    def distribution_step(self) -> None:
        """One iteration of distribution matching."""
        network = self.factory().train()
        for parameter in network.parameters():
            parameter.requires_grad = False
        loss = torch.tensor(0.0)
        for label in range(CLASSES):
            real = network.embed(self.draw(label)).detach()
            loss = loss + torch.sum((real.mean(0) - network.embed(self.own(label)).mean(0)) ** 2)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()

    def matching_loss(self, network: nn.Module, batches=None) -> torch.Tensor:
        """Distance of the gradients, class by class."""
        parameters = list(network.parameters())
        loss = torch.tensor(0.0)
        for label in range(CLASSES):
            real = self.draw(label) if batches is None else batches[label]
            given = torch.ones(len(real), dtype=torch.long) * label
            theirs = torch.autograd.grad(functional.cross_entropy(network(real), given), parameters)
            theirs = [value.detach().clone() for value in theirs]
            own = torch.ones(self.per_class, dtype=torch.long) * label
            ours = torch.autograd.grad(
                functional.cross_entropy(network(self.own(label)), own), parameters, create_graph=True
            )
            for a, b in zip(ours, theirs, strict=True):
                if a.ndim > 1:
                    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
                    norms = torch.norm(a, dim=-1) * torch.norm(b, dim=-1)
                    loss = loss + torch.sum(1 - torch.sum(a * b, dim=-1) / (norms + 1e-6))
        return loss

    def gradient_step(self, outer: int, inner: int) -> None:
        """One iteration of gradient matching."""
        network = self.factory().train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        for number in range(outer):
            loss = self.matching_loss(network)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()
            if number == outer - 1:
                break
            dataset = TensorDataset(self.images.detach().clone(), self.labels)
            loader = DataLoader(dataset, batch_size=256, shuffle=True, num_workers=0)
            for _ in range(inner):
                for images, labels in loader:
                    logits = network(images)
                    loss = functional.cross_entropy(logits, labels)
                    np.sum(np.equal(np.argmax(logits.detach().numpy(), axis=-1), labels.numpy()))
                    loss.item()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()


def straightforward_trigger(network: nn.Module, pattern: torch.Tensor, mask: torch.Tensor, steps: int) -> None:
    """The published trigger update: a hook is registered at every step and never removed."""
    layer = next(module for module in network.modules() if isinstance(module, nn.Linear))
    key = layer.weight.abs().sum(1).topk(1).indices
    trigger = pattern.clone().requires_grad_()
    optimizer = torch.optim.Adam([trigger], lr=0.08, betas=(0.9, 0.99))
    aim = None
    for _ in range(steps):
        seen: list[torch.Tensor] = []
        layer.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
        network(trigger.unsqueeze(0))
        activation = seen[-1][:, key]
        aim = 10 * activation.detach() if aim is None else aim
        loss = functional.mse_loss(activation, aim)
        loss.item()
        optimizer.zero_grad()
        loss.backward()
        trigger.grad *= mask
        optimizer.step()


def medians(ours, theirs) -> dict[str, float]:
    """Milliseconds of both, taking turns, after one round to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        for work, kept in zip((ours, theirs), times, strict=True):
            started = time.perf_counter()
            work()
            if number:
                kept.append(time.perf_counter() - started)
    own, other = (1000 * median(kept) for kept in times)
    ratios = [b / a for a, b in zip(*times, strict=True)]
    return {
        "ours_ms": own,
        "straightforward_ms": other,
        "ratio": other / own,
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def measure(what: str, side: int, width: int, depth: int, real: int, per_class: int) -> list[dict]:
    data = random_data(side)
    factory = factory_of("convnet", image_shape=(1, side, side), num_classes=CLASSES, width=width, depth=depth)
    plain = Straightforward(data, published_form(factory), per_class, real)
    rows = []

    matching = DistributionMatching(
        data, per_class, factory, DistributionMatchingSettings(iterations=1, real_batch=real, strategy=""), seed=0
    )
    counter = iter(range(10**6))
    found = medians(lambda: matching.step(next(counter)), plain.distribution_step)
    rows.append({"step": "distribution matching", "difference": distribution_difference(data, factory, plain), **found})

    outer, inner = (1, 1) if per_class == 1 else (3, 10)
    settings = GradientMatchingSettings(iterations=1, outer=outer, inner=inner, real_batch=real)
    gradients = GradientMatching(data, per_class, factory, settings, seed=0)
    found = medians(lambda: gradients.step(next(counter)), lambda: plain.gradient_step(outer, inner))
    rows.append(
        {
            "step": f"gradient matching, {outer} image steps, {inner} epochs between",
            "difference": gradient_difference(gradients, factory, plain),
            **found,
        }
    )
    return [
        {"setting": what, "side": side, "width": width, "real": real, "per_class": per_class, **row} for row in rows
    ]


def distribution_difference(data: RealData, factory, plain: Straightforward) -> float:
    """Largest relative difference of the images' gradient between the two forms, same network and batches."""
    network = seeded_network(factory, 0)
    real = [data.images[rows[: plain.real]] for rows in data.rows]
    loop = sum(
        ((network.embed(real[c]).mean(0) - network.embed(plain.own(c)).mean(0)) ** 2).sum() for c in range(CLASSES)
    )
    counts = [plain.real] * CLASSES
    batched = mean_difference(
        class_means(network, torch.cat(real), counts), class_means(network, plain.images, [plain.per_class] * CLASSES)
    )
    return relative_difference(*(torch.autograd.grad(loss, plain.images)[0] for loss in (loop, batched)))


def gradient_difference(ours: GradientMatching, factory, plain: Straightforward) -> float:
    """The same for gradient matching."""
    network = seeded_network(factory, 0)
    real = [ours.data.images[rows[: plain.real]] for rows in ours.data.rows]
    loop = plain.matching_loss(network, real)
    batches = [(images, torch.full((len(images),), label)) for label, images in enumerate(real)]
    own = [(plain.own(label), torch.full((plain.per_class,), label)) for label in range(CLASSES)]
    theirs = class_gradients(network, batches, graph=False, vmapped=ours._vmapped(batches))
    mine = class_gradients(network, own, graph=True, vmapped=ours._vmapped(own))
    batched = gradient_distance(mine, theirs)
    return relative_difference(*(torch.autograd.grad(loss, plain.images)[0] for loss in (loop, batched)))


def relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return float((one - other).abs().max() / one.abs().max())


def measure_trigger(steps: int = 300) -> dict:
    """Steps of the trigger update, which takes all of them here: the aim is out of reach."""
    shape = (1, 32, 32)
    factory = factory_of("convnet_baadd", image_shape=shape, num_classes=CLASSES, width=32)

    def awake(make) -> nn.Module:
        network = seeded_network(make, 0).train()
        with torch.no_grad():
            network.classifier[0].bias.fill_(1.0)  # no neuron sleeps: the stop rule would end the update at once
        return network

    network = awake(factory)
    preprocessing = Preprocessing((0.2861,), (0.3530,), shape)
    trigger = random_patch(shape, 2, seed=0)
    pattern = preprocessing.normalize(trigger.pattern.unsqueeze(0))[0]

    def ours():
        _, record = update_trigger(network, trigger, preprocessing, alpha=1e3, steps=steps)
        assert record.steps == steps, record

    def theirs():
        # A fresh copy each time: hooks are never removed, and would make every round slower than the one before.
        straightforward_trigger(awake(published_form(factory)), pattern, trigger.mask.float(), steps)

    return {
        "setting": "32 x 32, no norm",
        "step": f"trigger update, {steps} steps",
        "side": 32,
        "width": 32,
        **medians(ours, theirs),
    }


def measure_forms() -> list[dict]:
    """Five networks trained on a set, stacked or one after the other."""
    rows = []
    for what, side, width, depth, _, per_class in SETTINGS[::2]:
        factory = factory_of("convnet", image_shape=(1, side, side), num_classes=CLASSES, width=width, depth=depth)
        images = torch.randn(CLASSES * per_class, 1, side, side, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(CLASSES).repeat_interleave(per_class)
        recipe = TrainingRecipe(epochs=5)
        loop, stacked = (
            partial(train_together, factory, images, labels, recipe, seeds=range(5), form=form)
            for form in ("loop", "vmap")
        )
        found = medians(loop, stacked)
        rows.append(
            {
                "setting": what,
                "loop_ms": found["ours_ms"],
                "vmap_ms": found["straightforward_ms"],
                "ratio": found["ratio"],
            }
        )
    return rows


def main() -> None:
    """Measure all and write the results."""
    torch.set_num_threads(1)
    rows = [row for setting in SETTINGS for row in measure(*setting)]
    rows.append(measure_trigger())
    results = {
        "rows": rows,
        "ensembles": measure_forms(),
        "environment": {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "rounds": ROUNDS,
        },
    }
    OUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for row in (*rows, *results["ensembles"]):
        print({name: round(value, 7) if isinstance(value, float) else value for name, value in row.items()})


if __name__ == "__main__":
    main()
