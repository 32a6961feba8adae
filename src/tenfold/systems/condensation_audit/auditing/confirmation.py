"""Confirm what a scan suspects: refine the patch, measure it on images that were not searched with, beside a control.

The control are networks trained on the same set in which the suspect class is replaced by real clean images. They obey
an adversarial patch, too; a backdoor they do not have. They are attacked in the same way: with the patch that was
refined on the suspects, and with one refined on themselves; the stronger counts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tenfold.data.images import LabelledImages
from tenfold.systems.condensation_audit.attacks.success import (
    Interval,
    attack_success,
    binomial_interval,
    mcnemar,
    name_effect,
)
from tenfold.systems.condensation_audit.attacks.triggers import Trigger
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.defences.patch_scan import Cell, quick_copy
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet
from tenfold.systems.condensation_audit.training.ensembles import Ensemble


@dataclass(frozen=True)
class Confirmation:
    """What a suspect patch does to images it was not searched with.

    Attributes:
        target: the suspect class.
        cell: where the scan found it.
        anomaly: its AI in the scan.
        trigger: the refined patch, valid pixels.
        success: mean share of images of other classes that it turns.
        interval: exact 95 % binomial interval of it, with the number of images.
        plain: the same of the scan's plain patch.
        control: share that it, or a patch refined on them, turns on control networks; ``None`` without a control.
        mcnemar: for each network the p-value that as many images turn to the class without the patch as with it.
        images: that were counted.
    """

    target: int
    cell: Cell
    anomaly: float
    trigger: Trigger
    success: float
    interval: Interval
    plain: float
    control: float | None
    mcnemar: tuple[float, ...]
    images: int

    @property
    def effect(self) -> float | None:
        """Success above the control."""
        return None if self.control is None else self.success - self.control

    @property
    def kind(self) -> str:
        """``backdoor``, ``adversarial patch``, ``no effect``, or ``not controlled``."""
        return "not controlled" if self.control is None else name_effect(self.success, self.control)

    @property
    def holds(self) -> bool:
        """Whether this is a backdoor: an effect of at least .2, whose lower bound is above the control."""
        return self.control is not None and self.kind == "backdoor" and self.interval[0] > self.control


def refine_patch(
    ensemble: Ensemble,
    start: Trigger,
    target: int,
    pixels: Tensor,
    labels: Tensor,
    preprocessing: Preprocessing,
    *,
    steps: int = 100,
    learning_rate: float = 0.05,
    batch_size: int = 64,
    seed: int = 0,
) -> Trigger:
    """Improve a patch's colours within [0, 1] by gradient, for all networks together; place and size stay.

    Args:
        ensemble: the networks.
        start: where to begin.
        target: class to drive.
        pixels: ``(n, channels, height, width)`` uint8 images to search with.
        labels: ``(n,)`` their classes; images of the target are left out.
        preprocessing: what the networks expect.
        steps: of Adam.
        learning_rate: in pixel units.
        batch_size: images of a step.
        seed: of their order.

    Returns:
        The patch, rounded to 8 bits.
    """
    networks = [quick_copy(ensemble.member(k)) for k in range(len(ensemble))]
    device = next(networks[0].parameters(), torch.zeros(())).device
    images = pixels[labels != target].to(device).float() / 255
    mask = start.mask.to(device)
    inner = start.pattern.to(device)[:, mask].clamp(0.02, 0.98).requires_grad_()
    optimizer = torch.optim.Adam([inner], lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    black = torch.zeros_like(start.pattern, device=device)

    def pattern() -> Tensor:
        return black.masked_scatter(mask.expand_as(black), inner)

    for step in range(steps):
        rows = torch.randperm(len(images), generator=generator)[:batch_size].to(device)
        stamped = preprocessing.normalize(torch.where(mask, pattern(), images[rows]))
        network = networks[step % len(networks)]  # one network a step: the patch must serve them all
        logits = network(stamped)
        loss = functional.cross_entropy(logits, torch.full((len(rows),), target, device=device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        inner.data.clamp_(0, 1)
    return Trigger(start.mask, pattern().detach().cpu()).valid()


def control_set(found: CondensedSet, clean: LabelledImages, target: int) -> CondensedSet | None:
    """The set with the target's images replaced by real clean ones; ``None`` where there are none or labels are soft.

    Args:
        found: the set.
        clean: images that success is not measured on.
        target: the suspect class.
    """
    if found.labels.ndim != 1 or found.steps is not None:
        return None
    own = (found.labels == target).nonzero().flatten()
    real = (clean.labels == target).nonzero().flatten()
    if len(real) == 0 or len(own) == 0:
        return None
    images = found.images.clone()
    chosen = real[torch.arange(len(own)) % len(real)]
    images[own] = found.preprocessing.normalize(clean.images[chosen]).to(images)
    return CondensedSet(
        images,
        found.labels,
        found.classes,
        found.preprocessing,
        found.recipe,
        found.method,
        settings=found.settings,
        learning_rates=found.learning_rates,
    )


def confirm(
    ensemble: Ensemble,
    control: Ensemble | None,
    cell: Cell,
    anomaly: float,
    search: LabelledImages,
    judge: LabelledImages,
    preprocessing: Preprocessing,
    *,
    steps: int = 100,
    seed: int = 0,
) -> Confirmation:
    """Refine a suspect patch, and measure it on images of its own.

    Args:
        ensemble: networks of the set.
        control: networks of `control_set`, if there are any.
        cell: what the scan found.
        anomaly: its AI.
        search: images to refine with.
        judge: other images, to measure on.
        preprocessing: what the networks expect.
        steps: of the refinement.
        seed: of its order.
    """
    target, shape = cell.target, preprocessing.image_shape
    plain = cell.trigger(shape)
    options = {"steps": steps, "seed": seed}
    refined = refine_patch(ensemble, plain, target, search.images, search.labels, preprocessing, **options)
    success = _success(ensemble, refined, target, judge, preprocessing)
    plain_success = _success(ensemble, plain, target, judge, preprocessing)
    if plain_success.mean() > success.mean():  # the refinement may only help
        refined, success = plain.valid(), plain_success
    controlled = None
    if control is not None:
        own = refine_patch(control, plain, target, search.images, search.labels, preprocessing, **options)
        rates = [_success(control, patch, target, judge, preprocessing).mean() for patch in (refined, own)]
        controlled = float(max(rates))
    count = int((judge.labels != target).sum())
    mean = float(success.mean())
    return Confirmation(
        target=target,
        cell=cell,
        anomaly=anomaly,
        trigger=refined,
        success=mean,
        interval=binomial_interval(round(mean * count), count),
        plain=float(plain_success.mean()),
        control=controlled,
        mcnemar=_mcnemar(ensemble, refined, target, judge, preprocessing),
        images=count,
    )


def _success(ensemble: Ensemble, trigger: Trigger, target: int, judge: LabelledImages, pre: Preprocessing) -> Tensor:
    device = next(ensemble.networks[0].parameters(), torch.zeros(())).device
    images = pre.normalize(trigger.stamp_valid(judge.images).to(device))
    return attack_success(ensemble.predict(images).cpu(), judge.labels, target)


def _mcnemar(
    ensemble: Ensemble, trigger: Trigger, target: int, judge: LabelledImages, pre: Preprocessing
) -> tuple[float, ...]:
    device = next(ensemble.networks[0].parameters(), torch.zeros(())).device
    others = judge.labels != target
    images = judge.images[others].to(device)
    before = ensemble.predict(pre.normalize(images)) == target
    after = ensemble.predict(pre.normalize(trigger.stamp_valid(images))) == target
    return tuple(mcnemar(a, b) for a, b in zip(before, after, strict=True))
