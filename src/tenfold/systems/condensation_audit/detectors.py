"""Every defence on one set and the networks trained on it: an alarm or none, the score, the class, the seconds.

The experiment and the audit's tables speak of all defences in these terms. Input-level defences (STRIP, the range
guard) judge inputs, not sets: where a trigger is known they are given triggered images, else clean ones; their alarm is
that most of the inputs are flagged.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tenfold.data.images import LabelledImages
from tenfold.systems.condensation_audit.calibration import calibration_for
from tenfold.systems.condensation_audit.ensembles import Ensemble
from tenfold.systems.condensation_audit.feature_clusters import activation_clustering
from tenfold.systems.condensation_audit.feature_spectra import spectral_signatures
from tenfold.systems.condensation_audit.input_blending import strip
from tenfold.systems.condensation_audit.mask_inversion import neural_cleanse
from tenfold.systems.condensation_audit.neuron_stimulation import stimulate_neurons
from tenfold.systems.condensation_audit.patch_scan import scan_patches, spread_rows
from tenfold.systems.condensation_audit.range_guard import check_range
from tenfold.systems.condensation_audit.sets import CondensedSet
from tenfold.systems.condensation_audit.triggers import Trigger

_SCANNED, _BLENDED = 300, 100
_MOST = 0.5
# Shares of variance along one direction that clean classes of so few images have, too, are no alarm.
_SPECTRAL_ALARM = 0.9

Row = dict[str, Any]


DETECTORS = (
    "patch scan", "range guard", "neural cleanse", "neuron stimulation (ABS)", "STRIP", "activation clustering",
    "spectral signatures",
)  # fmt: skip
"""The defences by name."""


def run_detectors(
    found: CondensedSet, ensemble: Ensemble, clean: LabelledImages, *, trigger: Trigger | None = None,
    names: Sequence[str] = DETECTORS, seed: int = 0,
) -> dict[str, Row]:  # fmt: skip
    """Run defences.

    Args:
        found: the set.
        ensemble: networks trained on it; defences of one network look at the first.
        clean: held-out clean images.
        trigger: of the attack, for the defences that judge inputs; clean inputs where there is none.
        names: of the defences.
        seed: of what is random.

    Returns:
        For each defence ``flagged``, ``score``, ``classes`` that it names, ``right`` (it names the poisoned class;
        ``None`` for a clean set), and ``seconds``.
    """
    rows = spread_rows(clean.labels, min(_SCANNED, len(clean)))
    pixels, labels = clean.images[rows], clean.labels[rows]
    preprocessing, network = found.preprocessing, ensemble.networks[0]
    calibration = calibration_for(found)
    features = ensemble.features(found.images)[0].cpu()
    inputs = (pixels[:_BLENDED].float() / 255) if trigger is None else trigger.stamp(pixels[:_BLENDED])

    def scan() -> Row:
        made = scan_patches(
            ensemble, pixels, labels, preprocessing, sizes=None if calibration.provisional else calibration.sizes
        )
        evidence = calibration.evidence_of(made)
        named = [target for target, best in enumerate(evidence.max(0)) if best > calibration.threshold]
        return _row(bool(named), float(evidence.max()), named, made.seconds)

    def cleanse() -> Row:
        made = neural_cleanse(network, pixels, preprocessing, seed=seed)
        return _row(bool(made.flagged), made.score, made.flagged, made.seconds)

    def stimulate() -> Row:
        made = stimulate_neurons(network, pixels, labels, preprocessing)
        return _row(bool(made.flagged), made.score, made.flagged, made.seconds)

    def blend() -> Row:
        made = strip(network, preprocessing.normalize(inputs), preprocessing.normalize(pixels), seed=seed)
        return _row(made.score > _MOST, made.score, [], made.seconds)

    def cluster() -> Row:
        made = activation_clustering(features, found.hard_labels, fewest=2, seed=seed)
        return _row(bool(made.flagged), made.score, made.flagged, made.seconds)

    def spectrum() -> Row:
        made = spectral_signatures(features, found.hard_labels, fewest=2)
        named = [label for label, ratio in made.ratios.items() if ratio > _SPECTRAL_ALARM]
        return _row(bool(named), made.score, named, made.seconds)

    def guard() -> Row:
        made = check_range(inputs)
        return _row(bool(made.flagged.double().mean() > _MOST), made.score, [], made.seconds)

    calls: dict[str, Callable[[], Row]] = dict(
        zip(DETECTORS, (scan, guard, cleanse, stimulate, blend, cluster, spectrum), strict=True)
    )
    target = (found.poisoned or {}).get("target")
    measured = {}
    for name in names:
        measured[name] = calls[name]()
        measured[name]["right"] = None if target is None else target in measured[name]["classes"]
    return measured


def _row(alarm: bool, score: float, classes: list[int], seconds: float) -> Row:
    finite = float(score) if torch.isfinite(torch.tensor(float(score))) else None
    return {"flagged": bool(alarm), "score": finite, "classes": [int(c) for c in classes], "seconds": seconds}
