"""After a finding: which images carry it, and what removes it.

Condensed sets are small enough to ask directly: train again without each image of the suspect class, and see how far
the patch's success falls. The repairs are measured, not promised: clean accuracy and success, before and after.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from tenfold.data.images import LabelledImages
from tenfold.seeds import derived_seed
from tenfold.systems.condensation_audit.attacks.success import attack_success
from tenfold.systems.condensation_audit.attacks.triggers import Trigger
from tenfold.systems.condensation_audit.defences.fine_pruning import fine_prune, fine_tune
from tenfold.systems.condensation_audit.networks.factories import Factory
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet
from tenfold.systems.condensation_audit.training.ensembles import Ensemble, train_together
from tenfold.systems.condensation_audit.training.quality import train_on

MOST_IMAGES = 50
"""Images of a class up to which each is left out once."""


@dataclass(frozen=True)
class Attribution:
    """What each image of the suspect class contributes.

    Attributes:
        images: indices in the set.
        falls: for each, by how much the success falls without it.
        blamed: those that are proposed to be dropped: they contribute most.
    """

    images: tuple[int, ...]
    falls: tuple[float, ...]
    blamed: tuple[int, ...]


@dataclass(frozen=True)
class RepairOutcome:
    """A repair, measured.

    Attributes:
        name: what was done.
        accuracy: clean accuracy afterwards.
        success: of the patch afterwards.
    """

    name: str
    accuracy: float
    success: float


def attribute(
    found: CondensedSet,
    factory: Factory,
    trigger: Trigger,
    target: int,
    judge: LabelledImages,
    *,
    networks: int = 2,
    seed: int = 0,
    device: str = "cpu",
) -> Attribution | None:
    """Leave each image of the suspect class out once; ``None`` where there are too many, or only one.

    Args:
        found: the set.
        factory: makes the network.
        trigger: the confirmed patch.
        target: the suspect class.
        judge: images to measure on.
        networks: trained for each image, from the same seeds.
        seed: of the networks.
        device: where to train.
    """
    own = (found.hard_labels == target).nonzero().flatten().tolist()
    if not 2 <= len(own) <= MOST_IMAGES or found.steps is not None:
        return None
    everything = torch.arange(len(found))
    keeps = [everything] + [everything[everything != index] for index in own]
    seeds = [derived_seed(seed, 41, k) for k in range(networks)]
    whole = _mean_success(train_on(found, seeds=seeds, factory=factory, device=device), found, trigger, target, judge)
    ensembles = train_together(
        factory,
        torch.stack([found.images[rows] for rows in keeps[1:] for _ in seeds]),
        torch.stack([found.labels[rows] for rows in keeps[1:] for _ in seeds]),
        found.recipe,
        seeds=[s for _ in own for s in seeds],
        device=device,
    )
    falls = []
    for number in range(len(own)):
        part = Ensemble(ensembles.networks[number * networks : (number + 1) * networks])
        falls.append(whole - _mean_success(part, found, trigger, target, judge))
    largest = max(falls)
    blamed = tuple(index for index, fall in zip(own, falls, strict=True) if fall >= max(0.05, largest / 2))
    return Attribution(tuple(own), tuple(falls), blamed)


def propose_repairs(
    found: CondensedSet,
    factory: Factory,
    ensemble: Ensemble,
    trigger: Trigger,
    target: int,
    search: LabelledImages,
    judge: LabelledImages,
    attribution: Attribution | None,
    *,
    seed: int = 0,
    device: str = "cpu",
) -> list[RepairOutcome]:
    """Measure what each repair does.

    Args:
        found: the set.
        factory: makes the network.
        ensemble: networks of the set; two of them are repaired.
        trigger: the confirmed patch.
        target: the suspect class.
        search: clean images that repairs may use.
        judge: other clean images, to measure on.
        attribution: which images to drop, if known.
        seed: of networks that are trained anew.
        device: where to train.
    """
    pre = found.preprocessing
    few = Ensemble(ensemble.networks[:2])
    clean, labels = pre.normalize(search.images).to(device), search.labels.to(device)
    seeds = [derived_seed(seed, 42, k) for k in range(len(few))]

    def trained(changed: CondensedSet) -> Ensemble:
        return train_on(changed, seeds=seeds, factory=factory, device=device)

    def clamped() -> Ensemble:
        return trained(replace(found, images=pre.normalize(found.pixels.clamp(0, 1))))

    def tuned() -> Ensemble:
        return Ensemble([fine_tune(network, clean, labels, seed=seed) for network in few.networks])

    def pruned() -> Ensemble:
        return Ensemble([fine_prune(network, clean, labels, seed=seed).network for network in few.networks])

    repairs: list[tuple[str, Callable[[], Ensemble]]] = [("none", lambda: few), ("clamp the set's pixels", clamped)]
    if attribution is not None and attribution.blamed:
        kept = torch.tensor([k for k in range(len(found)) if k not in attribution.blamed])
        left = int((found.hard_labels[kept] == target).sum())
        if left:
            name = f"drop {len(attribution.blamed)} of the class's images"
            repairs.append((name, lambda: trained(found.subset(kept))))
    repairs += [("fine-tune one epoch on clean images", tuned), ("fine-prune, then fine-tune", pruned)]
    outcomes = []
    for name, make in repairs:
        networks = make()
        images = pre.normalize(judge.images).to(device)
        accuracy = float(networks.accuracy(images, judge.labels).mean())
        outcomes.append(RepairOutcome(name, accuracy, _mean_success(networks, found, trigger, target, judge)))
    return outcomes


def _mean_success(
    ensemble: Ensemble, found: CondensedSet, trigger: Trigger, target: int, judge: LabelledImages
) -> float:
    device = next(ensemble.networks[0].parameters(), torch.zeros(())).device
    images = found.preprocessing.normalize(trigger.stamp_valid(judge.images).to(device))
    return float(attack_success(ensemble.predict(images).cpu(), judge.labels, target).mean())
