"""How good a condensed set is: networks trained on it from scratch, across architectures, beside its yardsticks.

The recipe changes the ranking of methods more than the methods do: every number here comes with the recipe, and is to
be compared with a random selection under the same one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tenfold.errors import UserError
from tenfold.models.checkpoints import load_strictly
from tenfold.seeds import derived_seed
from tenfold.systems.condensation_audit.networks.factories import Factory, factory_of, seeded_network
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet
from tenfold.systems.condensation_audit.training.ensembles import Ensemble, Form, train_together


def factory_for(found: CondensedSet, network: str | Factory | None = None, **arguments: Any) -> Factory:
    """What makes the network of a set's recipe, or another one for it.

    Raises:
        UserError: the recipe names a network of the maker's own, which must be given.
    """
    from_file = None
    if network is None:
        from_file = "the set's recipe"
        network, arguments = found.recipe.network, dict(found.recipe.arguments)
        if network == "factory" and "factory" not in arguments:
            raise UserError("the set was made with a network of its maker's own; name one that trains on it")
    shape, classes = found.preprocessing.image_shape, len(found.classes)
    return factory_of(network, image_shape=shape, num_classes=classes, from_file=from_file, **arguments)


def train_on(
    found: CondensedSet,
    *,
    seeds: Sequence[int],
    factory: Factory | None = None,
    device: torch.device | str = "cpu",
    form: Form = "auto",
) -> Ensemble:
    """Train networks on a set, as the set says: by its recipe, or in its own steps and rates (dataset distillation).

    Args:
        found: the set.
        seeds: one per network.
        factory: makes the network; the recipe's where ``None``.
        device: where to train.
        form: see `train_together`.

    Raises:
        UserError: the network does not fit the set.
    """
    factory = factory or factory_for(found)
    _check_fit(found, factory)
    if found.steps is None or found.learning_rates is None:
        return train_together(factory, found.images, found.labels, found.recipe, seeds=seeds, device=device, form=form)
    return Ensemble([_train_in_steps(found, factory, derived_seed(seed, 1), device) for seed in seeds])


def _check_fit(found: CondensedSet, factory: Factory) -> None:
    network = seeded_network(factory, 0).eval()
    try:
        with torch.no_grad():
            logits = network(found.images[:1])
    except RuntimeError as error:
        raise UserError(
            f"the network does not take the set's images {tuple(found.images.shape[1:])}: {str(error).splitlines()[0]}"
        ) from error
    if logits.ndim != 2 or logits.shape[1] != len(found.classes):
        raise UserError(
            f"the network gives {tuple(logits.shape)} for an image; the set has {len(found.classes)} classes"
        )


def _train_in_steps(found: CondensedSet, factory: Factory, seed: int, device: torch.device | str) -> Any:
    """Plain gradient steps in the set's order, with its rates, from its own initialisation if it has one."""
    network = seeded_network(factory, seed, device).train()
    if found.initial is not None:
        load_strictly(network, found.initial, "the initial weights of the set")
    assert found.steps is not None
    assert found.learning_rates is not None
    rows = [(found.steps == step).nonzero().flatten() for step in range(int(found.steps.max()) + 1)]
    images, labels = found.images.to(device), found.labels.to(device)
    parameters = list(network.parameters())
    for number, rate in enumerate(found.learning_rates.tolist()):
        chosen = rows[number % len(rows)]
        loss = functional.cross_entropy(network(images[chosen]), labels[chosen])
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(rate * gradient)
    return network


def evaluate_set(
    found: CondensedSet,
    images: Tensor,
    labels: Tensor,
    *,
    networks: Mapping[str, Mapping[str, Any]] | None = None,
    seeds: Sequence[int] = range(5),
    device: torch.device | str = "cpu",
) -> dict[str, list[float]]:
    """Test accuracy of networks trained on a set.

    Args:
        found: the set.
        images: ``(n, channels, height, width)`` normalized test images.
        labels: ``(n,)`` their classes.
        networks: arguments by name of the networks to train; the recipe's own where ``None``.
        seeds: one network each.
        device: where to train.

    Returns:
        For each network its accuracies in [0, 1], one per seed.
    """
    chosen = {found.recipe.network: None} if networks is None else {name: dict(networks[name]) for name in networks}
    measured = {}
    for name, arguments in chosen.items():
        factory = factory_for(found) if arguments is None else factory_for(found, name, **arguments)
        ensemble = train_on(found, seeds=seeds, factory=factory, device=device)
        measured[name] = ensemble.accuracy(images.to(device), labels).tolist()
    return measured


def ranking_score(accuracy: float, random: float, full: float, weight: float = 0.5) -> float:
    """Label-robust score of DD-Ranking: what the set gains over random images, and how far it is from all data.

    Args:
        accuracy: with the set, in [0, 1].
        random: with as many random images, same recipe.
        full: with all data.
        weight: of the gain (IOR) against the gap (HLR).

    Returns:
        ``(e^a - e^-1) / (e - e^-1)`` in [0, 1], with ``a = weight IOR - (1 - weight) HLR``.
    """
    a = weight * (accuracy - random) - (1 - weight) * (full - accuracy)
    return (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))
