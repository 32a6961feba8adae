"""Networks trained from scratch on one small set: several at once.

Condensed sets are so small that a network takes seconds; evaluation, audit and attribution train many. On a GPU they
are trained in one pass (parameters stacked, `torch.vmap`), because launches, not arithmetic, take the time. On
CPUs grouped convolutions are slower than a loop (measured: ``benchmarks/condensation_steps.py``), so a loop it is. Both
forms draw the same weights, orders and augmentations, and give the same networks up to rounding.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional

from tenfold.errors import RunStopped, UserError
from tenfold.files import write_atomically
from tenfold.models.checkpoints import load_strictly
from tenfold.seeds import derived_seed
from tenfold.systems.condensation_audit.networks.factories import Factory, penultimate, seeded_network
from tenfold.systems.condensation_audit.sets.condensed_set import TrainingRecipe
from tenfold.systems.condensation_audit.training.siamese_augmentation import apply_augmentation, draw_augmentation

Form = Literal["auto", "vmap", "loop"]


class Ensemble:
    """Trained networks of one architecture, in evaluation mode.

    Args:
        networks: the members.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        if not networks:
            raise ValueError("an ensemble needs a network")
        self.networks = [network.eval() for network in networks]

    def __len__(self) -> int:
        return len(self.networks)

    def member(self, position: int) -> nn.Module:
        """A copy of one network, in evaluation mode."""
        return copy.deepcopy(self.networks[position])

    @torch.inference_mode()
    def logits(self, images: Tensor, batch_size: int = 1024) -> Tensor:
        """``(members, n, classes)`` logits of normalized images ``(n, channels, height, width)``."""
        return self._each(lambda network, part: network(part), images, batch_size)

    def predict(self, images: Tensor, batch_size: int = 1024) -> Tensor:
        """``(members, n)`` predicted classes."""
        return self.logits(images, batch_size).argmax(2)

    @torch.inference_mode()
    def features(self, images: Tensor, batch_size: int = 1024) -> Tensor:
        """``(members, n, d)`` features before the classifier."""
        return self._each(penultimate, images, batch_size)

    def accuracy(self, images: Tensor, labels: Tensor) -> Tensor:
        """``(members,)`` share of right predictions."""
        return (self.predict(images) == labels.to(images.device)).double().mean(1)

    def _each(self, call: Callable[[nn.Module, Tensor], Tensor], images: Tensor, batch_size: int) -> Tensor:
        parts = images.split(batch_size)
        return torch.stack([torch.cat([call(network, part) for part in parts]) for network in self.networks])


def train_together(
    factory: Factory,
    images: Tensor,
    labels: Tensor,
    recipe: TrainingRecipe,
    *,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    form: Form = "auto",
) -> Ensemble:
    """Train one network per seed from scratch, with SGD as the recipe says.

    Args:
        factory: makes a network; the recipe's ``network`` is not looked at.
        images: ``(n, channels, height, width)`` normalized, for all; or ``(seeds, n, ...)``, one set for each.
        labels: ``(n,)`` int64 or ``(n, classes)`` probabilities, for all; or with a first dimension of seeds, if the
            images have one.
        recipe: epochs, rates, augmentation.
        seeds: of weights, order and augmentation, one per network.
        device: where to train.
        form: ``vmap``, ``loop``, or what is faster on the device.

    Raises:
        UserError: labels do not fit.
        RunStopped: a loss is no longer finite.
    """
    own = images.ndim == 5
    if own and len(images) != len(seeds):
        raise UserError(f"{len(seeds)} networks need as many sets; got {len(images)}")
    if (labels.shape[:2] != images.shape[:2]) if own else (len(labels) != len(images)):
        raise UserError(f"labels {tuple(labels.shape)} do not fit images {tuple(images.shape)}")
    images, labels = images.to(device), labels.to(device)
    starts = [seeded_network(factory, derived_seed(seed, 1), device).train() for seed in seeds]
    plans = [_Plan(images.shape[1] if own else len(images), recipe, derived_seed(seed, 2)) for seed in seeds]
    sets = [(images[k], labels[k]) if own else (images, labels) for k in range(len(seeds))]
    if form == "auto":
        form = "vmap" if torch.device(device).type == "cuda" and len(seeds) > 1 else "loop"
    if form == "loop":
        for network, plan, (own_images, own_labels) in zip(starts, plans, sets, strict=True):
            _train_one(network, plan, own_images, own_labels, recipe)
        return Ensemble(starts)
    return Ensemble(_train_stacked(starts, plans, sets, recipe))


@dataclass
class _Plan:
    """The steps of one network's training: which images, which augmentation, which learning rate."""

    images: int
    recipe: TrainingRecipe
    seed: int

    def steps(self) -> Iterator[tuple[int, Tensor | slice, torch.Generator]]:
        """``(epoch, indices, generator)``; the whole set, where it fits a batch, is not shuffled."""
        generator = torch.Generator().manual_seed(self.seed)
        for epoch in range(self.recipe.epochs):
            if self.images <= self.recipe.batch_size:
                yield epoch, slice(None), generator
            else:
                for part in torch.randperm(self.images, generator=generator).split(self.recipe.batch_size):
                    yield epoch, part, generator

    def batch(
        self, images: Tensor, labels: Tensor, indices: Tensor | slice, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        chosen = indices if isinstance(indices, slice) else indices.to(images.device)
        part = images[chosen]
        if self.recipe.augmentation:
            part = apply_augmentation(part, draw_augmentation(self.recipe.augmentation, generator, len(part)))
        return part, labels[chosen]


def _optimizer(parameters: Sequence[Tensor], recipe: TrainingRecipe, divisions: int) -> torch.optim.SGD:
    """A fresh optimizer at every division of the rate: the published loops lose their momentum there, too."""
    return torch.optim.SGD(
        parameters,
        lr=recipe.learning_rate * 0.1**divisions,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        foreach=True,
    )


def _divisions(epoch: int, recipe: TrainingRecipe) -> int:
    return sum(epoch > int(fraction * recipe.epochs) for fraction in recipe.decay_at)


def _train_one(network: nn.Module, plan: _Plan, images: Tensor, labels: Tensor, recipe: TrainingRecipe) -> None:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    divisions, optimizer = 0, _optimizer(parameters, recipe, 0)
    loss = images.new_zeros(())
    for epoch, indices, generator in plan.steps():
        if _divisions(epoch, recipe) != divisions:
            divisions = _divisions(epoch, recipe)
            optimizer = _optimizer(parameters, recipe, divisions)
        part, targets = plan.batch(images, labels, indices, generator)
        loss = functional.cross_entropy(network(part), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    _check(loss)


def _train_stacked(
    networks: Sequence[nn.Module],
    plans: Sequence[_Plan],
    sets: Sequence[tuple[Tensor, Tensor]],
    recipe: TrainingRecipe,
) -> list[nn.Module]:
    parameters, buffers = stack_module_state(list(networks))
    base = networks[0]
    leaves = [parameter for parameter in parameters.values() if parameter.requires_grad]
    divisions, optimizer = 0, _optimizer(leaves, recipe, 0)

    def loss_of(own: dict[str, Tensor], held: dict[str, Tensor], part: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(base, {**own, **held}, (part,)), targets)

    losses = torch.zeros(len(networks))
    for steps in zip(*(plan.steps() for plan in plans), strict=True):
        epoch = steps[0][0]
        if _divisions(epoch, recipe) != divisions:
            divisions = _divisions(epoch, recipe)
            optimizer = _optimizer(leaves, recipe, divisions)
        batches = [
            plan.batch(*own, indices, generator)
            for plan, own, (_, indices, generator) in zip(plans, sets, steps, strict=True)
        ]
        parts, targets = (torch.stack(rows) for rows in zip(*batches, strict=True))
        losses = torch.vmap(loss_of, randomness="different")(parameters, buffers, parts, targets)
        optimizer.zero_grad()
        losses.sum().backward()  # each network's gradient is its own: no other loss depends on its weights
        optimizer.step()
    _check(losses)
    with torch.no_grad():
        for position, network in enumerate(networks):
            for name, parameter in network.named_parameters():
                parameter.copy_(parameters[name][position])
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name][position])
    return list(networks)


def _check(losses: Tensor) -> None:
    if not bool(losses.isfinite().all()):
        raise RunStopped("the loss of a network trained on the set is no longer finite; lower recipe.learning_rate")


def save_ensemble(ensemble: Ensemble, path: str | Path) -> None:
    """Write the weights of all members as one safetensors file."""
    from safetensors.torch import save

    tensors = {
        f"{position}.{name}": value.detach().cpu().contiguous()
        for position, network in enumerate(ensemble.networks)
        for name, value in network.state_dict().items()
    }
    write_atomically(path, save(tensors))


def load_ensemble(factory: Factory, path: str | Path, device: torch.device | str = "cpu") -> Ensemble:
    """Read what `save_ensemble` wrote.

    Args:
        factory: makes a member.
        path: the file.
        device: where the members go.

    Raises:
        UserError: the weights are of another network.
    """
    from safetensors.torch import load_file

    members: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        position, _, name = key.partition(".")
        members.setdefault(int(position), {})[name] = value
    networks = []
    for number in sorted(members):
        network = seeded_network(factory, 0, device)
        load_strictly(network, members[number], path)
        networks.append(network)
    return Ensemble(networks)
