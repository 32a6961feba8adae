"""The audit: does a condensed set, or a model that someone else trained, carry a backdoor?

    0  what the file says: mark, range of the pixels
    1  train K networks on the set; their clean accuracy against the manifest's
    2  scan them with patches of all places, sizes and colours             -> suspects
    3  refine the suspect patches, measure them on other images, beside a control
    4  the published defences, for comparison
    5  which images of the set carry it
    6  what would repair it

The clean images are split once: what searches (2, 3, repairs) never judges. A verdict is about local patches; what was
not tested is part of the report.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.data.images import LabelledImages
from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.seeds import derived_seed
from tenfold.systems.condensation_audit.attacks.success import AttackOutcome, measure_attack
from tenfold.systems.condensation_audit.attacks.triggers import Trigger
from tenfold.systems.condensation_audit.auditing.confirmation import Confirmation, confirm, control_set
from tenfold.systems.condensation_audit.auditing.page import evidence_pictures
from tenfold.systems.condensation_audit.auditing.repair import attribute, propose_repairs
from tenfold.systems.condensation_audit.auditing.report import (
    AuditReport,
    Finding,
    decide,
)
from tenfold.systems.condensation_audit.data.partition import halves, spread_rows
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.defences.calibration import Calibration, calibration_for
from tenfold.systems.condensation_audit.defences.detection import BLENDED, SCANNED, Detection, Suspect, run_defences
from tenfold.systems.condensation_audit.defences.patch_scan import PatchScan, scan_patches
from tenfold.systems.condensation_audit.networks.factories import Factory
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet, TrainingRecipe
from tenfold.systems.condensation_audit.training.ensembles import Ensemble, train_together
from tenfold.systems.condensation_audit.training.quality import factory_for, train_on

FEW = 20
"""Clean images of each class below which evidence is called weak."""

_UNREALISABLE = (-8.0, 8.0)

Progress = Callable[[str], None]


def audit(
    found: CondensedSet,
    clean: LabelledImages | None,
    *,
    factory: Factory | None = None,
    networks: int = 3,
    calibration: Calibration | None = None,
    suspected: tuple[Trigger, int] | None = None,
    raw: tuple[Tensor, Tensor] | None = None,
    published: bool = True,
    repairs: bool = True,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> AuditReport:
    """Audit a condensed set.

    Args:
        found: the set.
        clean: held-out clean images, at least 20 of each class; without any the scan paints on the set itself, and the
            evidence is weak.
        factory: makes the network; the recipe's where not given.
        networks: trained on the set.
        calibration: thresholds; what is shipped where not given. If they are of another kind of sets than this one, the
            verdict is ``not calibrated for this kind``: see `calibrate` and `plan_like`.
        suspected: a trigger and its target, to be measured as well.
        raw: normalized raw training images and labels, if at hand: their features go through the data-level defences.
        published: run the published defences for comparison.
        repairs: attribute a finding and measure repairs.
        seed: of everything random.
        device: where to compute.
        progress: told each step.

    Raises:
        UserError: the images, the network and the set do not fit.
    """
    started, tell = time.perf_counter(), progress or (lambda _: None)
    shape, pre = found.preprocessing.image_shape, found.preprocessing
    search, judge, notes, weak = _clean_halves(found, clean)
    own_networks = factory is not None and calibration is None
    factory = factory or factory_for(found)
    scanned = min(SCANNED, len(search))
    if calibration is None:
        calibration = calibration_for(found, networks, scanned)
    uncalibrated = calibration.misfit(found, networks, scanned)
    if own_networks:
        uncalibrated = "the networks are not those of the set's recipe"
    if uncalibrated:
        calibration = Calibration()
    notes += _file_notes(found)

    tell(f"training {networks} networks on the set")
    seeds = [derived_seed(seed, 31, k) for k in range(networks)]
    ensemble = train_on(found, seeds=seeds, factory=factory, device=device)
    accuracies = ensemble.accuracy(pre.normalize(judge.images).to(device), judge.labels).tolist()
    notes += _accuracy_notes(found, accuracies, len(judge))

    tell("scanning for patches")
    scan, unrealisable = _scans(ensemble, search, pre)
    findings: list[Finding] = []
    threshold = calibration.threshold
    by_class = calibration.evidence_of(scan)
    for cell, anomaly in scan.suspects(2, by_class):
        evidence = float(by_class[:, cell.target].max())
        if evidence < 0.6 * threshold:
            continue
        tell(f"confirming class {found.classes[cell.target]!r}")
        confirmation = _confirm(found, factory, ensemble, cell, anomaly, search, judge, networks, seed, device)
        findings.append(Finding(evidence, evidence > threshold, confirmation))

    outcome = _measure_suspected(found, factory, ensemble, suspected, search, judge, networks, seed, device)
    report = AuditReport(
        subject="set",
        classes=found.classes,
        image_shape=shape,
        verdict="not assessable",
        reason="",
        threshold=threshold,
        evidence=float(by_class.max()),
        calibration=calibration.describe(),
        uncalibrated=uncalibrated,
        power=" ".join(filter(None, [calibration.power_sentence(), calibration.verdict_sentence()])),
        accuracies=accuracies,
        clean_images=0 if clean is None else len(clean),
        scan=scan,
        unrealisable=unrealisable,
        findings=findings,
        suspected=outcome,
        weak=weak,
        notes=notes,
        networks=networks,
        parameters=sum(p.numel() for p in ensemble.networks[0].parameters()),
        seed=seed,
        device=device,
    )
    decide(report, chance=1 / len(found.classes))
    leading = next((f.confirmation for f in findings if f.flagged or f.confirmation.holds), None)
    if published:
        tell("running the published defences")
        report.defences = _published(found, ensemble, search, leading, raw, seed)
    if repairs and leading is not None and not weak:
        tell("attributing the finding and measuring repairs")
        options: dict[str, Any] = {"seed": seed, "device": device}
        target = leading.target
        report.attribution = attribute(found, factory, leading.trigger, target, judge, **options)
        report.repairs = propose_repairs(
            found, factory, ensemble, leading.trigger, target, search, judge, report.attribution, **options
        )
    report.pictures = evidence_pictures(report, judge, found)
    report.seconds = time.perf_counter() - started
    return report


def audit_model(
    network: nn.Module,
    preprocessing: Preprocessing,
    clean: LabelledImages,
    *,
    factory: Factory | None = None,
    recipe: TrainingRecipe | None = None,
    published: bool = True,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> AuditReport:
    """Audit one trained network, without the set that it was trained on.

    One network's own adversarial weaknesses are not averaged out, so the evidence is weaker than a set's. The control
    are networks of the same kind, trained on half of the clean images, where a factory says how they are made.

    Args:
        network: classifier of normalized images.
        preprocessing: what it expects.
        clean: held-out clean images.
        factory: makes an untrained network of the kind, for the control.
        recipe: how the control is trained; 300 epochs of SGD where not given.
        published: run the published defences for comparison.
        seed: of everything random.
        device: where to compute.
        progress: told each step.

    Raises:
        UserError: network and images do not fit.
    """
    started, tell = time.perf_counter(), progress or (lambda _: None)
    search, judge, notes, weak = _split(clean)
    if clean.image_shape != preprocessing.image_shape:
        raise UserError(f"the model takes images {preprocessing.image_shape}; the clean ones are {clean.image_shape}")
    network = network.to(device).eval()
    ensemble = Ensemble([network])
    try:
        outputs = ensemble.logits(preprocessing.normalize(judge.images[:2]).to(device)).shape[2]
    except RuntimeError as error:
        raise UserError(f"the model does not take these images: {str(error).splitlines()[0]}") from error
    if outputs != len(clean.classes):
        raise UserError(f"the model has {outputs} classes; the clean images have {len(clean.classes)}")
    accuracies = ensemble.accuracy(preprocessing.normalize(judge.images).to(device), judge.labels).tolist()
    tell("scanning for patches")
    scan, unrealisable = _scans(ensemble, search, preprocessing)
    control = None
    if factory is not None:
        tell("training a control on clean images")
        images = preprocessing.normalize(search.images)
        seeds = [derived_seed(seed, 33, k) for k in range(3)]
        control = train_together(factory, images, search.labels, recipe or TrainingRecipe(), seeds=seeds, device=device)
    findings = []
    for cell, anomaly in scan.suspects(2):
        evidence = float(scan.evidence[:, cell.target].max())
        if evidence >= 0.6:
            confirmation = confirm(ensemble, control, cell, anomaly, search, judge, preprocessing, seed=seed)
            findings.append(Finding(evidence, evidence > 1, confirmation))
    report = AuditReport(
        subject="model",
        classes=clean.classes,
        image_shape=preprocessing.image_shape,
        verdict="not assessable",
        reason="",
        threshold=1.0,
        evidence=scan.strongest,
        calibration="The thresholds are provisional (AI 3.2, score .2): single networks were not calibrated.",
        power="The power of the scan was not measured for single networks.",
        accuracies=accuracies,
        clean_images=len(clean),
        scan=scan,
        unrealisable=unrealisable,
        findings=findings,
        weak=weak,
        notes=notes,
        networks=1,
        parameters=sum(p.numel() for p in network.parameters()),
        seed=seed,
        device=device,
    )
    if published:
        tell("running the published defences")
        leading = next((f.confirmation for f in findings if f.flagged), None)
        suspect = Suspect(ensemble, preprocessing, search, inputs=_with_patch(leading, search), seed=seed)
        report.defences = run_defences(suspect, _of_networks(leading))
    decide(report, chance=1 / len(clean.classes))
    report.pictures = evidence_pictures(report, judge, None)
    report.seconds = time.perf_counter() - started
    return report


# --- steps ------------------------------------------------------------------------------------------------------


def _clean_halves(
    found: CondensedSet, clean: LabelledImages | None
) -> tuple[LabelledImages, LabelledImages, list[str], bool]:
    if clean is None:
        pixels = (found.pixels.clamp(0, 1) * 255).round().to(torch.uint8)
        own = LabelledImages(pixels, found.hard_labels, found.classes)
        note = "No clean images were given: the scan painted on the set itself. This is weak evidence."
        return own, own, [note], True
    if clean.image_shape != found.preprocessing.image_shape:
        raise UserError(
            f"the set is of images {found.preprocessing.image_shape}; the clean images are {clean.image_shape}: name "
            "the data that it was condensed from, at the same size"
        )
    if len(clean.classes) != len(found.classes):
        raise UserError(f"the set has {len(found.classes)} classes; the clean images have {len(clean.classes)}")
    return _split(clean)


def _split(clean: LabelledImages) -> tuple[LabelledImages, LabelledImages, list[str], bool]:
    search, judge = halves(clean)
    fewest = int(torch.bincount(clean.labels, minlength=len(clean.classes)).min())
    if fewest >= FEW:
        return search, judge, [], False
    note = f"A class has only {fewest} clean images, fewer than {FEW}: weak evidence; hold out more (--validation)."
    return search, judge, [note], True


def _file_notes(found: CondensedSet) -> list[str]:
    notes = []
    if found.poisoned is not None:
        notes.append(
            f"The set's own manifest marks it as poisoned: {printable(found.poisoned.get('attack', 'unknown attack'))}."
        )
    outside = float(((found.pixels < 0) | (found.pixels > 1)).double().mean())
    notes.append(
        f"{100 * outside:.0f} % of the set's pixel values lie outside the pixel range; of clean sets half do: this is "
        "no sign of an attack."
    )
    return notes


def _accuracy_notes(found: CondensedSet, accuracies: list[float], images: int) -> list[str]:
    stated = found.results.get("accuracy")
    if stated is None:
        return []
    mean = sum(accuracies) / len(accuracies)
    spread = torch.tensor(accuracies).std().item() if len(accuracies) > 1 else 0.0
    deviation = (spread**2 + mean * (1 - mean) / images) ** 0.5
    if abs(mean - stated) <= 3 * deviation:
        return []
    return [
        f"Networks trained on the set reach {mean:.3f} on the clean images; its manifest says {stated:.3f}: the set "
        "was altered, or preprocessing or recipe are not its own."
    ]


def _scans(ensemble: Ensemble, search: LabelledImages, pre: Preprocessing) -> tuple[PatchScan, PatchScan]:
    """The scan, and a coarse one with colours that no image file holds, which is reported apart."""
    part = search.subset(spread_rows(search.labels, SCANNED))
    small = search.subset(spread_rows(search.labels, 64))
    channels = pre.image_shape[0]
    colours = [(value,) * channels for value in _UNREALISABLE]
    side = min(pre.image_shape[1:])
    size = min(max(2, side // 16), side)
    beyond = scan_patches(
        ensemble, small.images, small.labels, pre, sizes=(size,), colours=colours, stride=size, keep=2
    )
    return scan_patches(ensemble, part.images, part.labels, pre), beyond


def _confirm(
    found: CondensedSet,
    factory: Factory,
    ensemble: Ensemble,
    cell: Any,
    anomaly: float,
    search: LabelledImages,
    judge: LabelledImages,
    networks: int,
    seed: int,
    device: str,
) -> Confirmation:
    replaced = control_set(found, search, cell.target)
    control = None
    if replaced is not None:
        seeds = [derived_seed(seed, 32, cell.target, k) for k in range(networks)]
        control = train_on(replaced, seeds=seeds, factory=factory, device=device)
    return confirm(ensemble, control, cell, anomaly, search, judge, found.preprocessing, seed=seed)


def _measure_suspected(
    found: CondensedSet,
    factory: Factory,
    ensemble: Ensemble,
    suspected: tuple[Trigger, int] | None,
    search: LabelledImages,
    judge: LabelledImages,
    networks: int,
    seed: int,
    device: str,
) -> AttackOutcome | None:
    if suspected is None:
        return None
    trigger, target = suspected
    if not 0 <= target < len(found.classes):
        raise UserError(f"the suspected target {target} is no class; there are 0..{len(found.classes) - 1}")
    replaced = control_set(found, search, target)
    if replaced is None:
        raise UserError("a suspected trigger needs a control: hard labels, and clean images of its target")
    seeds = [derived_seed(seed, 34, k) for k in range(networks)]
    control = train_on(replaced, seeds=seeds, factory=factory, device=device)
    return measure_attack(ensemble, control, judge.images, judge.labels, trigger, target, found.preprocessing)


def _published(
    found: CondensedSet,
    ensemble: Ensemble,
    search: LabelledImages,
    leading: Confirmation | None,
    raw: tuple[Tensor, Tensor] | None,
    seed: int,
) -> list[Detection]:
    suspect = Suspect(
        ensemble, found.preprocessing, search, found.images, found.hard_labels, _with_patch(leading, search), seed=seed
    )
    rows = run_defences(suspect, [*_of_networks(leading), *_OF_FEATURES])
    if raw is not None:
        of_raw = run_defences(replace(suspect, images=raw[0], labels=raw[1]), _OF_FEATURES)
        rows += [replace(row, name=f"{row.name} of the raw set") for row in of_raw]
    return rows


# The patch scan is the audit's own, and the range guard has nothing to refuse: a confirmed patch has valid pixels.
_OF_NETWORKS = ("neural cleanse", "neuron stimulation (ABS)")
_OF_FEATURES = ("activation clustering", "spectral signatures")


def _of_networks(leading: Confirmation | None) -> list[str]:
    return [*_OF_NETWORKS, *(["STRIP"] if leading is not None else [])]


def _with_patch(leading: Confirmation | None, search: LabelledImages) -> Tensor | None:
    """Clean images with the confirmed patch, in pixel units, for the defences that judge inputs."""
    if leading is None:
        return None
    return leading.trigger.stamp_valid(search.images[spread_rows(search.labels, BLENDED)]).float() / 255
