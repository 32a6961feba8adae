"""What an attack achieves: clean accuracy, success rate in both countings, and what no attack at all would achieve.

The success rate of the published code counts images of the target class, which a clean network classifies as such: a
network without any backdoor scores one over the number of classes. Here the strict rate, over images of other classes,
is the default, the published one is reported beside it, and both have a **control**: the same trigger on networks
trained on the clean set. The valid trigger is the one that an 8-bit image can hold.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.attacks.poisoning import Mapping, Poisoner
from tenfold.systems.condensation_audit.attacks.triggers import Trigger
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.training.ensembles import Ensemble

Interval = tuple[float, float]

ADVERSARIAL_CONTROL = 0.3
"""Above this control success the trigger is an adversarial patch: clean networks obey it, too."""


def attack_success(
    predictions: Tensor,
    labels: Tensor,
    target: int,
    *,
    paper: bool = False,
    mapping: Mapping = "all-to-one",
    classes: int | None = None,
) -> Tensor:
    """Share of triggered images that get the attacker's class.

    Args:
        predictions: ``(..., n)`` predicted classes of triggered images.
        labels: ``(n,)`` true classes.
        target: the attacker's class.
        paper: count all images, as the published code; else only those of other classes.
        mapping: for ``all-to-all`` the attacker's class of ``y`` is ``y + 1``, after the last class 0.
        classes: number of classes; those that occur where not given.

    Returns:
        ``(...)`` float64.

    Raises:
        UserError: every image is of the target class: there is nothing to count.
    """
    count = classes or max(int(labels.max()), target) + 1
    wanted = Poisoner(1.0, target, mapping).labels(labels, count)
    counted = torch.ones_like(labels, dtype=torch.bool) if paper else labels != wanted
    if not bool(counted.any()):
        raise UserError(f"all images are of the target class {target}: a success rate needs images of other classes")
    return (predictions == wanted)[..., counted].double().mean(-1)


@dataclass(frozen=True)
class AttackOutcome:
    """One attack on one condensed set, measured with several networks; every rate has one value per network.

    Attributes:
        accuracy: clean test accuracy (CTA).
        asr: strict success rate, with the trigger as the attack left it.
        asr_paper: the published counting.
        asr_valid: strict, trigger clamped to the pixel range and 8 bits.
        control: strict, same trigger, networks of the clean set.
        control_paper: published counting, same trigger, networks of the clean set.
        control_valid: strict, valid trigger, networks of the clean set.
        control_accuracy: clean test accuracy of the networks of the clean set.
        excess: how far the trigger leaves the pixel range (at most 1: it does not).
        by_image: the rates of ``accuracy``, ``control_accuracy``, ``asr``, ``asr_valid`` and ``control_valid`` image by
            image, mean over networks: of all images, for success of those that count strictly.
    """

    accuracy: list[float]
    asr: list[float]
    asr_paper: list[float]
    asr_valid: list[float]
    control: list[float]
    control_paper: list[float]
    control_valid: list[float]
    control_accuracy: list[float]
    excess: float
    by_image: dict[str, list[float]] = field(default_factory=dict)

    @property
    def effect(self) -> float:
        """The backdoor's effect: mean valid success above that of clean networks."""
        return float(np.mean(self.asr_valid) - np.mean(self.control_valid))

    @property
    def kind(self) -> str:
        """``adversarial patch`` where clean networks obey the valid trigger, ``backdoor``, or ``no effect``."""
        return name_effect(float(np.mean(self.asr_valid)), float(np.mean(self.control_valid)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, with the derived values."""
        return asdict(self) | {"effect": self.effect, "kind": self.kind}


def name_effect(success: float, control: float, smallest: float = 0.2) -> str:
    """The word for what a trigger does: ``backdoor`` is refused where clean networks obey it as well.

    Args:
        success: share of images that it turns.
        control: share that it turns on clean networks.
        smallest: success above the control that counts.
    """
    if control > ADVERSARIAL_CONTROL:
        return "adversarial patch"
    return "backdoor" if success - control >= smallest else "no effect"


def measure_attack(
    ensemble: Ensemble,
    control: Ensemble,
    pixels: Tensor,
    labels: Tensor,
    trigger: Trigger,
    target: int,
    preprocessing: Preprocessing,
    mapping: Mapping = "all-to-one",
) -> AttackOutcome:
    """Measure an attack on clean test images.

    Args:
        ensemble: networks trained on the poisoned set.
        control: networks trained alike on the set that was condensed without the attack.
        pixels: ``(n, channels, height, width)`` uint8 test images.
        labels: ``(n,)`` their classes.
        trigger: the attack's.
        target: the attacker's class.
        preprocessing: of the set.
        mapping: see `attack_success`.
    """
    clean = preprocessing.normalize(pixels)
    as_left = preprocessing.normalize(trigger.stamp(pixels))
    valid = preprocessing.normalize(trigger.stamp_valid(pixels))

    seen = {
        (name, form): networks.logits(images)
        for name, networks in (("poisoned", ensemble), ("clean", control))
        for form, images in (("clean", clean), ("left", as_left), ("valid", valid))
    }
    predicted = {key: logits.argmax(2).cpu() for key, logits in seen.items()}
    options: dict[str, Any] = {"mapping": mapping, "classes": next(iter(seen.values())).shape[2]}
    wanted = Poisoner(1.0, target, mapping).labels(labels, options["classes"])

    def rates(name: str, form: str, paper: bool = False) -> list[float]:
        return attack_success(predicted[name, form], labels, target, paper=paper, **options).tolist()

    def by_image(name: str, form: str) -> list[float]:
        if form == "clean":
            hits = predicted[name, form] == labels
        else:
            hits = (predicted[name, form] == wanted)[:, labels != wanted]
        return [round(value, 4) for value in hits.double().mean(0).tolist()]

    return AttackOutcome(
        accuracy=(predicted["poisoned", "clean"] == labels).double().mean(1).tolist(),
        asr=rates("poisoned", "left"),
        asr_paper=rates("poisoned", "left", paper=True),
        asr_valid=rates("poisoned", "valid"),
        control=rates("clean", "left"),
        control_paper=rates("clean", "left", paper=True),
        control_valid=rates("clean", "valid"),
        control_accuracy=(predicted["clean", "clean"] == labels).double().mean(1).tolist(),
        excess=trigger.excess,
        by_image={
            "accuracy": by_image("poisoned", "clean"),
            "control_accuracy": by_image("clean", "clean"),
            "asr": by_image("poisoned", "left"),
            "asr_valid": by_image("poisoned", "valid"),
            "control_valid": by_image("clean", "valid"),
        },
    )


def mcnemar(before: Tensor, after: Tensor) -> float:
    """Exact two-sided p-value of McNemar's test on paired yes-no answers ``(n,)``; 1 where none changed."""
    from scipy.stats import binomtest

    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def binomial_interval(hits: int, count: int, confidence: float = 0.95) -> Interval:
    """Exact (Clopper and Pearson's) interval of a share."""
    from scipy.stats import binomtest

    if count == 0:
        return 0.0, 1.0
    found = binomtest(hits, count).proportion_ci(confidence, "exact")
    return float(found.low), float(found.high)
